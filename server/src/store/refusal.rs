//! How long a layer's refusal holds.
//!
//! In: what a conversion was given when it was refused, and what one would be given now. Out: whether to try again.
//! Invariant: a refusal that a limit had a part in does not outlive that limit: whoever raises it has the layer tried
//! again. The limit is on record with the refusal, so that a restart, and an index that is rebuilt, know it too.
//! Not here: why layers are refused (`ingest/error.rs`), and how their states are kept ([`super::layers`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A layer that took too long is tried again after this: by then the machine does other things, and one that would always
/// take too long costs one conversion's time a day.
const OVER_TIME_FOR: Duration = Duration::from_secs(24 * 3600);

/// What a conversion may take: all that an operator sets.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    pub time_max_ms: u64,
    pub bounds: Bounds,
}

/// Of this, what depends on the layer alone; on record, the limits that it was over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bounds {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tar_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio_floor_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skeleton_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zstd_window_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks_bytes: Option<u64>,
}

/// Which limit a layer is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    TarBytes,
    Ratio,
    Entries,
    SkeletonBytes,
    Memory,
    ZstdWindow,
    ChunksBytes,
    /// One of the format, which no configuration lifts.
    Format,
}

impl Bounds {
    /// Of these, those that a limit is made of; none, if nobody can raise it.
    fn of(&self, limit: Limit) -> Option<Self> {
        let none = Self::default();
        let some = match limit {
            Limit::TarBytes => Self {
                tar_bytes: self.tar_bytes,
                ..none
            },
            Limit::Ratio => Self {
                ratio: self.ratio,
                ratio_floor_bytes: self.ratio_floor_bytes,
                ..none
            },
            Limit::Entries => Self {
                entries: self.entries,
                ..none
            },
            Limit::SkeletonBytes => Self {
                skeleton_bytes: self.skeleton_bytes,
                ..none
            },
            Limit::Memory => Self {
                memory_bytes: self.memory_bytes,
                ..none
            },
            Limit::ZstdWindow => Self {
                zstd_window_bytes: self.zstd_window_bytes,
                ..none
            },
            Limit::ChunksBytes => Self {
                chunks_bytes: self.chunks_bytes,
                ..none
            },
            Limit::Format => return None,
        };
        Some(some)
    }

    /// Whether any that is on record is wider now.
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
        let pairs = all(self).into_iter().zip(all(then));
        pairs
            .filter_map(|(now, then)| now.zip(then))
            .any(|(now, then)| now > then)
    }
}

/// What a conversion that took too long was given, and when: the machine may have had too much else to do.
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// It took too long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_time: Option<OverTime>,
    /// It was over these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_bound: Option<Box<Bounds>>,
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

    pub fn over_bound(allowance: &Allowance, limit: Limit) -> Self {
        Self {
            over_time: None,
            over_bound: allowance.bounds.of(limit).map(Box::new),
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
    fn a_layer_over_a_limit_is_tried_when_that_one_is_raised() {
        let then = Bounds {
            tar_bytes: Some(10),
            ratio: Some(11),
            ratio_floor_bytes: Some(12),
            entries: Some(13),
            skeleton_bytes: Some(14),
            memory_bytes: Some(15),
            zstd_window_bytes: Some(16),
            chunks_bytes: Some(17),
        };
        let given = |bounds| Allowance { time_max_ms: 1, bounds };
        let raised = [
            (
                Limit::TarBytes,
                Bounds {
                    tar_bytes: Some(100),
                    ..then
                },
            ),
            (
                Limit::Ratio,
                Bounds {
                    ratio: Some(100),
                    ..then
                },
            ),
            (
                Limit::Ratio,
                Bounds {
                    ratio_floor_bytes: Some(100),
                    ..then
                },
            ),
            (
                Limit::Entries,
                Bounds {
                    entries: Some(100),
                    ..then
                },
            ),
            (
                Limit::SkeletonBytes,
                Bounds {
                    skeleton_bytes: Some(100),
                    ..then
                },
            ),
            (
                Limit::Memory,
                Bounds {
                    memory_bytes: Some(100),
                    ..then
                },
            ),
            (
                Limit::ZstdWindow,
                Bounds {
                    zstd_window_bytes: Some(100),
                    ..then
                },
            ),
            (
                Limit::ChunksBytes,
                Bounds {
                    chunks_bytes: Some(100),
                    ..then
                },
            ),
        ];
        for (limit, _) in &raised {
            let terms = Terms::over_bound(&given(then), *limit);
            assert!(terms.hold(&given(then), u64::MAX), "{limit:?}");
            for (other, wider) in &raised {
                assert_eq!(terms.hold(&given(*wider), 0), other != limit, "{limit:?} and {other:?}");
            }
            // More time is no help, and not asked for.
            let longer = Allowance {
                time_max_ms: u64::MAX,
                bounds: then,
            };
            assert!(terms.hold(&longer, u64::MAX), "{limit:?}");
            let narrower = Bounds::default().of(*limit).unwrap();
            assert!(terms.hold(&given(narrower), 0), "{limit:?}");
        }
        assert_eq!(Terms::over_bound(&given(then), Limit::Format), Terms::default());
    }
}
