//! How far this node follows profiles, and whether it teaches them.
//!
//! In: the `[prefetch]` table of shim.toml. Out: [`PrefetchConfig`]. Invariant: every value has a default that works; what a
//! wrong profile can cost is bounded by these numbers alone.
//! Not here: the server's own bounds (its `[profile]`).

use std::time::Duration;

use serde::Deserialize;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrefetchConfig {
    /// Whether what earlier starts of an image read is fetched before this one reads it.
    pub enabled: bool,
    /// Compressed bytes fetched ahead for one image, at most.
    pub bytes_max: u64,
    /// And at most this part of the image's compressed bytes, but `bytes_floor` in any case.
    pub image_percent_max: u32,
    pub bytes_floor: u64,
    /// Images for which that goes on at once; others wait in line.
    pub streams_max: usize,
    /// Time for one image.
    pub time_max_ms: u64,
    /// Whether what lies near the reads of a start is fetched too if nothing is known of its image, and the round trip to the
    /// servers from which on: nearer ones answer each miss sooner than its surroundings would come.
    pub explore: bool,
    pub explore_rtt_us_min: u64,
    /// Whether the servers are told what starts read.
    pub traces: bool,
    /// A start is over when so long nothing was needed for the first time,
    pub trace_quiet_ms: u64,
    /// and after this in any case.
    pub trace_max_ms: u64,
    /// How often one image's starts are told of, at most.
    pub trace_interval_ms: u64,
}

impl Default for PrefetchConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            bytes_max: 512 << 20,
            image_percent_max: 60,
            bytes_floor: 16 << 20,
            streams_max: 8,
            time_max_ms: 60_000,
            explore: true,
            explore_rtt_us_min: 8_000,
            traces: true,
            trace_quiet_ms: 5_000,
            trace_max_ms: 30_000,
            trace_interval_ms: 3_600_000,
        }
    }
}

impl PrefetchConfig {
    /// Compressed bytes that an image of this many may cost.
    pub(super) fn allowance(&self, image_bytes: u64) -> u64 {
        let share = u128::from(image_bytes) * u128::from(self.image_percent_max.min(100)) / 100;
        u64::try_from(share)
            .unwrap_or(u64::MAX)
            .max(self.bytes_floor)
            .min(self.bytes_max)
    }

    pub(super) fn explore_rtt_min(&self) -> Duration {
        Duration::from_micros(self.explore_rtt_us_min)
    }

    pub(super) fn time_max(&self) -> Duration {
        Duration::from_millis(self.time_max_ms)
    }

    pub(super) fn quiet(&self) -> Duration {
        // Zero would end a start before it began.
        Duration::from_millis(self.trace_quiet_ms.max(10))
    }

    pub(super) fn trace_max(&self) -> Duration {
        Duration::from_millis(self.trace_max_ms)
    }

    pub(super) fn trace_interval(&self) -> Duration {
        Duration::from_millis(self.trace_interval_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_costs_no_more_than_its_share_and_the_bound() {
        let config = PrefetchConfig {
            bytes_max: 1000,
            image_percent_max: 50,
            bytes_floor: 100,
            ..PrefetchConfig::default()
        };
        let allowed = [0, 150, 400, 5000, u64::MAX].map(|bytes| config.allowance(bytes));
        assert_eq!(allowed, [100, 100, 200, 1000, 1000]);
    }
}
