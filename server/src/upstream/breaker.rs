//! A circuit breaker: an upstream that fails is left alone for a while.
//!
//! In: how requests ended. Out: whether the next one may be sent.
//! Invariant: while open nothing is sent; then one request at a time tries, and it alone decides. A try that ends
//! without a verdict (its client left) lets the next one try at once, so a breaker never stays open for want of a probe.
//! Not here: what counts as a failure ([`super::UpstreamError::is_failure`]).

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use super::UpstreamError;
use crate::{
    config::BreakerConfig,
    metrics::{
        Held, Metrics,
        names::{Count, Level},
    },
};

/// Clones share the state.
#[derive(Clone, Debug)]
pub(super) struct Breaker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    failures_max: u32,
    wait_min: Duration,
    wait_max: Duration,
    upstream: String,
    metrics: Metrics,
    state: Mutex<State>,
    /// Counts this one while it is open.
    shown: Mutex<Option<Held>>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed { failures: u32 },
    Open { until: Instant, wait: Duration },
    HalfOpen { wait: Duration },
}

/// Leave for one request. Dropped without a word it says nothing about the upstream.
#[derive(Debug)]
pub(super) struct Pass {
    breaker: Breaker,
    probe: bool,
}

impl Breaker {
    pub(super) fn new(config: &BreakerConfig, upstream: &str, metrics: &Metrics) -> Self {
        let wait_min = Duration::from_millis(config.open_ms);
        Self(Arc::new(Inner {
            failures_max: config.failures_max,
            wait_min,
            wait_max: Duration::from_millis(config.open_ms_max).max(wait_min),
            upstream: upstream.to_owned(),
            metrics: metrics.clone(),
            state: Mutex::new(State::Closed { failures: 0 }),
            shown: Mutex::new(None),
        }))
    }

    /// Leave to send a request now.
    pub(super) fn admit(&self) -> Result<Pass, UpstreamError> {
        let mut state = self.state();
        let now = Instant::now();
        let refuse = |left: Duration| {
            Err(UpstreamError::CircuitOpen {
                retry_after_secs: left.as_secs() + 1,
            })
        };
        let probe = match *state {
            State::Closed { .. } => false,
            State::Open { until, .. } if now < until => return refuse(until - now),
            // Somebody is trying; he will know soon.
            State::HalfOpen { .. } => return refuse(Duration::ZERO),
            State::Open { wait, .. } => {
                *state = State::HalfOpen { wait };
                true
            }
        };
        Ok(Pass {
            breaker: self.clone(),
            probe,
        })
    }

    pub(super) fn is_open(&self) -> bool {
        !matches!(*self.state(), State::Closed { .. })
    }

    /// A whole answer arrived.
    pub(super) fn succeeded(&self) {
        let mut state = self.state();
        let was_open = !matches!(*state, State::Closed { .. });
        *state = State::Closed { failures: 0 };
        drop(state);
        if was_open {
            tracing::info!(upstream = self.0.upstream, "the upstream answers again");
            self.show(None);
        }
    }

    /// Something failed outside of a [`Pass`]: a body broke off.
    pub(super) fn failed(&self) {
        let mut state = self.state();
        if let State::Closed { failures } = *state {
            let failures = failures.saturating_add(1);
            if self.0.failures_max == 0 || failures < self.0.failures_max {
                *state = State::Closed { failures };
            } else {
                self.open(&mut state, self.0.wait_min);
            }
        }
    }

    fn open(&self, state: &mut State, wait: Duration) {
        *state = State::Open {
            until: Instant::now() + wait,
            wait,
        };
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        tracing::warn!(
            upstream = self.0.upstream,
            wait_ms,
            "the upstream fails and is left alone"
        );
        self.0.metrics.add(Count::BreakerOpenings, 1, &[&self.0.upstream]);
        self.show(Some(self.0.metrics.hold(Level::BreakersOpen, &[&self.0.upstream])));
    }

    fn show(&self, open: Option<Held>) {
        *self.0.shown.lock().unwrap_or_else(|e| e.into_inner()) = open;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Pass {
    /// A proper answer arrived, whatever it said.
    pub(super) fn succeeded(mut self) {
        self.probe = false;
        self.breaker.succeeded();
    }

    /// The head of a body arrived; the body may still break off, so earlier failures are not forgotten yet.
    pub(super) fn alive(mut self) {
        self.probe = false;
        if self.breaker.is_open() {
            self.breaker.succeeded();
        }
    }

    pub(super) fn failed(mut self) {
        if !std::mem::take(&mut self.probe) {
            return self.breaker.failed();
        }
        let mut state = self.breaker.state();
        if let State::HalfOpen { wait } = *state {
            let wait = wait.saturating_mul(2).min(self.breaker.0.wait_max);
            self.breaker.open(&mut state, wait);
        }
    }
}

impl Pass {
    /// A request with a client's own credentials failed. The client may be why, and could shut the upstream for everybody;
    /// so it counts only where it was the one try that decides, for which there is a next one.
    pub(super) fn failed_for_a_client(self) {
        if self.probe {
            self.failed();
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if !self.probe {
            return;
        }
        let mut state = self.breaker.state();
        if let State::HalfOpen { wait } = *state {
            let until = Instant::now();
            *state = State::Open { until, wait };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaker(failures_max: u32, open_ms: u64) -> Breaker {
        let config = BreakerConfig {
            failures_max,
            open_ms,
            open_ms_max: open_ms * 4,
        };
        Breaker::new(&config, "u", &Metrics::new())
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let breaker = breaker(3, 60_000);
        for _ in 0..5 {
            breaker.admit().unwrap().failed();
            breaker.admit().unwrap().failed();
            breaker.admit().unwrap().succeeded();
        }
        for _ in 0..3 {
            breaker.admit().unwrap().failed();
        }
        assert_eq!(
            breaker.admit().unwrap_err(),
            UpstreamError::CircuitOpen { retry_after_secs: 60 }
        );
    }

    #[test]
    fn heads_of_bodies_that_break_do_not_hide_it() {
        let breaker = breaker(3, 60_000);
        for _ in 0..3 {
            breaker.admit().unwrap().alive();
            breaker.failed();
        }
        assert!(breaker.admit().is_err());
    }

    #[test]
    fn one_probe_decides_and_one_without_a_verdict_does_not_block() {
        let breaker = breaker(1, 0);
        breaker.admit().unwrap().failed();
        let probe = breaker.admit().unwrap();
        assert!(breaker.admit().is_err(), "one at a time");
        drop(probe);
        let probe = breaker.admit().unwrap();
        // What was sent before it opened does not speak for the probe.
        breaker.failed();
        assert!(breaker.admit().is_err());
        probe.failed();
        breaker.admit().unwrap().alive();
        assert!(!breaker.is_open());
    }

    #[test]
    fn failed_probes_double_the_wait_up_to_the_bound() {
        let breaker = breaker(1, 1);
        breaker.admit().unwrap().failed();
        for expected_ms in [2, 4, 4] {
            let probe = loop {
                match breaker.admit() {
                    Ok(probe) => break probe,
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            };
            probe.failed();
            let State::Open { wait, .. } = *breaker.state() else {
                panic!("open")
            };
            assert_eq!(wait, Duration::from_millis(expected_ms));
        }
    }

    #[test]
    fn clients_own_failures_do_not_open_it_and_do_not_close_it() {
        let breaker = breaker(1, 0);
        for _ in 0..5 {
            breaker.admit().unwrap().failed_for_a_client();
        }
        assert!(!breaker.is_open());
        breaker.admit().unwrap().failed();
        breaker.admit().unwrap().failed_for_a_client();
        assert!(breaker.is_open());
        let State::Open { .. } = *breaker.state() else {
            panic!("the next one may try")
        };
    }

    #[test]
    fn zero_is_never() {
        let breaker = breaker(0, 60_000);
        for _ in 0..100 {
            breaker.admit().unwrap().failed();
        }
        assert!(breaker.admit().is_ok());
    }
}
