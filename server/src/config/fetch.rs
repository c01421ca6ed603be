//! `[fetch]`: bounds of the fetching side, for every upstream.
//!
//! In: a table of `server.toml`. Out: [`FetchConfig`].
//! Invariant: every wait and every size has a bound.
//! Not here: what differs from upstream to upstream ([`super::UpstreamConfig`]).

use serde::Deserialize;

/// Bounds of the fetching side.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchConfig {
    /// No upstream is ever asked; what is here is served.
    pub offline: bool,
    pub connect_timeout_ms: u64,
    /// From a request to the head of its answer. Below containerd's 30 s, so that our answer reaches it.
    pub header_timeout_ms: u64,
    /// An upstream body that brings no byte for this long is given up and resumed.
    pub idle_timeout_ms: u64,
    /// An upstream body slower than this, over `min_rate_window_ms`, is given up and resumed, too. 0: never.
    pub min_rate_bytes_per_sec: u64,
    pub min_rate_window_ms: u64,
    /// Tries of one blob in a row that bring no new byte.
    pub tries_max: u32,
    /// Blobs fetched from upstreams at once, each with a thread that writes; further ones wait. At most 256.
    pub blobs_max: usize,
    /// Largest blob that is fetched.
    pub blob_size_max: u64,
    /// Largest manifest. The distribution specification asks for at least 4 MiB.
    pub manifest_size_max: u64,
    /// A tag confirmed by the upstream less than this ago is answered without asking again. 0 asks every time.
    pub tag_fresh_ms: u64,
    /// What an upstream said it does not have is believed for this long (the same caller, the same thing). At most a
    /// minute: nothing tells us that it has appeared. 0 asks every time.
    pub negative_ttl_ms: u64,
    /// Lists of tags and of referrers are answered without asking again for this long.
    pub listing_ttl_ms: u64,
    /// A Range of a blob that is not here fetches only that from the upstream. Off: it follows a fetch of the whole.
    pub cold_range: bool,
    /// Such ranges fetched at once; further ones wait.
    pub ranges_max: usize,
    /// Connections for one large blob. More than 1 helps where an upstream limits each connection.
    pub parallel_ranges: usize,
    /// Blobs smaller than this are fetched over one connection.
    pub parallel_min_bytes: u64,
    /// Answers streamed from the upstream at once without being kept, while the disk is full.
    pub pass_through_max: usize,
    /// A fetch waits this long for its turn, then the client is told to come back. Below containerd's 30 s.
    pub turn_wait_ms: u64,
    /// Unfinished fetches that nobody has gone on with for this long are removed.
    pub partial_ttl_ms: u64,
}

/// Turns of any kind: what one process can have in hand at once.
const TURNS_MAX: usize = 65_536;
/// Connections for one blob.
const PARALLEL_MAX: usize = 64;
/// What its clients could still be waiting for.
const TURN_WAIT_MS_MAX: u64 = 600_000;

impl FetchConfig {
    /// What types cannot say.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        if !(1..=super::FETCHES_MAX).contains(&self.blobs_max) {
            return Err("blobs_max must be from 1 to 256");
        }
        if !(1..=TURNS_MAX).contains(&self.ranges_max) || !(1..=TURNS_MAX).contains(&self.pass_through_max) {
            return Err("ranges_max and pass_through_max must be from 1 to 65536");
        }
        if !(1..=PARALLEL_MAX).contains(&self.parallel_ranges) {
            return Err("parallel_ranges must be from 1 to 64");
        }
        if self.turn_wait_ms > TURN_WAIT_MS_MAX {
            return Err("turn_wait_ms must be at most 600000");
        }
        if self.min_rate_window_ms == 0 {
            return Err("min_rate_window_ms must be at least 1");
        }
        if self.negative_ttl_ms > 60_000 {
            return Err("negative_ttl_ms must be at most 60000");
        }
        if self.tries_max == 0 {
            return Err("tries_max must be at least 1");
        }
        Ok(())
    }
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            offline: false,
            connect_timeout_ms: 5_000,
            header_timeout_ms: 20_000,
            idle_timeout_ms: 30_000,
            min_rate_bytes_per_sec: 1024,
            min_rate_window_ms: 60_000,
            tries_max: 5,
            blobs_max: 64,
            blob_size_max: 256 << 30,
            manifest_size_max: 4 << 20,
            tag_fresh_ms: 0,
            negative_ttl_ms: 5_000,
            listing_ttl_ms: 10_000,
            cold_range: true,
            ranges_max: 128,
            parallel_ranges: 1,
            parallel_min_bytes: 64 << 20,
            pass_through_max: 64,
            turn_wait_ms: 15_000,
            partial_ttl_ms: 24 * 3_600_000,
        }
    }
}
