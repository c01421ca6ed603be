//! How long a thread follows a blob that arrives.
//!
//! In: how much of the blob is here, each time its reader has to wait, and for how long it did. Out: whether to leave it for
//! later, and the waits' sum.
//! Invariant: nobody gives up what will be here soon at its pace, nor what nobody else wants the thread for. Only arriving
//! counts: a reader that is slow itself loses no patience.
//! Not here: what becomes of a blob that is left ([`super::conversion`]).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Looks within the longest time that the rest of a blob may take.
const LOOKS: u32 = 4;

/// Of one reader.
pub struct Patience {
    rest_max: Duration,
    /// Whether somebody else wants the thread.
    is_wanted: Box<dyn Fn() -> bool + Send>,
    /// The last look, and how much was here.
    looked: Instant,
    arrived: Option<u64>,
    lost: Arc<AtomicBool>,
    waited_nanos: Arc<AtomicU64>,
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience")
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

impl Patience {
    /// A blob is slow if its rest takes longer than `rest_max`.
    pub fn new(rest_max: Duration, is_wanted: impl Fn() -> bool + Send + 'static) -> Self {
        Self {
            rest_max,
            is_wanted: Box::new(is_wanted),
            looked: Instant::now(),
            arrived: None,
            lost: Arc::default(),
            waited_nanos: Arc::default(),
        }
    }

    /// Says, also when the reader is gone, whether it gave up.
    pub fn lost(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.lost)
    }

    /// Says, also when the reader is gone, for how long it waited for bytes to arrive.
    pub fn waited_nanos(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.waited_nanos)
    }

    /// Runs what waits for bytes to arrive.
    pub(super) fn wait<T>(&self, wait: impl FnOnce(Instant) -> T) -> T {
        let begun = Instant::now();
        let out = wait(self.until());
        self.waited_nanos
            .fetch_add(begun.elapsed().as_nanos() as u64, Ordering::Relaxed);
        out
    }

    /// When to look next.
    pub(super) fn until(&self) -> Instant {
        self.looked + self.rest_max / LOOKS
    }

    /// A look, when it is time for one: of `size` bytes so many are here. Whether to leave it.
    pub(super) fn is_over(&mut self, arrived: u64, size: u64) -> bool {
        let now = Instant::now();
        if now < self.until() {
            return false;
        }
        let passed = now - self.looked;
        // What was here when it began says nothing about the pace.
        let came = self.arrived.map_or(0, |before| arrived.saturating_sub(before));
        let is_first = self.arrived.is_none() && arrived > 0;
        (self.looked, self.arrived) = (now, Some(arrived));
        let missing = size.saturating_sub(arrived);
        let rest = passed.as_secs_f64() * missing as f64 / came as f64;
        let is_slow = missing > 0 && (came == 0 || rest > self.rest_max.as_secs_f64());
        let lost = is_slow && !is_first && (self.is_wanted)();
        self.lost.fetch_or(lost, Ordering::Relaxed);
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every look is due.
    fn patience(wanted: bool) -> Patience {
        let mut patience = Patience::new(Duration::from_secs(100), move || wanted);
        patience.arrived = Some(0);
        patience
    }

    fn after(patience: &mut Patience, secs: u64, arrived: u64, size: u64) -> bool {
        patience.looked = Instant::now() - Duration::from_secs(secs);
        patience.is_over(arrived, size)
    }

    #[test]
    fn what_comes_soon_is_waited_for_and_what_does_not_if_nobody_else_waits() {
        let mut one = patience(true);
        assert!(!after(&mut one, 10, 0, 1000), "it is not time yet");
        assert!(!after(&mut one, 30, 500, 1000));
        assert!(!after(&mut one, 30, 1000, 1000), "nothing is missing but the verdict");
        assert!(!one.lost().load(Ordering::Relaxed));
        // 30 seconds for 100 of 900.
        assert!(after(&mut patience(true), 30, 100, 1000));
        assert!(after(&mut patience(true), 30, 0, 1000));
        assert!(!after(&mut patience(false), 30, 0, 1000));
        let mut late = patience(true);
        late.arrived = None;
        assert!(!after(&mut late, 30, 10, 1000), "nobody knows how quickly that came");
        assert!(after(&mut late, 30, 10, 1000) && late.lost().load(Ordering::Relaxed));
    }
}
