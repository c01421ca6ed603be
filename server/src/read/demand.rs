//! What a reader of a part has fetched for it.
//!
//! In: where a reader is, and how far it may want to read, also in several ranges. Out: claims and their runs, a little ahead
//! of it.
//! Invariant: nothing is fetched that is here or on its way, nor beyond the units of what was asked for, nor more than
//! a window ahead of what the reader has taken: clients of open-ended ranges hang up early. While the whole is being
//! fetched, a reader follows it, unless that would take long: then the part is fetched ahead, and the fetch of the
//! whole leaves it out, so the bytes upstream stay those of the blob.
//! Not here: the run ([`super::run`]), and where a reader's bytes are ([`super::blob`]).

use std::{ops::Range, sync::Arc, time::Duration};

use tokio::time::timeout;
use tracing::{Instrument as _, field::Empty};

use super::{
    claims::Failed,
    error::ReadError,
    fetch::Fetch,
    flight::{State, View},
    run::{Brought, Patience},
    turns::FetchTurn,
    withheld::Withheld,
};
use crate::{store::units::UNIT, upstream::BlobBody};

/// Fetched ahead of a reader whose range ends within the blob: it has said what it wants.
pub const AHEAD_RANGE: u64 = 16 * UNIT;
/// Fetched ahead of one whose range ends with the blob: it may well hang up long before.
const AHEAD_OPEN: u64 = 4 * UNIT;

/// Of several ranges, parts that are brought at the same time.
const FORESEEN_MAX: usize = 4;
/// Ranges ahead that are looked at for one that is not here. Small ones lie close together.
const LOOK_MAX: usize = 64;

/// So far ahead of the fetch of the whole, a reader waits for it whatever its pace.
const FOLLOW: u64 = 8 * UNIT;
/// Further ahead, it waits for as much as comes in this time,
const FOLLOW_TIME: Duration = Duration::from_secs(3);
/// but the pace is not judged before this.
const JUDGE_AFTER: Duration = Duration::from_millis(500);

/// A reader looks again after this even if nothing has happened: an upstream may have slowed down.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

impl Fetch {
    /// Waits until a reader of `range` may go on; returns up to where. `withheld`: so much of the range
    /// is, before the verdict; from who reads the whole, its end at least.
    pub async fn readable(self: &Arc<Self>, range: &Range<u64>, withheld: Withheld) -> Result<u64, ReadError> {
        let mut awaited = None;
        loop {
            let changed = self.flight.changed();
            match self.look(range, withheld, awaited.take()) {
                View::Upto(end) => return Ok(end),
                View::Failed(error) => return Err(error),
                View::Awaited(failed) => awaited = failed,
                View::Missing => {}
            }
            // It makes no difference which of the two it was.
            let _ = timeout(LOOK_AGAIN, changed).await;
        }
    }

    /// Begins with the body of the opening request.
    pub(super) fn land_range(self: &Arc<Self>, body: BlobBody, permit: FetchTurn) {
        let claim = {
            let mut state = self.flight.state();
            let end = body.end.unwrap_or(body.start).min(self.flight.size());
            let gap = state.taken().gaps(&(body.start..end)).into_iter().next();
            match gap {
                Some(gap) if !state.is_over() => state.claims.add(gap, false),
                _ => return,
            }
        };
        self.spawn(claim, Some((body, permit)));
    }

    /// Claims what the first of these ranges lack, for one reader who will read them one after the other: a few claims at
    /// once, whoever's they are. One that fails is made again when he comes to it.
    pub fn foresee(self: &Arc<Self>, ranges: &[Range<u64>]) {
        let mut claims = Vec::new();
        {
            let mut state = self.flight.state();
            for range in ranges.iter().take(LOOK_MAX) {
                if state.claims.ranges().count() >= FORESEEN_MAX {
                    break;
                }
                claims.extend(self.reserve(&mut state, range));
            }
        }
        for claim in claims {
            self.spawn(claim, None);
        }
    }

    /// What a reader finds. Unless it is withheld from him, what he will need next is claimed before he looks, and
    /// brought after: a claim that fails at once has been seen by whoever made it. `awaited`: a claim he waited for; if
    /// it has failed, that is his answer, and it is not made again. Claims are given back under the same lock, so none fails
    /// between the two looks.
    fn look(self: &Arc<Self>, range: &Range<u64>, withheld: Withheld, awaited: Option<Failed>) -> View {
        let (claims, view) = {
            let mut state = self.flight.state();
            if withheld == Withheld::Nothing
                && state.whole.is_none()
                && let Some(error) = awaited.and_then(|failed| failed.get().cloned())
            {
                // A run that was stopped did not fail by itself.
                return View::Failed(state.grounded().unwrap_or(error));
            }
            let claims = match withheld {
                Withheld::Nothing => self.reserve(&mut state, range),
                Withheld::End | Withheld::All => Vec::new(),
            };
            (claims, state.view(range, withheld))
        };
        for claim in claims {
            self.spawn(claim, None);
        }
        view
    }

    fn reserve(&self, state: &mut State, range: &Range<u64>) -> Vec<u64> {
        if range.start >= range.end || state.is_over() {
            return Vec::new();
        }
        let size = self.flight.size();
        let window = if range.end == size { AHEAD_OPEN } else { AHEAD_RANGE };
        let start = range.start / UNIT * UNIT;
        let up = |at: u64| at.div_ceil(UNIT).saturating_mul(UNIT).min(size);
        let goal = up(range.end).min(up(range.start.saturating_add(window)));
        if state.whole.is_some() && !self.cut_in(state, start) {
            return Vec::new();
        }
        let taken = state.taken();
        let ahead = taken.end_from(range.start);
        // Half a window is left before more is asked for, so that requests are not of one unit each.
        if ahead >= up(range.end) || (ahead > range.start && (ahead - range.start) * 2 >= window) {
            return Vec::new();
        }
        let gaps = taken.gaps(&(start..goal));
        gaps.into_iter().map(|gap| state.claims.add(gap, false)).collect()
    }

    /// Whether `start` is to be fetched ahead of the fetch of the whole, which is cut there if it has it on its list.
    fn cut_in(&self, state: &mut State, start: u64) -> bool {
        if state.no_ranges || state.landed.end_from(start) > start {
            return false;
        }
        let head = state.landed.end_from(0);
        let (distance, elapsed) = match state.whole {
            Some(since) => (start.saturating_sub(head), since.elapsed()),
            None => return false,
        };
        let brought = head.saturating_sub(state.head_then) as f64 / elapsed.as_secs_f64().max(0.001);
        let soon = brought * FOLLOW_TIME.as_secs_f64();
        if distance <= FOLLOW || elapsed < JUDGE_AFTER || distance as f64 <= soon {
            return false;
        }
        match state.claims.of(start) {
            // Not into what is being written; and a part that is being brought ahead is left alone.
            Some(claim) if claim.of_whole && claim.at < start => {
                claim.range.end = start;
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    fn spawn(self: &Arc<Self>, claim: u64, body: Option<(BlobBody, FetchTurn)>) {
        let fetch = self.clone();
        let span = self
            .cause
            .of(tracing::error_span!(parent: None, "fetch part", request_id = Empty));
        let landed = async move {
            let mut guard = Guard(Some((fetch.clone(), claim)));
            let (body, permit) = match body {
                Some((body, permit)) => (Some(body), Ok(permit)),
                // A flight that has ended is not kept open by those who only wait for their turn.
                None => tokio::select! {
                    biased;
                    () = fetch.flight.stop.cancelled() => (None, Err(ReadError::Stopping)),
                    turn = fetch.errand.yard.range(fetch.errand.asker) => (None, turn),
                },
            };
            let brought = match &permit {
                Ok(_) => fetch.bring_claim(claim, body, Patience::Short).await,
                Err(error) => Err(error.clone()),
            };
            guard.0 = None;
            match (brought, permit) {
                (Ok(Brought::All), Ok(permit)) => {
                    fetch.flight.release(claim, None);
                    if fetch.flight.is_complete() {
                        // The last gap is closed: verify.
                        fetch.promote(None, permit);
                    }
                }
                // Ahead of a fetch of the whole, it was not worth it.
                (Ok(Brought::Whole(_)), _) if fetch.flight.is_whole() => {
                    fetch.flight.release(claim, Some(ReadError::Incomplete));
                }
                (Ok(Brought::Whole(body)), Ok(permit)) => fetch.promote_ignored(claim, body, permit),
                (Err(error), _) | (_, Err(error)) => {
                    if matches!(error, ReadError::Disk(_) | ReadError::DigestMismatch) {
                        fetch.flight.ground(error.clone());
                    }
                    fetch.flight.release(claim, Some(error));
                }
            }
        };
        self.errand.yard.tasks.spawn(landed.instrument(span));
    }
}

/// Gives the claim back should the run panic.
struct Guard(Option<(Arc<Fetch>, u64)>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some((fetch, claim)) = self.0.take() {
            fetch.flight.release(claim, Some(ReadError::Incomplete));
        }
    }
}
