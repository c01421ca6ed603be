//! The fetch of a whole blob: every part that nobody else is bringing, in order, on one connection or several.
//!
//! In: a flight, and the body that the opening request brought. Out: a verified original, or every reader is told why
//! not.
//! Invariant: the digest is taken of the bytes as they are in the file, in order, while they come. A right one is
//! published; a wrong one leaves nothing behind; any other failure but the disk's leaves the partial, which the next
//! fetch resumes. With several connections, none begins further ahead of the first missing byte than the window; where
//! the upstream refuses some, fewer bring it, down to one, and what that one is told counts.
//! Not here: one part ([`super::run`]).

use std::{
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{Arc, MutexGuard},
    time::Instant,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use headstart_layer_format::BlobDigest;
use tracing::{Instrument as _, field::Empty};

use super::{
    error::ReadError,
    fetch::Fetch,
    flight::{Flight, State},
    landed::Landed,
    run::{Brought, Patience},
    turns::FetchTurn,
};
use crate::{
    store::hasher::BlobHasher,
    upstream::{BlobBody, UpstreamError},
};

/// What one of several connections brings at a time: large beside the cost of a request.
pub const SEGMENT: u64 = 8 << 20;

/// Bytes read at once for hashing.
pub const HASH_BUFFER: usize = 1 << 20;

impl Fetch {
    /// From now on the whole is fetched; does nothing more if it already is. `permit` is held to the end.
    pub(super) fn promote(self: &Arc<Self>, body: Option<BlobBody>, permit: FetchTurn) {
        let state = self.flight.state();
        self.promote_locked(state, body, false, permit);
    }

    /// The same, when the upstream answers a range with everything: the claim to the range is given up for it.
    pub(super) fn promote_ignored(self: &Arc<Self>, claim: u64, body: BlobBody, permit: FetchTurn) {
        let mut state = self.flight.state();
        state.claims.remove(claim);
        state.no_ranges = true;
        self.promote_locked(state, Some(body), true, permit);
    }

    fn promote_locked(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        body: Option<BlobBody>,
        mut is_all: bool,
        permit: FetchTurn,
    ) {
        if state.whole.is_some() || state.is_over() {
            drop(state);
            self.flight.wake();
            return;
        }
        state.whole = Some(Instant::now());
        state.head_then = state.landed.end_from(0);
        let lanes = self.lanes(&state);
        let first = match (self.gap(&state.taken(), lanes), body) {
            (Some(gap), Some(body)) if body.start <= gap.start => {
                let end = body.end.unwrap_or(self.flight.size());
                // Several lanes ask for a segment each: this is more than was asked for.
                is_all |= lanes > 1 && end > gap.end;
                let claimed = gap.start..end.min(gap.end);
                (claimed.start < claimed.end).then(|| {
                    let claim = state.claims.add(claimed, true);
                    if is_all {
                        state.no_ranges = true;
                        state.claims.widen(claim, self.flight.size());
                    }
                    (claim, body)
                })
            }
            _ => None,
        };
        drop(state);
        self.flight.wake();
        let (fetch, tasks) = (self.clone(), self.errand.yard.tasks.clone());
        let span = self
            .cause
            .of(tracing::error_span!(parent: None, "fetch whole", request_id = Empty));
        let landed = async move {
            // Whatever happens to this task, no reader waits for ever.
            let landing = Landing(fetch.clone());
            fetch.bring_whole(first).await;
            drop((landing, permit));
        };
        tasks.spawn(landed.instrument(span));
    }

    async fn bring_whole(self: &Arc<Self>, first: Option<(u64, BlobBody)>) {
        let bringing = async {
            if let Err(error) = self.bring(first).await {
                self.flight.ground(error);
            }
            self.flight.drained().await;
        };
        // Readers wait for the first bytes, and the hash can do nothing without them: its thread does not wake before.
        let hashing = async {
            self.flight.begun().await;
            let fetch = self.clone();
            let hashed = tokio::task::spawn_blocking(move || hash(&fetch.errand.digest, &fetch.flight)).await;
            if let Ok(Err(ReadError::DigestMismatch)) = &hashed {
                self.errand.lied();
                tracing::warn!(digest = %self.errand.digest, "upstream's first bytes were others before; nothing is kept");
            }
            hashed
        };
        let ((), hashed) = tokio::join!(bringing, hashing);
        match (hashed, self.flight.grounded()) {
            (Ok(Ok(Some(found))), None) => {
                let fetch = self.clone();
                // An error here is that of a panicked thread; the landing tells the readers.
                let _ = tokio::task::spawn_blocking(move || fetch.conclude(&found)).await;
            }
            (Ok(Err(error)), None) => self.give_up(error).await,
            (_, error) => self.give_up(error.unwrap_or(ReadError::Incomplete)).await,
        }
    }

    /// Brings every byte that nobody else brings, and waits for those.
    async fn bring(self: &Arc<Self>, first: Option<(u64, BlobBody)>) -> Result<(), ReadError> {
        let mut lanes = self.lanes(&self.flight.state());
        let run = |claim, body, lanes| {
            let fetch = self.clone();
            let patience = match lanes {
                1 => Patience::Long,
                _ => Patience::None,
            };
            async move { (claim, patience, fetch.bring_claim(claim, body, patience).await) }
        };
        let mut runs = FuturesUnordered::new();
        runs.extend(first.map(|(claim, body)| run(claim, Some(body), lanes)));
        let mut failed = None;
        loop {
            let changed = self.flight.changed();
            while failed.is_none() && runs.len() < lanes {
                let Some(claim) = self.claim_next(lanes) else { break };
                runs.push(run(claim, None, lanes));
            }
            if runs.is_empty() {
                match failed {
                    Some(error) => return Err(error),
                    None if self.flight.is_complete() => return Ok(()),
                    None if self.stop().is_cancelled() => {
                        return Err(self.flight.grounded().unwrap_or(ReadError::Stopping));
                    }
                    None => {}
                }
                tokio::select! {
                    () = changed => {}
                    () = self.stop().cancelled() => {}
                }
                continue;
            }
            let (claim, patience, brought) = tokio::select! {
                Some(ended) = runs.next() => ended,
                () = changed, if runs.len() < lanes => continue,
            };
            match brought {
                Ok(Brought::All) => self.flight.release(claim, None),
                Ok(Brought::Whole(body)) => {
                    // One body with everything: it brings whatever is missing.
                    lanes = 1;
                    {
                        let mut state = self.flight.state();
                        state.no_ranges = true;
                        state.claims.widen(claim, self.flight.size());
                    }
                    runs.push(run(claim, Some(body), lanes));
                }
                // It may mean that so many connections are too many. The last of them asks again, and waits: also when
                // others have given up since this one began.
                Err(error) if patience == Patience::None && may_do_alone(&error) => {
                    tracing::info!(digest = %self.errand.digest, lanes, %error, "one connection less brings the blob");
                    lanes = lanes.saturating_sub(1).min(runs.len()).max(1);
                    self.flight.release(claim, None);
                }
                Err(error) => {
                    self.flight.release(claim, Some(error.clone()));
                    // The others end where they are.
                    self.flight.ground(error.clone());
                    failed.get_or_insert(error);
                }
            }
        }
    }

    fn claim_next(&self, lanes: usize) -> Option<u64> {
        let mut state = self.flight.state();
        if state.is_over() {
            return None;
        }
        let gap = self.gap(&state.taken(), lanes)?;
        let head = state.landed.end_from(0);
        let window = SEGMENT.saturating_mul(lanes as u64);
        if lanes > 1 && gap.start >= head.saturating_add(window) {
            return None;
        }
        Some(state.claims.add(gap, true))
    }

    /// The first part that is neither here nor on its way, cut to a segment if there are several lanes.
    fn gap(&self, taken: &Landed, lanes: usize) -> Option<Range<u64>> {
        let gap = taken.gaps(&(0..self.flight.size())).into_iter().next()?;
        let end = match lanes {
            1 => gap.end,
            _ => gap.end.min(gap.start + SEGMENT),
        };
        Some(gap.start..end)
    }

    /// Connections for this blob.
    fn lanes(&self, state: &State) -> usize {
        let config = &self.errand.yard.config;
        match self.flight.size() >= config.parallel_min_bytes && !state.no_ranges {
            true => config.parallel_ranges.max(1),
            false => 1,
        }
    }

    /// Publishes, or cleans up.
    fn conclude(&self, found: &BlobDigest) {
        let digest = &self.errand.digest;
        let cleaned = if found == digest {
            // Readers need not wait for the disk; a crash now costs a fetch, not a wrong byte.
            self.flight.finish(Ok(()));
            let committed = self.flight.partial().commit();
            committed.inspect_err(|error| {
                // Somebody has removed the unfinished fetch: that says nothing of the disk.
                if error.kind() != io::ErrorKind::NotFound {
                    self.disk_error(error);
                }
                // It may have been renamed already; then there is nothing to remove.
                let _ = self.flight.partial().discard();
            })
        } else {
            self.errand.lied();
            tracing::warn!(%digest, size = self.flight.size(), "upstream's bytes do not match the digest; nothing is kept");
            let cleaned = self.flight.partial().discard();
            self.flight.finish(Err(ReadError::DigestMismatch));
            cleaned
        };
        if let Err(error) = cleaned {
            tracing::warn!(%digest, %error, "original cannot be published or removed");
        }
        self.flight.leave();
    }
}

/// Whether one connection may get what one of several did not: upstreams that allow one say so in many ways. What they
/// say of the blob itself, or of us, is no different then.
fn may_do_alone(error: &ReadError) -> bool {
    match error {
        ReadError::Incomplete => true,
        ReadError::Upstream(error) => matches!(
            error,
            UpstreamError::TooManyRequests { .. }
                | UpstreamError::Unavailable { .. }
                | UpstreamError::Timeout
                | UpstreamError::Denied { .. }
                | UpstreamError::Status(_)
                | UpstreamError::Unreachable(_)
        ),
        _ => false,
    }
}

/// Follows the bytes with the hash. `None`: they do not all come.
fn hash(digest: &BlobDigest, flight: &Flight) -> Result<Option<BlobDigest>, ReadError> {
    let (mut hasher, mut at) = (BlobHasher::of(digest), 0);
    let mut buffer = vec![0; HASH_BUFFER];
    while at < flight.size() {
        let Some(end) = flight.hashable_blocking(at) else {
            return Ok(None);
        };
        let len = (end - at).min(HASH_BUFFER as u64) as usize;
        flight.file().read_exact_at(&mut buffer[..len], at)?;
        let early = flight.early(&(at..at + len as u64));
        // They came in another answer than what is in the file, and readers have them.
        if early[..] != buffer[..early.len()] {
            return Err(ReadError::DigestMismatch);
        }
        hasher.update(&buffer[..len]);
        at += len as u64;
    }
    Ok(Some(hasher.finish()))
}

struct Landing(Arc<Fetch>);

impl Drop for Landing {
    fn drop(&mut self) {
        self.0.flight.ground(ReadError::Incomplete);
        self.0.flight.finish(Err(ReadError::Incomplete));
        self.0.flight.leave();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::store::originals::Originals;

    #[test]
    fn bytes_that_readers_have_and_the_file_has_not_are_no_verdict() {
        let blob = vec![7; 3 * HASH_BUFFER];
        let digest = BlobDigest::of(&blob);
        for (early, is_same) in [(vec![7; 100], true), (vec![8; 100], false), (Vec::new(), true)] {
            let dir = tempfile::tempdir().unwrap();
            let originals = Originals::open(dir.path()).unwrap();
            let mut partial = originals.partial(&digest, "u").unwrap();
            let size = blob.len() as u64;
            partial.set_size(size).unwrap();
            let flight = Flight::new(partial, size, Bytes::from(early), CancellationToken::new());
            let claim = flight.state().claims.add(0..size, true);
            // The border of what was written first is within the early bytes.
            flight.write(claim, &blob[..50]).unwrap();
            flight.write(claim, &blob[50..]).unwrap();
            let found = hash(&digest, &flight);
            match is_same {
                true => assert_eq!(found.unwrap(), Some(digest)),
                false => assert!(matches!(found, Err(ReadError::DigestMismatch))),
            }
        }
    }
}
