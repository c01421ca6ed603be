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
            identity: IdentityConfig::default(),
            original: OriginalConfig::default(),
        }
    }
}

impl FetchConfig {
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
