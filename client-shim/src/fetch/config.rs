//! How patient and how greedy the node is with its servers.
//!
//! In: the `[fetch]` table of shim.toml. Out: [`FetchConfig`]. Invariant: every value has a default that works.
//! Not here: the list of servers (the shim's own config), and the deadline of a read (`cache/config.rs`).

use std::time::Duration;

use serde::Deserialize;

use super::identity::IdentityConfig;
use super::original::OriginalConfig;

/// Bounds of every request to a server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchConfig {
    /// Time for TCP and TLS to a server. A LAN answers in a few ms; two tries must fit a read's deadline.
    pub connect_timeout_ms: u64,
    /// Time until a server's response headers, beyond any wait it was asked for.
    pub response_timeout_ms: u64,
    /// Longest silence within a body.
    pub idle_timeout_ms: u64,
    /// Bytes of frames and decompressed chunks held in memory at once, on the whole node.
    pub inflight_bytes_max: u64,
    /// Compressed bytes asked for in one Range. Larger runs are split, so that their parts flow in parallel.
    pub run_bytes_max: u64,
    /// Longest pause between two rounds over all servers while a reader waits.
    pub retry_pause_ms_max: u64,
    /// Longest time between two small questions that keep a connection open for the first pull; 0: none is kept. What it is
    /// set to should be below the idle times of our servers (120 s) and of what usually stands before them (60 s).
    pub keep_warm_ms: u64,
    /// Who the node is to its servers; nobody in particular without.
    pub identity: IdentityConfig,
    /// The last resort when no server has what a reader waits for.
    pub original: OriginalConfig,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 2_000,
            response_timeout_ms: 3_000,
            idle_timeout_ms: 3_000,
            inflight_bytes_max: 64 << 20,
            run_bytes_max: 2 << 20,
            retry_pause_ms_max: 500,
            keep_warm_ms: 0,
            identity: IdentityConfig::default(),
            original: OriginalConfig::default(),
        }
    }
}

/// What `keep_warm_ms` may be, but for 0: one question a second is plenty, and no server keeps a connection for longer.
const KEEP_WARM_MS: std::ops::RangeInclusive<u64> = 1_000..=3_600_000;
/// How long a client keeps what nobody uses: what reqwest does unless it is told.
const POOL_IDLE: Duration = Duration::from_secs(90);

impl FetchConfig {
    /// The key that is wrong, and why.
    pub(crate) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        match self.keep_warm_ms == 0 || KEEP_WARM_MS.contains(&self.keep_warm_ms) {
            true => Ok(()),
            false => Err(("fetch.keep_warm_ms", "must be 0, or from 1000 to 3600000")),
        }
    }

    /// `None`: no connection is kept.
    pub(super) fn keep_warm(&self) -> Option<Duration> {
        (self.keep_warm_ms > 0).then(|| Duration::from_millis(self.keep_warm_ms))
    }

    /// A connection that is kept warm is not closed in between by ourselves.
    pub(super) fn pool_idle(&self) -> Duration {
        let warm = self.keep_warm().unwrap_or_default();
        POOL_IDLE.max(warm.saturating_mul(2))
    }

    pub(super) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    pub(super) fn response_timeout(&self) -> Duration {
        Duration::from_millis(self.response_timeout_ms)
    }

    pub(super) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warm_connection_outlives_the_time_between_two_questions() {
        for (keep_warm_ms, idle) in [(0, 90), (20_000, 90), (60_000, 120), (3_600_000, 7_200)] {
            let config = FetchConfig {
                keep_warm_ms,
                ..FetchConfig::default()
            };
            assert_eq!(config.pool_idle(), Duration::from_secs(idle), "{keep_warm_ms}");
        }
    }
}
