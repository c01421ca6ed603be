//! A bounded rate of reading.
//!
//! In: bytes that were read. Out: how long to rest. Invariant: over any second or longer no more than the rate is read,
//! but for one record; time that was spent otherwise is not made up for.
//! Not here: resting itself, which a stop must be able to end.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Pace {
    bytes_per_sec: u64,
    due: Instant,
}

impl Pace {
    /// 0: no bound.
    pub fn new(bytes_per_sec: u64) -> Self {
        Self {
            bytes_per_sec,
            due: Instant::now(),
        }
    }

    /// After so many bytes. Rests that are not worth it add up.
    pub fn rest(&mut self, bytes: u64) -> Option<Duration> {
        const WORTH: Duration = Duration::from_millis(10);
        if self.bytes_per_sec == 0 {
            return None;
        }
        let now = Instant::now();
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_sec as f64);
        self.due = self.due.max(now) + takes;
        Some(self.due - now).filter(|rest| *rest >= WORTH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rests_add_up_to_the_rate_and_none_is_taken_without_one() {
        let mut pace = Pace::new(1000);
        let rest = pace.rest(5000).unwrap();
        assert!(
            rest > Duration::from_millis(4900) && rest <= Duration::from_secs(5),
            "{rest:?}"
        );
        // Nobody rested: the next one is later still.
        assert!(pace.rest(1000).unwrap() > Duration::from_millis(5900));
        assert_eq!(Pace::new(0).rest(u64::MAX), None);
        assert_eq!(Pace::new(1 << 30).rest(1), None);
    }
}
