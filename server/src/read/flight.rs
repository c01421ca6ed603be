//! A blob in flight: one file being appended and hashed, and any number of readers that follow it.
//!
//! In: progress and outcome, from the one fetch. Out: how far a reader may go.
//! Invariant: until the digest has been verified, the last [`HOLD_BACK`] bytes of every range are withheld, so no
//! answer is ever complete with bytes that turn out wrong: the client sees a broken answer. A failed fetch fails
//! every reader at once. Readers never slow the fetch or each other, and their leaving stops nothing.
//! Not here: the fetch ([`super::fetch`]), and reading of the file ([`super::blobs`]).

use std::{
    fs::File,
    ops::Range,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::error::ReadError;

/// Bytes withheld from the end of a range until the digest is known to be right. One would do; a little more keeps a
/// client from believing that only its last packet was lost.
pub const HOLD_BACK: u64 = 64 << 10;

/// One blob in flight.
#[derive(Debug)]
pub struct Flight {
    file: Arc<File>,
    size: u64,
    state: Mutex<State>,
    /// Wakes readers in tasks.
    notify: Notify,
    /// Wakes readers on threads.
    condvar: Condvar,
}

#[derive(Debug)]
struct State {
    /// Bytes in the file.
    landed: u64,
    /// `Some(Ok)`: verified.
    outcome: Option<Result<(), ReadError>>,
}

impl Flight {
    pub fn new(file: Arc<File>, size: u64, landed: u64) -> Self {
        Self {
            file,
            size,
            state: Mutex::new(State { landed, outcome: None }),
            notify: Notify::new(),
            condvar: Condvar::new(),
        }
    }

    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// The fetch has this many bytes in the file now.
    pub fn land(&self, landed: u64) {
        self.state().landed = landed;
        self.wake();
    }

    /// The fetch has ended; the first outcome counts.
    pub fn finish(&self, outcome: Result<(), ReadError>) {
        self.state().outcome.get_or_insert(outcome);
        self.wake();
    }

    pub fn has_failed(&self) -> bool {
        matches!(self.state().outcome, Some(Err(_)))
    }

    /// Waits until a reader of `range` at `range.start` may go on; returns up to where.
    pub async fn readable(&self, range: &Range<u64>) -> Result<u64, ReadError> {
        loop {
            // Registered before the look, so that a wake-up in between is not lost.
            let notified = self.notify.notified();
            if let Some(progress) = self.progress(&self.state(), range) {
                return progress;
            }
            notified.await;
        }
    }

    /// The same, for a thread.
    pub fn readable_blocking(&self, range: &Range<u64>) -> Result<u64, ReadError> {
        let mut state = self.state();
        loop {
            if let Some(progress) = self.progress(&state, range) {
                return progress;
            }
            state = self.condvar.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until the whole blob is here and verified.
    pub async fn verified(&self) -> Result<(), ReadError> {
        // An empty range is readable only when the outcome is known.
        self.readable(&(self.size..self.size)).await.map(drop)
    }

    fn progress(&self, state: &State, range: &Range<u64>) -> Option<Result<u64, ReadError>> {
        match &state.outcome {
            Some(Ok(())) => Some(Ok(range.end)),
            Some(Err(error)) => Some(Err(error.clone())),
            None => {
                let limit = state.landed.min(range.end.saturating_sub(HOLD_BACK));
                (limit > range.start).then_some(Ok(limit))
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Both fields are written whole, so a panic elsewhere leaves nothing half.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.notify.notify_waiters();
        self.condvar.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 10 * HOLD_BACK;

    fn flight() -> Flight {
        Flight::new(Arc::new(tempfile::tempfile().unwrap()), SIZE, 0)
    }

    #[test]
    fn readers_go_as_far_as_the_bytes_but_not_into_the_tail() {
        let flight = flight();
        flight.land(100);
        assert_eq!(flight.readable_blocking(&(0..SIZE)).unwrap(), 100);
        flight.land(SIZE);
        assert_eq!(flight.readable_blocking(&(100..SIZE)).unwrap(), SIZE - HOLD_BACK);
        assert!(flight.progress(&flight.state(), &(SIZE - HOLD_BACK..SIZE)).is_none());
        // A range in the middle is not answered in full before the digest is known either.
        assert!(flight.progress(&flight.state(), &(0..HOLD_BACK)).is_none());
        flight.finish(Ok(()));
        assert_eq!(flight.readable_blocking(&(SIZE - HOLD_BACK..SIZE)).unwrap(), SIZE);
    }

    #[tokio::test]
    async fn a_failure_reaches_every_reader_even_with_bytes_left_to_read() {
        let flight = Arc::new(flight());
        flight.land(SIZE);
        let waiting = tokio::spawn({
            let flight = flight.clone();
            async move { flight.verified().await }
        });
        flight.finish(Err(ReadError::DigestMismatch));
        flight.finish(Ok(()));
        assert!(matches!(waiting.await.unwrap(), Err(ReadError::DigestMismatch)));
        assert!(matches!(
            flight.readable(&(0..SIZE)).await,
            Err(ReadError::DigestMismatch)
        ));
        assert!(flight.has_failed());
    }
}
