//! What a storm does, how much, and until when.
//!
//! In: `[storm]` of the TOML file, flags over it. Out: a [`StormConfig`].
//! Invariant: every amount is bounded, so a storm ends. Not here: the flags ([`crate::cli`]).

use std::path::PathBuf;

use serde::Deserialize;

/// `[storm]`
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StormConfig {
    /// Base URL of the server (or of any registry, for comparison).
    pub server: String,
    /// `ns` that containerd would add; empty for none.
    pub ns: String,
    pub repository: String,
    /// Tag or digest.
    pub reference: String,
    /// Simulated nodes, all at once.
    pub nodes: usize,
    /// How often each node pulls.
    pub rounds: usize,
    /// Blobs that one node fetches at once; containerd's default is 3.
    pub blobs_at_once: usize,
    /// Fetch TOCs and some chunks instead of whole layers.
    pub lazy: bool,
    /// Share of each layer's chunks that a lazy node reads.
    pub lazy_fraction: f64,
    /// Longest wait for the conversion of the image.
    pub convert_wait_ms: u64,
    /// Longest silence of a server before a request counts as failed.
    pub idle_timeout_ms: u64,
    /// Chooses the chunks.
    pub seed: u64,
    /// Also write the report here.
    pub json: Option<PathBuf>,
}

impl Default for StormConfig {
    fn default() -> Self {
        Self {
            server: "http://127.0.0.1:5080".to_owned(),
            ns: String::new(),
            repository: "library/demo".to_owned(),
            reference: "latest".to_owned(),
            nodes: 8,
            rounds: 1,
            blobs_at_once: 3,
            lazy: false,
            lazy_fraction: 0.1,
            convert_wait_ms: 120_000,
            idle_timeout_ms: 30_000,
            seed: 1,
            json: None,
        }
    }
}

/// Nodes in one process: each has a connection pool and a few buffers.
pub const NODES_MAX: usize = 10_000;
/// Pulls per node.
pub const ROUNDS_MAX: usize = 1_000_000;
/// Blobs at once: more is no client's habit.
pub const BLOBS_AT_ONCE_MAX: usize = 64;

impl StormConfig {
    /// Rejects amounts that make no sense.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, n: usize, max: usize| match n {
            n if (1..=max).contains(&n) => Ok(()),
            n => Err(format!("{name} is {n}, not within 1 and {max}")),
        };
        within("nodes", self.nodes, NODES_MAX)?;
        within("rounds", self.rounds, ROUNDS_MAX)?;
        within("blobs_at_once", self.blobs_at_once, BLOBS_AT_ONCE_MAX)?;
        if !(0.0..=1.0).contains(&self.lazy_fraction) {
            return Err(format!("lazy_fraction is {}, not within 0 and 1", self.lazy_fraction));
        }
        Ok(())
    }
}
