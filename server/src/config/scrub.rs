//! `[scrub]`: how often everything that is kept is read again, and how fast.
//!
//! In: a table of `server.toml`. Out: [`ScrubConfig`]. Invariant: the defaults read a terabyte within a week and cost a
//! fraction of a disk.
//! Not here: scrubbing itself ([`crate::scrub`]).

use serde::Deserialize;

/// Scrubbing.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScrubConfig {
    /// From the end of one pass over everything to the beginning of the next. 0: only when the operator asks for it.
    pub interval_ms: u64,
    /// Bytes read in a second. 0: no limit.
    pub bytes_per_sec: u64,
    /// Bytes of damaged files that are kept for a look. 0: none.
    pub quarantine_bytes_max: u64,
}

impl Default for ScrubConfig {
    fn default() -> Self {
        Self {
            interval_ms: 7 * 24 * 3_600_000,
            bytes_per_sec: 8 << 20,
            quarantine_bytes_max: 1 << 30,
        }
    }
}
