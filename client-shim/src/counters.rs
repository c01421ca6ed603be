//! What the lazy half of the node has done, as plain numbers.
//!
//! In: increments. Out: a snapshot for logs, tests and [`crate::metrics`].
//! Invariant: counts only grow; they are never used for decisions.
//! Not here: exporting them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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

/// How long things took, in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One more than there are bounds: for what took longer than all of them.
    buckets: [AtomicU64; Histogram::BOUNDS_MS.len() + 1],
    /// 500 years fit.
    nanos: AtomicU64,
}

impl Histogram {
    /// From a read of the page cache to the longest time-out of anything here.
    pub const BOUNDS_MS: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];

    pub fn record(&self, took: Duration) {
        let bucket = Self::BOUNDS_MS.iter().position(|ms| took <= Duration::from_millis(*ms));
        self.buckets[bucket.unwrap_or(Self::BOUNDS_MS.len())].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// How many took at most each bound, and then all.
    pub fn cumulative(&self) -> [u64; Histogram::BOUNDS_MS.len() + 1] {
        let mut sum = 0;
        std::array::from_fn(|i| {
            sum += self.buckets[i].load(Ordering::Relaxed);
            sum
        })
    }

    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|b| b.load(Ordering::Relaxed)).sum()
    }

    pub fn seconds(&self) -> f64 {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).as_secs_f64()
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
    /// Those of them that waited for the disk on a thread of their own, because others waited behind them.
    pub reads_aside: Counter,
    /// Reads that had to wait for a fetch.
    pub read_misses: Counter,
    /// Bytes that went to the kernel in the one way and in the other.
    pub hit_bytes: Counter,
    pub miss_bytes: Counter,
    /// Reads that ended in an error.
    pub read_errors: Counter,
    /// How long reads waited for what was not here.
    pub miss_seconds: Histogram,
    /// Times a layer's original was fetched from a registry because no server had its chunks.
    pub original_rebuilds: Counter,
    /// Those that ended without all chunks.
    pub original_failures: Counter,
    /// Bytes of originals received.
    pub original_bytes: Counter,
    /// Chunks taken from another layer of this node, and their bytes.
    pub near_chunks: Counter,
    pub near_bytes: Counter,
    /// Bytes fetched by the background fill (also in `fetched_bytes`).
    pub fill_bytes: Counter,
    /// Streams of profiles begun.
    pub prefetch_streams: Counter,
    /// Bytes of frames that they brought (also in `fetched_bytes`), and of these, what demand had brought before.
    pub prefetch_bytes: Counter,
    pub prefetch_late_bytes: Counter,
    /// Bytes of frames asked for because they lie near reads of a start of which nothing is known (also in `fetched_bytes`).
    pub explored_bytes: Counter,
    /// Prefetches of images, by how they ended.
    pub prefetches_done: Counter,
    pub prefetches_stopped: Counter,
    pub prefetches_failed: Counter,
    /// Starts that a server was told of, that could not be told, and that there was nothing sure to tell of.
    pub traces_posted: Counter,
    pub traces_failed: Counter,
    pub traces_unsure: Counter,
    /// Layers whose bytes, all here, gave their DiffID.
    pub layers_verified: Counter,
    /// Layers whose bytes gave another although every chunk was right: the TOC lies. An alarm.
    pub layers_quarantined: Counter,
    /// Chunks that were not on this disk what they were when they were put there; fetched again.
    pub rotten_chunks: Counter,
    /// Trees of layers that were not on this disk what they were when they were put there; made again from their TOCs.
    pub damaged_trees: Counter,
    /// Bytes given back to the disk.
    pub evicted_bytes: Counter,
    /// Chunks that went to their reader without being kept, for want of room.
    pub unkept_chunks: Counter,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_bucket_of_its_bound_and_in_all_above() {
        let histogram = Histogram::default();
        for ms in [1, 2, 3, 10_000, 10_001] {
            histogram.record(Duration::from_millis(ms));
        }
        let cumulative = histogram.cumulative();
        assert_eq!(cumulative[..4], [1, 2, 3, 3]);
        assert_eq!((cumulative[12], cumulative[13], histogram.count()), (4, 5, 5));
        assert!((histogram.seconds() - 20.007).abs() < 1e-9);
    }
}
