//! Spans of what readers wait for, as many as a collector bears.
//!
//! In: runs over the network that readers wait for. Out: a span, or none. Invariant: at most [`PER_SECOND`] spans a second, however
//! many runs there are, and before any sampling; a span says how many runs had none since the one before. A run without a
//! span costs a lock and a look at the clock; without telemetry, not even that.
//! Not here: the runs (`fetch/run.rs`), the share of traces that is sent (`trace_ratio`).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Span;

use super::STARTED;

/// A container's start has some ten runs in a second; a storm of misses has thousands, of which these tell enough.
const PER_SECOND: u32 = 20;
const SECOND: Duration = Duration::from_secs(1);

/// How many there were lately. One a node.
#[derive(Debug, Default)]
pub(super) struct Misses(Mutex<Lately>);

#[derive(Debug, Default)]
struct Lately {
    /// When the second began that is counted.
    since: Option<Instant>,
    spans: u32,
    without: u64,
}

/// A span of a run, made with the number of runs that had none; no span when there were enough.
pub(crate) fn miss(make: impl FnOnce(u64) -> Span) -> Span {
    let without = STARTED.get().and_then(|started| started.misses.admit(Instant::now()));
    without.map_or_else(Span::none, make)
}

impl Misses {
    fn admit(&self, now: Instant) -> Option<u64> {
        let mut lately = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_over = |since: Instant| now.saturating_duration_since(since) >= SECOND;
        if lately.since.is_none_or(is_over) {
            lately.since = Some(now);
            lately.spans = 0;
        }
        if lately.spans >= PER_SECOND {
            lately.without += 1;
            return None;
        }
        lately.spans += 1;
        Some(std::mem::take(&mut lately.without))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_misses_a_second_are_some_spans() {
        let (misses, begun) = (Misses::default(), Instant::now());
        let (mut spans, mut told) = (0, 0);
        for i in 0..30_000 {
            if let Some(without) = misses.admit(begun + Duration::from_micros(100) * i) {
                spans += 1;
                told += without;
            }
        }
        assert_eq!(spans, 3 * PER_SECOND);
        // What is left out at the end, the next span tells.
        let last = misses.admit(begun + Duration::from_secs(10)).unwrap();
        assert_eq!(told + last + u64::from(spans), 30_000);
        assert_eq!(misses.admit(begun + Duration::from_secs(10)), Some(0));
    }

    #[test]
    fn without_telemetry_no_span_is_even_made() {
        assert!(miss(|_| panic!("nobody wants it")).is_none());
    }
}
