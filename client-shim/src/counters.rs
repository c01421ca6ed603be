//! What the lazy half of the node has done, as plain numbers.
//!
//! In: increments. Out: a snapshot for logs, tests and a later metrics endpoint.
//! Invariant: counts only grow; they are never used for decisions.
//! Not here: exporting them.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One of these a node.
#[derive(Debug, Default)]
pub struct Counters {
    /// Requests for chunks sent to servers.
    pub requests: Counter,
    /// Bytes of frames received.
    pub fetched_bytes: Counter,
    /// Frames that were not what their digest says.
    pub corrupt_chunks: Counter,
    /// Runs that ended without all their chunks.
    pub failed_runs: Counter,
    /// Questions of the kernel about the FUSE mount, of any kind.
    pub kernel_requests: Counter,
    /// Reads answered from the cache at once.
    pub read_hits: Counter,
    /// Reads that had to wait for a fetch.
    pub read_misses: Counter,
    /// Reads that ended in an error.
    pub read_errors: Counter,
}
