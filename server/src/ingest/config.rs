//! Budgets of a conversion: the `[ingest]` table of `server.toml`.
//!
//! In: TOML. Out: [`IngestConfig`], and what of it a refusal is measured by ([`Allowance`]).
//! Invariant: hostile input trips one of these before it costs more than it names.
//! Not here: bounds of the format itself (`headstart_layer_format::limits`), which no configuration can lift.

use std::sync::Arc;

use headstart_layer_format::limits::{ENTRIES_MAX, SKELETON_SIZE_MAX};
use serde::Deserialize;

use super::memory::MemoryPool;
use crate::store::refusal::{Allowance, Bounds};

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestConfig {
    /// Whether layers are converted. Without, the server is a plain mirror: what was converted before is served on.
    pub enabled: bool,
    /// Layers converted at the same time. They share their threads, and half as many as there are cores are decompressed at a
    /// time, so more of them help only while upstreams are slow.
    pub workers: usize,
    /// Threads that hash and compress chunks, for all layers together. 0: one a core, at most 16.
    pub compress_threads: usize,
    /// Niceness (0 to 19) of the converting threads: while cores are busy, serving goes first, so that a pull through a
    /// mirror that converts is not slower than one that does not. An idle core converts at full speed.
    pub niceness: u8,
    /// zstd level of chunk frames. 3, with tables of our own (`ingest/frame.rs`), compresses some 400 MB/s a core; 9 saves about 6% and takes five times as long.
    pub zstd_level: i32,
    /// Layers waiting for a worker; further ones wait for a later request.
    pub queue_max: usize,
    /// Uncompressed bytes of one layer. Some model images have layers of 20 GB.
    pub tar_bytes_max: u64,
    /// Uncompressed bytes for each compressed one, counted once a layer is over `ratio_floor_bytes`. Real layers stay
    /// below 20; gzip cannot exceed 1032.
    pub ratio_max: u64,
    /// Below this a high ratio is harmless.
    pub ratio_floor_bytes: u64,
    /// Members of one tar.
    pub entries_max: u64,
    /// Tar bytes that are not file bodies.
    pub skeleton_bytes_max: u64,
    /// Memory that all conversions together may take for what grows with a layer's contents: a name costs some 300 bytes,
    /// so the default is enough for a layer of 500,000 files. A layer that needs more than all of it stays an ordinary
    /// blob; one that finds too little left waits until another has ended.
    pub memory_bytes_max: u64,
    /// Of this, for the window of a zstd layer's decoder; a layer with a larger one stays an ordinary blob. zstd's levels up to 19 and the builders' own
    /// stay within 32 MiB; `--long` and `--ultra` may need 128 MiB.
    pub zstd_window_bytes_max: u64,
    /// What of `memory_bytes_max` is in use, by all that work with this configuration.
    #[serde(skip)]
    pub memory: Arc<MemoryPool>,
    /// A layer whose rest would take longer than this to come, at the pace of its upstream, makes room for others that wait
    /// for a thread; it is converted when all of its blob is here.
    pub slow_after_ms: u64,
    /// Wall time of one conversion, which includes waiting for the upstream. A layer that takes longer, the upstream's doing
    /// aside, stays an ordinary blob, and is tried again a day later, or when there is more time.
    pub time_max_ms: u64,
    /// First pause after a failed conversion; doubles with each further failure, up to 64 times this.
    pub retry_after_ms: u64,
}

impl IngestConfig {
    /// What a conversion is given, for whoever is refused. `chunks_bytes_max`: the store's budget.
    pub fn allowance(&self, chunks_bytes_max: u64) -> Allowance {
        Allowance {
            time_max_ms: self.time_max_ms,
            bounds: Bounds {
                tar_bytes: Some(self.tar_bytes_max),
                ratio: Some(self.ratio_max),
                ratio_floor_bytes: Some(self.ratio_floor_bytes),
                entries: Some(self.entries_max.min(ENTRIES_MAX)),
                skeleton_bytes: Some(self.skeleton_bytes_max.min(SKELETON_SIZE_MAX)),
                // What a layer has of it: all but what a decoder's window may take.
                memory_bytes: Some(self.memory_bytes_max.saturating_sub(self.zstd_window_bytes_max)),
                zstd_window_bytes: Some(self.zstd_window_bytes_max),
                chunks_bytes: Some(chunks_bytes_max),
            },
        }
    }
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            workers: 4,
            compress_threads: 0,
            niceness: 19,
            zstd_level: 3,
            queue_max: 4096,
            tar_bytes_max: 64 << 30,
            ratio_max: 200,
            ratio_floor_bytes: 256 << 20,
            entries_max: 1_000_000,
            skeleton_bytes_max: 1 << 30,
            memory_bytes_max: 192 << 20,
            zstd_window_bytes_max: 32 << 20,
            memory: Arc::new(MemoryPool::new()),
            slow_after_ms: 20_000,
            time_max_ms: 2 * 3600 * 1000,
            retry_after_ms: 2000,
        }
    }
}
