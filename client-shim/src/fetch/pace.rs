//! How far away the servers are, and how much is on the way from them at once.
//!
//! In: how long answers took, how fast bodies came. Out: a round trip, and the bytes that one carries. Invariant: a few numbers,
//! the latest ones; the quickest answer and the fastest body of those count, since what is slower waited for something else.
//! Not here: who fetches how much for that (`profile/explore.rs`).

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Answers and bodies remembered.
const LATEST: usize = 16;
/// Of a shorter body the time says little.
const BODY_MIN: u64 = 256 << 10;
/// Until one came, in bytes a second: 400 Mbit/s.
const RATE: u64 = 50 << 20;
/// Bounds of what one round trip is believed to carry.
const SPAN_MIN: u64 = 256 << 10;
const SPAN_MAX: u64 = 2 << 20;

#[derive(Debug, Default)]
pub struct Pace(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    answers: Latest<Duration>,
    rates: Latest<u64>,
}

#[derive(Debug)]
struct Latest<T> {
    values: [Option<T>; LATEST],
    next: usize,
}

impl<T: Copy> Default for Latest<T> {
    fn default() -> Self {
        Self {
            values: [None; LATEST],
            next: 0,
        }
    }
}

impl<T> Latest<T> {
    fn add(&mut self, value: T) {
        self.values[self.next % LATEST] = Some(value);
        self.next = (self.next + 1) % LATEST;
    }
}

impl Pace {
    /// An answer's head came so long after the question.
    pub(super) fn answered(&self, after: Duration) {
        self.lock().answers.add(after);
    }

    /// A body of `bytes` took so long.
    pub(super) fn brought(&self, bytes: u64, took: Duration) {
        if bytes >= BODY_MIN {
            let nanos = took.as_nanos().max(1);
            let rate = u128::from(bytes) * 1_000_000_000 / nanos;
            self.lock().rates.add(u64::try_from(rate).unwrap_or(u64::MAX));
        }
    }

    /// `None`: nothing was asked yet.
    pub fn round_trip(&self) -> Option<Duration> {
        self.lock().answers.values.iter().flatten().min().copied()
    }

    /// Bytes that come within a round trip, about.
    pub fn span(&self) -> u64 {
        let round_trip = self.round_trip().unwrap_or_default();
        let rate = self.lock().rates.values.iter().flatten().max().copied();
        let bytes = u128::from(rate.unwrap_or(RATE)) * round_trip.as_nanos() / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX).clamp(SPAN_MIN, SPAN_MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_answer_and_the_fastest_body_of_the_latest_count() {
        let ms = Duration::from_millis;
        let pace = Pace::default();
        assert_eq!((pace.round_trip(), pace.span()), (None, SPAN_MIN));
        [ms(80), ms(20), ms(3000)].into_iter().for_each(|a| pace.answered(a));
        assert_eq!(pace.round_trip(), Some(ms(20)));
        assert_eq!(pace.span(), RATE / 50);
        pace.brought(BODY_MIN - 1, ms(1000));
        assert_eq!(pace.span(), RATE / 50, "too short to tell");
        pace.brought(1_000_000, ms(1000));
        pace.brought(30_000_000, ms(1000));
        assert_eq!(pace.span(), 600_000);
        pace.brought(u64::MAX, Duration::ZERO);
        assert_eq!(pace.span(), SPAN_MAX);
        // What was long ago is forgotten.
        for _ in 0..LATEST {
            pace.answered(ms(50));
            pace.brought(20_000_000, ms(1000));
        }
        assert_eq!((pace.round_trip(), pace.span()), (Some(ms(50)), 1_000_000));
    }
}
