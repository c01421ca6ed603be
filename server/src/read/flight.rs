//! A blob in flight: one sparse file, those who write parts of it, and any number of readers.
//!
//! In: bytes as runs bring them, and the outcome. Out: how far a reader may go, and what nobody fetches yet.
//! Invariant: what has landed never changes. Whoever reads *the whole* (in all but name) does not get the last
//! [`HOLD_BACK`](super::withheld::HOLD_BACK) bytes of a range until the digest has been verified, so no such answer is ever complete with bytes
//! that turn out wrong: the client sees a broken answer. A failed flight fails every reader at once. Readers never slow
//! the fetch or each other, and their leaving stops nothing that they share.
//!
//! The first bytes of a blob, if they came with the head of the answer, are given to readers before they are in the file
//! ([`Flight::early`]). Whoever compares the digest compares them with the file, too.
//!
//! What cannot be promised: a Range of a blob that is not here is answered as it arrives, and nothing can be said about
//! its bytes before the blob is whole. But the end of the blob is withheld from who reads just that, too, when all else is
//! here or on its way and not much ([`CLOSING`]): who fetches a wrong blob in parts does not get the last of them. The
//! client that puts the parts together compares the digest, and so do we as soon as the last part is here: a mismatch
//! throws all of them away. What one upstream sent unverified is never given
//! to a client of another (a flight is of one upstream).
//!
//! Not here: requests upstream ([`super::run`], [`super::whole`]), when a reader has something fetched
//! ([`super::demand`]), and reading of the file ([`super::blob`]).

use std::{
    fs::File,
    io,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::{Notify, futures::Notified};
use tokio_util::sync::CancellationToken;

use super::{
    claims::{Claims, Failed},
    error::ReadError,
    landed::Landed,
    withheld::Withheld,
};
use crate::{
    store::{facts::Source, partial::Partial, units::UNIT},
    upstream::Caller,
};

/// What may be missing of a blob for its end to be withheld from who reads just that: what a client that fetches parts at
/// once has under way. Readers of the end alone (of an index that lies there) would wait too long for more.
const CLOSING: u64 = 64 << 20;

/// The first bytes that are kept in memory, for who waits for them: a client has something to do with them while the
/// next ones are written.
pub const EARLY_MAX: usize = 16 << 10;

/// Parties of one flight whose cut answers are remembered. Clients with credentials of their own are one each; of more of them,
/// the others are cut once more.
const KEPT_WAITING_MAX: usize = 1024;

/// On whose behalf a blob is read, and of which repository.
pub type Party = (Source, Caller);

/// One blob in flight.
#[derive(Debug)]
pub struct Flight {
    partial: Partial,
    size: u64,
    early: Bytes,
    pub(super) state: Mutex<State>,
    /// Wakes readers and runs in tasks.
    notify: Notify,
    /// Wakes readers on threads.
    condvar: Condvar,
    /// Ends every run of this flight.
    pub stop: CancellationToken,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub landed: Landed,
    pub claims: Claims,
    /// Since when the whole of it is being fetched.
    pub whole: Option<Instant>,
    /// Bytes from the first on that were here then.
    pub head_then: u64,
    /// The upstream does not answer ranges, or not now: nothing is fetched ahead of the fetch of the whole.
    pub no_ranges: bool,
    /// Readers.
    pub aboard: usize,
    /// Whose clients have the head of their answer, and get no byte before the verdict.
    kept_waiting: Vec<Party>,
    size: u64,
    /// So many bytes of the blob's beginning need not be in the file to be read.
    early: u64,
    /// Nobody may board any more.
    pub closed: bool,
    /// Why no further byte will be written.
    grounded: Option<ReadError>,
    /// `Some(Ok)`: verified.
    outcome: Option<Result<(), ReadError>>,
    /// The files have their final name, or are gone, or are left for the next fetch.
    done: bool,
}

/// What a reader finds.
#[derive(Debug)]
pub enum View {
    /// It may read up to here.
    Upto(u64),
    Failed(ReadError),
    /// Somebody brings it, or the verdict.
    Awaited(Option<Failed>),
    /// Nobody is fetching it.
    Missing,
}

impl Flight {
    /// `early`: the first bytes of the blob, which are on their way into the file; at most [`EARLY_MAX`].
    pub fn new(partial: Partial, size: u64, early: Bytes, stop: CancellationToken) -> Self {
        let mut state = State {
            size,
            early: early.len() as u64,
            ..State::default()
        };
        partial
            .present()
            .iter()
            .for_each(|range| state.landed.insert(range.clone()));
        Self {
            partial,
            size,
            early,
            state: Mutex::new(state),
            notify: Notify::new(),
            condvar: Condvar::new(),
            stop,
        }
    }

    pub fn file(&self) -> &Arc<File> {
        self.partial.file()
    }

    /// The bytes of `range` that need not be in the file to be read. Empty when its first one has to be.
    pub fn early(&self, range: &Range<u64>) -> Bytes {
        let len = self.early.len() as u64;
        let end = range.end.min(len);
        match range.start < end {
            // Both are at most the length.
            true => self.early.slice(range.start as usize..end as usize),
            false => Bytes::new(),
        }
    }

    pub fn partial(&self) -> &Partial {
        &self.partial
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes the next bytes of a claim, as far as it goes and they are not here yet. Blocks for the disk.
    pub fn write(&self, claim: u64, bytes: &[u8]) -> io::Result<()> {
        let (range, gaps) = {
            let mut state = self.state();
            let Some(claim) = state.claims.get(claim) else {
                return Err(io::Error::other("nobody asked for these bytes"));
            };
            let range = claim.at..claim.range.end.min(claim.at.saturating_add(bytes.len() as u64));
            // Taken before it is written, so that the claim is not cut in the middle of it.
            claim.at = range.end;
            (range.clone(), state.landed.gaps(&range))
        };
        for gap in gaps {
            // Both are inside `bytes`.
            let (from, to) = (gap.start - range.start, gap.end - range.start);
            self.partial.write_at(&bytes[from as usize..to as usize], gap.start)?;
        }
        let complete: Vec<u64> = {
            let mut state = self.state();
            state.landed.insert(range.clone());
            let units = range.start / UNIT..range.end.div_ceil(UNIT);
            units.filter(|unit| state.landed.covers(&self.unit(*unit))).collect()
        };
        self.wake();
        complete.into_iter().try_for_each(|unit| self.partial.mark(unit))
    }

    fn unit(&self, unit: u64) -> Range<u64> {
        unit * UNIT..self.size.min((unit + 1) * UNIT)
    }

    /// What is left of a claim. `None`: it has been brought.
    pub fn left(&self, claim: u64) -> Option<Range<u64>> {
        let mut guard = self.state();
        let state = &mut *guard;
        let claim = state.claims.get(claim)?;
        // What is here from an earlier process is not asked for again.
        claim.at = state.landed.end_from(claim.at).min(claim.range.end);
        (claim.at < claim.range.end).then_some(claim.at..claim.range.end)
    }

    /// Whether a claim's holder has no more to write.
    pub fn is_brought(&self, claim: u64) -> bool {
        self.state().claims.get(claim).is_none_or(|c| c.at >= c.range.end)
    }

    /// Gives a claim back; why, if it was not brought.
    pub fn release(&self, claim: u64, failed: Option<ReadError>) {
        let mut state = self.state();
        if let Some(claim) = state.claims.remove(claim)
            && let Some(error) = failed
        {
            // Only the holder sets it, once.
            let _ = claim.failed.set(error);
            if state.whole.is_some() && !claim.of_whole {
                state.no_ranges = true;
                state.claims.heal(claim.range.start, self.size);
            }
        }
        drop(state);
        self.wake();
    }

    /// Whether every byte is here.
    pub fn is_complete(&self) -> bool {
        self.state().landed.covers(&(0..self.size))
    }

    pub fn is_whole(&self) -> bool {
        self.state().whole.is_some()
    }

    /// No further byte is to be written, because of this; the first reason counts.
    pub fn ground(&self, error: ReadError) {
        self.state().grounded.get_or_insert(error);
        self.stop.cancel();
        self.wake();
    }

    pub fn grounded(&self) -> Option<ReadError> {
        self.state().grounded()
    }

    /// Waits until nobody writes.
    pub async fn drained(&self) {
        self.until(|state| state.claims.is_empty()).await;
    }

    /// The fetch has ended; the first outcome counts.
    pub fn finish(&self, outcome: Result<(), ReadError>) {
        self.state().outcome.get_or_insert(outcome);
        self.wake();
    }

    /// The files are as they will be.
    pub fn leave(&self) {
        self.state().done = true;
        self.wake();
    }

    /// Waits until there are bytes, or none will come.
    pub async fn begun(&self) {
        self.until(|state| !state.landed.is_empty() || state.size == 0 || state.is_over() || state.done)
            .await;
    }

    /// Waits for that.
    pub async fn left_behind(&self) {
        self.until(|state| state.done).await;
    }

    pub fn has_failed(&self) -> bool {
        let state = self.state();
        state.closed || matches!(state.outcome, Some(Err(_)))
    }

    /// The head of an answer could wait no longer for the verdict, and its body does; unless the verdict has come.
    pub fn keep_waiting(&self, party: Party) -> Option<Result<(), ReadError>> {
        let mut state = self.state();
        if state.outcome.is_some() {
            return state.outcome.clone();
        }
        let waited = &mut state.kept_waiting;
        if waited.len() < KEPT_WAITING_MAX && !waited.contains(&party) {
            waited.push(party);
        }
        None
    }

    /// Who has such an answer: a wrong verdict cuts it.
    pub fn kept_waiting(&self) -> Vec<Party> {
        self.state().kept_waiting.clone()
    }

    /// What has cut the answer of one of these.
    pub fn has_cut(&self, is_theirs: impl Fn(&Party) -> bool) -> Option<ReadError> {
        let state = self.state();
        let was_cut = state.kept_waiting.iter().any(is_theirs);
        state.outcome.clone()?.err().filter(|_| was_cut)
    }

    /// How it ended, when it has.
    pub fn outcome(&self) -> Option<Result<(), ReadError>> {
        self.state().outcome.clone()
    }

    /// One reader more, unless it is too late.
    pub fn board(&self) -> bool {
        let mut state = self.state();
        if state.closed || matches!(state.outcome, Some(Err(_))) {
            return false;
        }
        state.aboard += 1;
        true
    }

    pub fn unboard(&self) {
        self.state().aboard -= 1;
    }

    /// Closes it if nobody reads and nobody fetches.
    pub fn close_if_idle(&self) -> bool {
        let mut state = self.state();
        if state.aboard == 0 && state.claims.is_empty() && state.whole.is_none() {
            state.closed = true;
        }
        state.closed
    }

    /// Waits, on a thread, until a reader of `range` may go on; for flights that fetch the whole. `None`: it may not, and
    /// it is `until`.
    pub fn readable_blocking(&self, range: &Range<u64>, until: Instant) -> Result<Option<u64>, ReadError> {
        let mut state = self.state();
        loop {
            match state.view(range, Withheld::End) {
                View::Upto(end) => return Ok(Some(end)),
                View::Failed(error) => return Err(error),
                View::Awaited(_) | View::Missing => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let waited = self.condvar.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Bytes that are here.
    pub fn arrived(&self) -> u64 {
        let gaps = self.state().landed.gaps(&(0..self.size));
        self.size - gaps.iter().map(|gap| gap.end - gap.start).sum::<u64>()
    }

    /// Waits, on a thread, until more than the first `at` bytes are here; up to where. `None`: no more will come.
    pub fn hashable_blocking(&self, at: u64) -> Option<u64> {
        let mut state = self.state();
        loop {
            let head = state.landed.end_from(0);
            if head > at || at >= self.size {
                return Some(head);
            }
            if state.grounded.is_some() {
                return None;
            }
            state = self.condvar.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Registered now, so that a wake-up between a look and the wait is not lost.
    pub fn changed(&self) -> Notified<'_> {
        self.notify.notified()
    }

    async fn until(&self, mut is_so: impl FnMut(&State) -> bool) {
        loop {
            let changed = self.changed();
            if is_so(&self.state()) {
                return;
            }
            changed.await;
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self) {
        self.notify.notify_waiters();
        self.condvar.notify_all();
    }
}

impl State {
    /// What a reader of `range` finds at its start. `withheld`: so much of the range is, before the verdict.
    pub(super) fn view(&mut self, range: &Range<u64>, withheld: Withheld) -> View {
        match &self.outcome {
            Some(Ok(())) => return View::Upto(range.end),
            Some(Err(error)) => return View::Failed(error.clone()),
            None => {}
        }
        let mut here = self.landed.end_from(range.start);
        if range.start < self.early {
            here = here.max(self.early);
        }
        let here = here.min(range.end);
        let limit = withheld.limit(range, here, || range.end == self.size && self.is_closing());
        if limit > range.start {
            return View::Upto(limit);
        }
        match self.claims.of(range.start) {
            _ if here > range.start || range.is_empty() => View::Awaited(None),
            Some(claim) => View::Awaited(Some(claim.failed.clone())),
            None if self.whole.is_some() => View::Awaited(None),
            None => View::Missing,
        }
    }

    /// Whether the verdict is near: what is missing is on its way, and not much. Who reads the end of the blob can wait for
    /// it then, and so do clients that fetch a blob in parts.
    fn is_closing(&self) -> bool {
        let gaps = self.landed.gaps(&(0..self.size));
        let missing: u64 = gaps.iter().map(|gap| gap.end - gap.start).sum();
        missing <= CLOSING && (self.whole.is_some() || self.taken().covers(&(0..self.size)))
    }

    /// Why no further byte will be written.
    pub fn grounded(&self) -> Option<ReadError> {
        self.grounded.clone()
    }

    /// Whether no claim may be made any more.
    pub fn is_over(&self) -> bool {
        self.outcome.is_some() || self.grounded.is_some() || self.closed
    }

    /// What is here or on its way.
    pub fn taken(&self) -> Landed {
        let mut taken = self.landed.clone();
        self.claims.ranges().for_each(|range| taken.insert(range.clone()));
        taken
    }
}

#[cfg(test)]
mod tests;
