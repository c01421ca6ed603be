//! Which server to ask first.
//!
//! In: outcomes of requests, and of the small questions between them. Out: whether a server is worth asking before the others.
//! Invariant: a server that failed is asked last, never left out: when all have failed, all are still tried. That a server answers
//! a small question takes nothing back of what requests have seen of it.
//! Not here: the small questions (`fetch/warm.rs`).

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// First penalty after a failure; doubles with each further one.
const PENALTY: Duration = Duration::from_millis(500);
/// Longest penalty: a server that is back is asked first again within this time.
pub(super) const PENALTY_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failures: u32,
    down_until: Option<Instant>,
    /// Nobody answered when nothing was wanted of it.
    unreached_until: Option<Instant>,
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

    /// It did not answer a small question; others are asked first until it does, or until then.
    pub(super) fn unreached(&self, until: Instant) {
        self.lock().unreached_until = Some(until);
    }

    /// It did. Whether it is any good for more, requests know.
    pub(super) fn reached(&self) {
        self.lock().unreached_until = None;
    }

    /// Zero for a server believed up; else the time until it is asked first again.
    pub(super) fn penalty(&self, now: Instant) -> Duration {
        let state = self.lock();
        match state.down_until.max(state.unreached_until) {
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

    #[test]
    fn a_small_answer_takes_back_what_a_small_silence_said_and_no_more() {
        let health = Health::default();
        let now = Instant::now();
        health.unreached(now + PENALTY_MAX);
        assert_eq!(health.penalty(now), PENALTY_MAX);
        health.reached();
        assert_eq!(health.penalty(now), Duration::ZERO);
        health.failed();
        health.reached();
        assert!(health.penalty(now) >= PENALTY, "it still fails at its work");
        health.unreached(now + PENALTY_MAX);
        health.succeeded();
        assert_eq!(health.penalty(now), Duration::ZERO, "a request knows better");
    }
}
