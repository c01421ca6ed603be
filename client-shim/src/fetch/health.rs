//! Which server to ask first.
//!
//! In: outcomes of requests. Out: whether a server is worth asking before the others.
//! Invariant: a server that failed is asked last, never left out: when all have failed, all are still tried.
//! Not here: background probing; a node asks often enough that requests are the probe.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// First penalty after a failure; doubles with each further one.
const PENALTY: Duration = Duration::from_millis(500);
/// Longest penalty: a server that is back is asked first again within this time.
const PENALTY_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    down_until: Option<Instant>,
}

impl Health {
    pub(super) fn succeeded(&self) {
        *self.lock() = State::default();
    }

    pub(super) fn failed(&self) {
        let mut state = self.lock();
        let penalty = PENALTY.saturating_mul(1 << state.failures.min(10)).min(PENALTY_MAX);
        state.failures = state.failures.saturating_add(1);
        state.down_until = Some(Instant::now() + penalty);
    }

    /// Zero for a server believed up; else the time until it is asked first again.
    pub(super) fn penalty(&self, now: Instant) -> Duration {
        match self.lock().down_until {
            Some(until) => until.saturating_duration_since(now),
            None => Duration::ZERO,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_cost_a_growing_bounded_penalty_and_success_clears_it() {
        let health = Health::default();
        assert_eq!(health.penalty(Instant::now()), Duration::ZERO);
        let mut before = Duration::ZERO;
        for _ in 0..3 {
            let now = Instant::now();
            health.failed();
            let penalty = health.penalty(now);
            assert!(penalty > before);
            before = penalty;
        }
        for _ in 0..50 {
            health.failed();
        }
        assert!(health.penalty(Instant::now()) <= PENALTY_MAX);
        health.succeeded();
        assert_eq!(health.penalty(Instant::now()), Duration::ZERO);
    }
}
