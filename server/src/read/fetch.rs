//! The one fetch of a blob: from its upstream into a partial file, verified, and published as an original.
//!
//! In: a repository that should have the blob. Out: a [`Flight`] as soon as the upstream's head is here, and the
//! future that brings the bytes.
//! Invariant: bytes are appended in order and hashed once; a body that breaks off is resumed by Range, so what readers
//! have already seen is never fetched into another place. A wrong digest leaves nothing behind; any other failure
//! leaves the partial, which the next fetch resumes.
//! Not here: who may read (`blobs.rs`), and which requests share a fetch (`blobs.rs`).

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{blocking::blocking, error::ReadError, flight::Flight};
use crate::{
    config::FetchConfig,
    metrics::Metrics,
    store::{originals::Originals, partial::Partial},
    upstream::{BlobAnswer, BlobBody, Caller, Upstream, UpstreamError},
};

/// Pieces between the network and the writer. hyper's pieces have up to some 400 KiB, so this bounds the memory of one
/// fetch to a few MiB.
const QUEUE_LEN: usize = 16;

/// Pauses between tries of one blob: the first, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A try that brought at least this much counts as progress, and the count of fruitless tries starts anew.
const PROGRESS_MIN: u64 = 64 << 10;

/// One blob to fetch.
#[derive(Clone, Debug)]
pub struct Fetch {
    pub upstream: Arc<Upstream>,
    pub repository: String,
    pub caller: Caller,
    pub digest: BlobDigest,
    pub originals: Originals,
    pub config: FetchConfig,
    pub metrics: Metrics,
    pub stop: CancellationToken,
}

/// What a fetch begins with.
struct Opened {
    partial: Partial,
    size: u64,
    body: Option<BlobBody>,
}

impl Fetch {
    /// Asks the upstream. When it has the blob, readers may board the flight; the future must be run to its end.
    pub async fn start(self) -> Result<(Arc<Flight>, impl Future<Output = ()> + Send + 'static), ReadError> {
        let opened = self.open().await?;
        if opened.size > self.config.blob_size_max {
            return Err(ReadError::TooLarge {
                size: opened.size,
                size_max: self.config.blob_size_max,
            });
        }
        let flight = Arc::new(Flight::new(opened.partial.file(), opened.size, opened.partial.len()));
        Ok((flight.clone(), self.run(opened, flight)))
    }

    /// The partial and a body that continues it.
    async fn open(&self) -> Result<Opened, ReadError> {
        let (originals, digest) = (self.originals.clone(), self.digest);
        let mut partial = blocking(move || Ok(originals.partial(&digest)?)).await?;
        let mut tries = 0;
        loop {
            tries += 1;
            let body = match self
                .upstream
                .blob(&self.repository, &self.caller, &self.digest, partial.len())
                .await
            {
                Ok(BlobAnswer::Complete { size }) => {
                    return Ok(Opened {
                        partial,
                        size,
                        body: None,
                    });
                }
                Ok(BlobAnswer::Body(body)) => body,
                // What is here is longer than the blob, or the upstream cannot do ranges: from the start, then.
                Err(UpstreamError::Status(416) | UpstreamError::BadAnswer(_)) if !partial.is_empty() => {
                    partial = restarted(partial).await?;
                    continue;
                }
                Err(error)
                    if error.is_transient() && error != UpstreamError::Timeout && tries < self.config.tries_max =>
                {
                    tokio::time::sleep(pause(tries)).await;
                    continue;
                }
                Err(error) => {
                    if partial.is_empty() {
                        blocking(move || Ok(partial.discard()?)).await?;
                    }
                    return Err(error.into());
                }
            };
            if body.start != partial.len() {
                partial = restarted(partial).await?;
            }
            return match body.size {
                Some(size) if size < partial.len() => {
                    partial = restarted(partial).await?;
                    continue;
                }
                Some(size) => Ok(Opened {
                    partial,
                    size,
                    body: Some(body),
                }),
                None => self.spool(partial, body).await,
            };
        }
    }

    /// The upstream does not say how long the blob is, and clients must be told: the whole of it first. Rare.
    async fn spool(&self, mut partial: Partial, mut body: BlobBody) -> Result<Opened, ReadError> {
        partial = blocking(move || {
            partial.rehash()?;
            Ok(partial)
        })
        .await?;
        while let Some(bytes) = body.chunk().await? {
            let size = partial.len() + bytes.len() as u64;
            if size > self.config.blob_size_max {
                return Err(ReadError::TooLarge {
                    size,
                    size_max: self.config.blob_size_max,
                });
            }
            partial = blocking(move || {
                partial.append(&bytes)?;
                Ok(partial)
            })
            .await?;
        }
        let size = partial.len();
        Ok(Opened {
            partial,
            size,
            body: None,
        })
    }

    async fn run(self, opened: Opened, flight: Arc<Flight>) {
        // Whatever happens to this future, no reader waits for ever.
        let _landing = Landing(flight.clone());
        let Opened { partial, size, body } = opened;
        let landed = partial.len();
        let (sender, receiver) = mpsc::channel(QUEUE_LEN);
        let writer = tokio::task::spawn_blocking({
            let flight = flight.clone();
            move || write(partial, receiver, &flight)
        });
        let brought = tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(ReadError::Stopping),
            brought = self.bring(landed, size, body, sender) => brought,
        };
        let Ok((partial, written)) = writer.await else {
            return;
        };
        let (digest, metrics) = (self.digest, self.metrics.clone());
        // An error here is that of a panicked thread; the landing tells the readers.
        let _ = tokio::task::spawn_blocking(move || {
            conclude(partial, size, written.and(brought), &flight, &digest, &metrics);
        })
        .await;
    }

    /// Brings bytes `landed..size` to the writer, resuming as often as it takes and is allowed.
    async fn bring(
        &self,
        landed: u64,
        size: u64,
        mut body: Option<BlobBody>,
        sender: mpsc::Sender<Bytes>,
    ) -> Result<(), ReadError> {
        let mut at = landed;
        let mut fruitless = 0;
        while at < size {
            let before = at;
            let error = match body.take() {
                Some(body) => match take(body, &mut at, size, &sender).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                None => match self
                    .upstream
                    .blob(&self.repository, &self.caller, &self.digest, at)
                    .await
                {
                    Ok(BlobAnswer::Body(next)) if next.start <= at && next.size.is_none_or(|s| s == size) => {
                        body = Some(next);
                        continue;
                    }
                    Ok(_) => return Err(UpstreamError::BadAnswer("the blob has another size than before").into()),
                    Err(error @ UpstreamError::TooManyRequests { .. }) => error.into(),
                    Err(error) if error.is_transient() => error.into(),
                    Err(error) => return Err(error.into()),
                },
            };
            if matches!(error, ReadError::Disk(_)) {
                return Err(error);
            }
            fruitless = if at - before >= PROGRESS_MIN { 1 } else { fruitless + 1 };
            tracing::info!(
                upstream = self.upstream.name(), digest = %self.digest, at, size, fruitless, %error, "blob broke off"
            );
            if fruitless >= self.config.tries_max {
                return Err(ReadError::Incomplete);
            }
            tokio::time::sleep(pause(fruitless)).await;
        }
        Ok(())
    }
}

/// Hands a body's bytes to the writer, without those before `at` and beyond `size`.
async fn take(mut body: BlobBody, at: &mut u64, size: u64, sender: &mpsc::Sender<Bytes>) -> Result<(), ReadError> {
    let mut skip = *at - body.start;
    while *at < size {
        let Some(mut bytes) = body.chunk().await? else {
            return Err(ReadError::Incomplete);
        };
        let skipped = skip.min(bytes.len() as u64);
        skip -= skipped;
        // Both fit `usize`: they are at most the length of `bytes`.
        let _ = bytes.split_to(skipped as usize);
        bytes.truncate(usize::try_from(size - *at).unwrap_or(usize::MAX));
        if bytes.is_empty() {
            continue;
        }
        let len = bytes.len() as u64;
        // The writer goes away only when the disk fails.
        sender
            .send(bytes)
            .await
            .map_err(|_| ReadError::Disk("the blob cannot be written".into()))?;
        *at += len;
    }
    Ok(())
}

/// The writer: hash what is old, append what is new, tell the readers.
fn write(mut partial: Partial, mut pieces: mpsc::Receiver<Bytes>, flight: &Flight) -> (Partial, Result<(), ReadError>) {
    let mut run = || -> std::io::Result<()> {
        partial.rehash()?;
        while let Some(bytes) = pieces.blocking_recv() {
            partial.append(&bytes)?;
            flight.land(partial.len());
        }
        Ok(())
    };
    let result = run().map_err(ReadError::from);
    (partial, result)
}

/// Verifies and publishes, or cleans up.
fn conclude(
    partial: Partial,
    size: u64,
    result: Result<(), ReadError>,
    flight: &Flight,
    digest: &BlobDigest,
    metrics: &Metrics,
) {
    let cleaned = match result {
        Ok(()) if partial.len() == size && partial.is_whole() => {
            // Readers need not wait for the disk; a crash now costs a fetch, not a wrong byte.
            flight.finish(Ok(()));
            partial.commit()
        }
        Ok(()) => {
            metrics.corruption("upstream_blob");
            tracing::warn!(%digest, size, "upstream's bytes do not match the digest; nothing is kept");
            let cleaned = partial.discard();
            flight.finish(Err(ReadError::DigestMismatch));
            cleaned
        }
        Err(error) => {
            // A full disk is not made better by keeping what did not fit.
            let cleaned = match error {
                ReadError::Disk(_) => partial.discard(),
                _ => Ok(()),
            };
            flight.finish(Err(error));
            cleaned
        }
    };
    if let Err(error) = cleaned {
        tracing::warn!(%digest, %error, "original cannot be published or removed");
    }
}

async fn restarted(mut partial: Partial) -> Result<Partial, ReadError> {
    blocking(move || {
        partial.restart()?;
        Ok(partial)
    })
    .await
}

/// Doubles from try to try.
fn pause(tries: u32) -> Duration {
    PAUSE_FIRST
        .saturating_mul(1 << tries.saturating_sub(1).min(16))
        .min(PAUSE_MAX)
}

struct Landing(Arc<Flight>);

impl Drop for Landing {
    fn drop(&mut self) {
        self.0.finish(Err(ReadError::Incomplete));
    }
}
