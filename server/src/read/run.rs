//! One run: a claimed part of a blob, brought by as many requests as it takes.
//!
//! In: a claim, and a body if there is one already. Out: the bytes are in the file, or why not.
//! Invariant: a body that breaks off, stalls or is refused for the moment is continued where it was, so no byte is
//! asked for twice; what an upstream sends beyond the claim is not written. When the upstream says that the blob has
//! another size than before, everything is thrown away. A write is never abandoned half-way: whoever waits until no
//! claim is left knows that nobody writes.
//! Not here: which parts are claimed ([`super::whole`], [`super::demand`]).

use std::sync::Arc;

use bytes::Bytes;

use super::{
    blocking::{blocking, blocking_here},
    errand::{may_pass, pause},
    error::ReadError,
    fetch::Fetch,
};
use crate::upstream::{BlobAnswer, BlobBody, RangeAnswer, UpstreamError};

/// A try that brought at least this much counts as progress, and the count of fruitless tries starts anew.
const PROGRESS_MIN: u64 = 64 << 10;

/// The first bytes of a body that are written at once: a piece can be much larger, and takes that much longer.
const FIRST_WRITE: usize = 16 << 10;

/// What a run does when the upstream does not answer a request for a part with that part. A body that breaks off or
/// stalls is continued in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// What may pass is waited out.
    Long,
    /// The same, but for what would try a client's patience: "too many requests", no answer in time.
    Short,
    /// Nothing is: another connection may bring it.
    None,
}

impl Patience {
    fn waits_out(self, error: &ReadError) -> bool {
        match self {
            Self::Long => true,
            Self::Short => !matches!(
                error,
                ReadError::Upstream(UpstreamError::TooManyRequests { .. } | UpstreamError::Timeout)
            ),
            Self::None => false,
        }
    }
}

/// How a run ended well.
#[derive(Debug)]
pub enum Brought {
    All,
    /// The upstream ignores ranges and is sending everything from the start; the claim is as it was.
    Whole(BlobBody),
}

impl Fetch {
    /// Brings a claim; gives it back only together with what went wrong.
    pub(super) async fn bring_claim(
        self: &Arc<Self>,
        claim: u64,
        mut body: Option<BlobBody>,
        patience: Patience,
    ) -> Result<Brought, ReadError> {
        let mut fruitless = 0;
        while let Some(left) = self.flight.left(claim) {
            if self.flight.stop.is_cancelled() {
                return Err(ReadError::Stopping);
            }
            let is_asking = body.is_none();
            let error = match body.take() {
                Some(body) => match self.take(claim, body).await {
                    Ok(()) => continue,
                    Err(error) => error,
                },
                None => match self.ask(left.start, left.end).await {
                    Ok(Answer::Body(next)) => {
                        body = Some(next);
                        continue;
                    }
                    Ok(Answer::Whole(body)) => return Ok(Brought::Whole(body)),
                    Err(error) => error,
                },
            };
            if !may_pass(&error) || (is_asking && !patience.waits_out(&error)) {
                return Err(error);
            }
            let at = self.flight.left(claim).map_or(left.end, |left| left.start);
            fruitless = if at - left.start >= PROGRESS_MIN {
                1
            } else {
                fruitless + 1
            };
            let (upstream, digest, size) = (self.errand.upstream.name(), self.errand.digest, self.flight.size());
            tracing::info!(upstream, %digest, at, size, fruitless, %error, "blob broke off");
            if fruitless >= self.errand.yard.config.tries_max {
                return Err(match error {
                    ReadError::Upstream(error) => error.into(),
                    _ => ReadError::Incomplete,
                });
            }
            tokio::select! {
                () = self.flight.stop.cancelled() => return Err(ReadError::Stopping),
                () = tokio::time::sleep(pause(fruitless, &error)) => {}
            }
        }
        Ok(Brought::All)
    }

    /// Asks for `at..end`.
    async fn ask(&self, at: u64, end: u64) -> Result<Answer, ReadError> {
        let size = self.flight.size();
        let asked = async {
            // Open ends are what every upstream knows best; and the whole needs no range at all.
            if end == size && self.flight.is_whole() {
                return Ok(match self.errand.from(at).await? {
                    BlobAnswer::Body(body) if at > 0 && body.start == 0 => RangeAnswer::Whole(body),
                    BlobAnswer::Body(body) => RangeAnswer::Part(body),
                    BlobAnswer::Complete { size } => RangeAnswer::PastEnd { size },
                });
            }
            self.errand.range(at..end).await
        };
        let answer: Result<RangeAnswer, UpstreamError> = tokio::select! {
            () = self.flight.stop.cancelled() => return Err(ReadError::Stopping),
            answer = asked => answer,
        };
        let (answer, says) = match answer? {
            RangeAnswer::Part(body) => (Some(body.size), Answer::Body(body)),
            RangeAnswer::Whole(body) => (Some(body.size), Answer::Whole(body)),
            RangeAnswer::PastEnd { .. } => return Err(self.another_size()),
        };
        match answer.flatten() {
            Some(now) if now != size => Err(self.another_size()),
            _ => Ok(says),
        }
    }

    /// What is here may be of either blob.
    fn another_size(&self) -> ReadError {
        tracing::warn!(digest = %self.errand.digest, "the upstream says that the blob has another size than before");
        self.errand.lied();
        ReadError::DigestMismatch
    }

    /// Writes a body's bytes, without those before where the claim is.
    async fn take(self: &Arc<Self>, claim: u64, mut body: BlobBody) -> Result<(), ReadError> {
        let Some(left) = self.flight.left(claim) else {
            return Ok(());
        };
        let mut skip = left.start.saturating_sub(body.start);
        let mut is_first = self.flight.early(&(left.start..left.end)).is_empty();
        loop {
            let chunk = tokio::select! {
                biased;
                () = self.flight.stop.cancelled() => return Err(ReadError::Stopping),
                chunk = body.chunk() => chunk?,
            };
            let Some(mut bytes) = chunk else {
                return match self.flight.left(claim) {
                    None => Ok(()),
                    Some(_) => Err(ReadError::Incomplete),
                };
            };
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            // It fits `usize`: it is at most the length of `bytes`.
            let _ = bytes.split_to(skipped as usize);
            // Readers wait for the first bytes, if they do not have them; those behind them have to keep up with the network only.
            if std::mem::take(&mut is_first) {
                let first = bytes.split_to(bytes.len().min(FIRST_WRITE));
                if blocking_here(self.write(claim, first)).await? {
                    return Ok(());
                }
            }
            if bytes.is_empty() {
                continue;
            }
            if blocking(self.write(claim, bytes)).await? {
                return Ok(());
            }
        }
    }

    /// Writes the next bytes of a claim. Whether that was all of it.
    fn write(self: &Arc<Self>, claim: u64, bytes: Bytes) -> impl FnOnce() -> Result<bool, ReadError> + Send + use<> {
        let fetch = self.clone();
        move || {
            let written = fetch.flight.write(claim, &bytes);
            written.map_err(|error| fetch.disk_error(&error))?;
            Ok(fetch.flight.is_brought(claim))
        }
    }

    /// A write failed: space is needed, and for a while nothing else is tried on this disk.
    pub(super) fn disk_error(&self, error: &std::io::Error) -> ReadError {
        self.errand.yard.disk_failed(error);
        tracing::warn!(digest = %self.errand.digest, %error, "blob cannot be written; its readers go on without the disk");
        ReadError::Disk(error.to_string().into())
    }
}

enum Answer {
    Body(BlobBody),
    Whole(BlobBody),
}
