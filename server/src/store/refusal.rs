//! How long a layer's refusal holds.
//!
//! In: what a conversion was given when it was refused, and what one would be given now. Out: whether to try again.
//! Invariant: a refusal that a limit had a part in does not outlive that limit: whoever raises one has the layer tried again,
//! once. Everything is on record with the refusal, so that a restart, and an index that is rebuilt, know it too.
//! Not here: why layers are refused (`ingest/error.rs`), and how their states are kept ([`super::layers`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A layer that took too long is tried again after this: by then the machine does other things, and the layer that would
/// always take too long costs one conversion's time a day.
const OVER_TIME_FOR: Duration = Duration::from_secs(24 * 3600);

/// What a conversion may take: all that an operator sets.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    pub time_max_ms: u64,
    pub bounds: Bounds,
}

/// Of this, what depends on the layer alone. A limit that a record does not name was 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bounds {
    pub tar_bytes: u64,
    pub ratio: u64,
    pub ratio_floor_bytes: u64,
    pub entries: u64,
    pub skeleton_bytes: u64,
    pub memory_bytes: u64,
    pub zstd_window_bytes: u64,
    pub chunks_bytes: u64,
}

impl Bounds {
    /// Whether any is wider than it was: which one a layer tripped, and how many more are behind it, nobody knows.
    fn are_wider_than(&self, then: &Self) -> bool {
        let all = |b: &Self| {
            [
                b.tar_bytes,
                b.ratio,
                b.ratio_floor_bytes,
                b.entries,
                b.skeleton_bytes,
                b.memory_bytes,
                b.zstd_window_bytes,
                b.chunks_bytes,
            ]
        };
        all(self).into_iter().zip(all(then)).any(|(now, then)| now > then)
    }
}

/// What a conversion that took too long was given, and when. That may have been for want of a machine with nothing else to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverTime {
    pub time_max_ms: u64,
    pub at_unix_ms: u64,
}

impl OverTime {
    fn may_be_tried_again(&self, time_max_ms: u64, now_ms: u64) -> bool {
        // A clock that went backwards is none to wait for.
        let passed = now_ms.checked_sub(self.at_unix_ms).map(Duration::from_millis);
        time_max_ms > self.time_max_ms || passed.is_none_or(|passed| passed >= OVER_TIME_FOR)
    }
}

/// What, apart from the layer, a refusal is due to. Nothing: it holds for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// It took too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_time: Option<OverTime>,
    /// It tripped one of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_bound: Option<Bounds>,
}

impl Terms {
    pub fn over_time(allowance: &Allowance, now_ms: u64) -> Self {
        Self {
            over_time: Some(OverTime {
                time_max_ms: allowance.time_max_ms,
                at_unix_ms: now_ms,
            }),
            over_bound: None,
        }
    }

    pub fn over_bound(allowance: &Allowance) -> Self {
        Self {
            over_time: None,
            over_bound: Some(allowance.bounds),
        }
    }

    pub fn hold(&self, allowance: &Allowance, now_ms: u64) -> bool {
        let over_time = self.over_time.as_ref();
        let over_bound = self.over_bound.as_ref();
        !over_time.is_some_and(|over| over.may_be_tried_again(allowance.time_max_ms, now_ms))
            && !over_bound.is_some_and(|then| allowance.bounds.are_wider_than(then))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 24 * 3600 * 1000;

    #[test]
    fn a_layer_that_took_too_long_is_tried_with_more_time_or_a_day_later() {
        let given = |time_max_ms| Allowance {
            time_max_ms,
            bounds: Bounds::default(),
        };
        let terms = Terms::over_time(&given(7000), 10 * DAY_MS);
        for (time_max_ms, now_ms, holds) in [
            (7000, 10 * DAY_MS, true),
            (6000, 11 * DAY_MS - 1, true),
            (7001, 10 * DAY_MS, false),
            (6000, 11 * DAY_MS, false),
            // The clock was wrong then, or is now.
            (7000, 10 * DAY_MS - 1, false),
        ] {
            assert_eq!(terms.hold(&given(time_max_ms), now_ms), holds, "{time_max_ms} {now_ms}");
        }
    }

    #[test]
    fn a_layer_over_a_bound_is_tried_when_any_of_them_is_wider() {
        let then = Bounds {
            tar_bytes: 1,
            ratio: 2,
            ratio_floor_bytes: 3,
            entries: 4,
            skeleton_bytes: 5,
            memory_bytes: 6,
            zstd_window_bytes: 7,
            chunks_bytes: 8,
        };
        let given = |bounds| Allowance { time_max_ms: 1, bounds };
        let terms = Terms::over_bound(&given(then));
        assert!(terms.hold(&given(then), 0));
        assert!(terms.hold(&given(Bounds { ratio: 1, ..then }), u64::MAX));
        // More time is no help, and not asked for.
        let longer = Allowance {
            time_max_ms: u64::MAX,
            bounds: then,
        };
        assert!(terms.hold(&longer, u64::MAX));
        for wider in [
            Bounds { tar_bytes: 2, ..then },
            Bounds { ratio: 3, ..then },
            Bounds {
                ratio_floor_bytes: 4,
                ..then
            },
            Bounds {
                entries: 5,
                tar_bytes: 0,
                ..then
            },
            Bounds {
                skeleton_bytes: 6,
                ..then
            },
            Bounds {
                memory_bytes: 7,
                ..then
            },
            Bounds {
                zstd_window_bytes: 8,
                ..then
            },
            Bounds {
                chunks_bytes: 9,
                ..then
            },
        ] {
            assert!(!terms.hold(&given(wider), 0), "{wider:?}");
        }
    }
}
