//! Bytes per second of one client, over all its answers.
//!
//! In: bytes as they are sent. Out: how long to wait before the next.
//! Invariant: over time no more than the rate, with at most a second's worth ahead of it.
//! Not here: whose pace it is ([`super::admission`]).

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// What may be sent ahead, in time.
const AHEAD: Duration = Duration::from_secs(1);

/// A rate, and how much of it is used up.
#[derive(Debug)]
pub struct Pace {
    bytes_per_sec: u64,
    /// When everything sent so far would be through at the rate.
    through: Mutex<Instant>,
}

impl Pace {
    pub fn new(bytes_per_sec: u64) -> Self {
        Self {
            bytes_per_sec: bytes_per_sec.max(1),
            through: Mutex::new(Instant::now()),
        }
    }

    /// These bytes are sent; when to send more, if not at once.
    pub fn send(&self, bytes: u64, now: Instant) -> Option<Instant> {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_sec as f64);
        let mut through = self.through.lock().unwrap_or_else(PoisonError::into_inner);
        *through = (*through).max(now) + takes;
        through.checked_sub(AHEAD).filter(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_ahead_and_the_rest_waits() {
        let pace = Pace::new(1000);
        let now = Instant::now();
        assert_eq!(pace.send(900, now), None);
        let at = pace.send(1100, now).unwrap();
        let waits = at - now;
        assert!(
            waits > Duration::from_millis(990) && waits <= Duration::from_secs(1),
            "{waits:?}"
        );
        let later = now + Duration::from_secs(60);
        assert_eq!(pace.send(1000, later), None);
        assert_eq!(pace.send(500, later), Some(later + Duration::from_millis(500)));
    }
}
