//! How a conversion ended, and telling it.
//!
//! In: an [`Outcome`]. Out: what the store keeps of it, metrics and a line in the log.
//! Invariant: what is recorded of a layer is its own doing, and its bytes are the right ones. A conversion that ran out of time
//! is a refusal only if all of the blob was here, and most of the time was not spent on waiting for it.
//! Not here: what follows for the queue ([`super`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use headstart_layer_format::BlobDigest;

use super::Shared;
use super::aside::Awaited;
use crate::ingest::{ConvertError, Failure, Progress, Refusal};
use crate::read::blobs::Blob;

#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing was left to do.
    Settled,
    Ready,
    Refused(String),
    Failed(String),
    /// A failure like any other: the upstream took the time.
    TimedOut(String),
    /// Others have it.
    NoMemory(String),
    /// It arrives slowly, and others wait.
    Slow(Awaited),
}

impl Shared {
    /// Of a conversion that ended without a TOC. `waited`: of its time, for the upstream.
    pub(super) fn outcome_of(&self, blob: &Blob, error: ConvertError, waited: Duration) -> Outcome {
        let layer = blob.digest();
        match error {
            ConvertError::Refused(refusal) => self.refuse(layer, &refusal),
            ConvertError::Failed(failure @ Failure::NoMemory) => Outcome::NoMemory(failure.to_string()),
            ConvertError::Failed(failure @ Failure::TimedOut) => {
                let time_max_ms = self.config.time_max_ms;
                match blob.is_verified() && waited <= Duration::from_millis(time_max_ms / 2) {
                    true => self.refuse(layer, &Refusal::OverTime { time_max_ms }),
                    false => Outcome::TimedOut(failure.to_string()),
                }
            }
            ConvertError::Failed(failure) => {
                if matches!(failure, Failure::DigestMismatch) {
                    // It was read from a disk that lies; the next try fetches it again.
                    let forgotten = self.runtime.block_on(self.blobs.forget_damaged(layer));
                    if let Err(error) = forgotten {
                        tracing::error!(%error, %layer, "failed to forget a damaged original");
                    }
                }
                Outcome::Failed(failure.to_string())
            }
        }
    }

    fn refuse(&self, layer: &BlobDigest, refusal: &Refusal) -> Outcome {
        match refusal.record(&self.store, layer, &self.config.allowance(self.store.bytes_max())) {
            Ok(reason) => {
                self.metrics.ingest_refusal(refusal.label());
                Outcome::Refused(reason)
            }
            Err(error) => Outcome::Failed(error.to_string()),
        }
    }

    pub(super) fn report(&self, layer: &BlobDigest, outcome: &Outcome, wall: Duration, progress: &Progress) {
        let (name, reason) = match outcome {
            Outcome::Settled => return,
            Outcome::Ready => ("ready", ""),
            Outcome::Refused(reason) => ("refused", reason.as_str()),
            Outcome::Failed(reason) => ("failed", reason.as_str()),
            Outcome::TimedOut(reason) => ("timed_out", reason.as_str()),
            Outcome::NoMemory(reason) => ("postponed", reason.as_str()),
            Outcome::Slow(awaited) => ("postponed", awaited.reason()),
        };
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let bytes = [
            ("compressed", read(&progress.compressed)),
            ("tar", read(&progress.tar)),
            ("new_chunks", read(&progress.new_chunks)),
            ("reused_chunks", read(&progress.reused_chunks)),
        ];
        self.metrics.ingest_layer(name);
        tracing::Span::current().record("outcome", name);
        self.metrics
            .ingest_seconds(wall.as_secs_f64(), progress.cpu().as_secs_f64());
        for (kind, n) in bytes {
            self.metrics.ingest_bytes(kind, n);
        }
        tracing::info!(
            %layer,
            outcome = name,
            reason,
            wall_ms = wall.as_millis() as u64,
            cpu_ms = progress.cpu().as_millis() as u64,
            compressed_bytes = bytes[0].1,
            tar_bytes = bytes[1].1,
            new_chunk_bytes = bytes[2].1,
            reused_chunk_bytes = bytes[3].1,
            "a conversion ended"
        );
    }
}
