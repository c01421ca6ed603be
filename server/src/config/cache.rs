//! `[cache]`: how much is kept, and for how long.
//!
//! In: a table of `server.toml`. Out: [`CacheConfig`], and [`Budgets`] once the file system is known.
//! Invariant: originals and chunks have budgets of their own; 0 means "no limit", leaving a key out means a share of
//! the file system, so that a server nobody configured neither fills the disk nor keeps nothing.
//! Not here: eviction itself ([`crate::reclaim`]).

use std::{io, path::Path};

use serde::Deserialize;

/// Share of the file system for each kind when nothing is configured: together 80%, and room for what is in flight.
const SHARE_PERCENT: u64 = 40;
/// Kept free when nothing is configured: 1%, but not more than this.
const FREE_BYTES_DEFAULT_MAX: u64 = 1 << 30;
/// Packs of a chunk budget: with eight, reclaiming one frees an eighth.
const PACKS_PER_BUDGET: u64 = 8;
/// Smaller packs would be more files than use.
const PACK_SIZE_MIN: u64 = 64 << 10;

/// Budgets of what is kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Bytes of original blobs and manifests, unfinished fetches included. 0: no limit. Left out: 40% of the file system.
    pub originals_bytes_max: Option<u64>,
    /// Bytes of packs: chunks, TOCs, and facts, which have an eighth of it. 0: no limit. Left out: 40% of the file system.
    pub chunks_bytes_max: Option<u64>,
    /// Bytes of the file system that stay free, whatever the budgets say. 0: none. Left out: 1%, at most 1 GiB.
    pub free_bytes_min: Option<u64>,
    /// Blobs that nobody used for this long go. 0: never.
    pub originals_ttl_ms: u64,
    /// Manifests that nobody used for this long go. 0: never. They are small, and a tag cannot be served offline
    /// without its manifest, so the byte budget touches them last.
    pub manifests_ttl_ms: u64,
    /// Converted layers that nobody used for this long go. 0: never.
    pub chunks_ttl_ms: u64,
    /// Layers that cannot be converted: of so many, at least, it is remembered why, and they are not tried again. Some 200
    /// bytes each.
    pub refusals_max: u64,
    /// How often it is looked whether the index is larger than its rows need.
    #[serde(skip)]
    pub index_look_ms: u64,
    /// What it may have beside its rows.
    #[serde(skip)]
    pub index_spare_bytes: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            originals_bytes_max: None,
            chunks_bytes_max: None,
            free_bytes_min: None,
            originals_ttl_ms: 0,
            manifests_ttl_ms: 0,
            chunks_ttl_ms: 0,
            refusals_max: 65_536,
            index_look_ms: 600_000,
            index_spare_bytes: crate::store::INDEX_SPARE_BYTES,
        }
    }
}

/// The configuration, with shares turned into bytes.
#[derive(Clone, Debug)]
pub struct Budgets {
    /// `u64::MAX`: no limit.
    pub originals_bytes_max: u64,
    /// `u64::MAX`: no limit.
    pub chunks_bytes_max: u64,
    pub free_bytes_min: u64,
    pub originals_ttl_ms: Option<u64>,
    pub manifests_ttl_ms: Option<u64>,
    pub chunks_ttl_ms: Option<u64>,
    pub refusals_max: u64,
    pub index_look_ms: u64,
    pub index_spare_bytes: u64,
}

impl CacheConfig {
    /// Asks the file system that holds `data_dir` for its size.
    pub fn budgets(&self, data_dir: &Path) -> io::Result<Budgets> {
        let stat = rustix::fs::statvfs(data_dir)?;
        Ok(self.budgets_of(stat.f_blocks.saturating_mul(stat.f_frsize)))
    }

    fn budgets_of(&self, file_system_bytes: u64) -> Budgets {
        let share = file_system_bytes / 100;
        let bytes = |configured: Option<u64>| match configured {
            Some(0) => u64::MAX,
            Some(bytes) => bytes,
            None => share * SHARE_PERCENT,
        };
        let ttl = |ms: u64| (ms > 0).then_some(ms);
        Budgets {
            originals_bytes_max: bytes(self.originals_bytes_max),
            chunks_bytes_max: bytes(self.chunks_bytes_max),
            free_bytes_min: self.free_bytes_min.unwrap_or(share.min(FREE_BYTES_DEFAULT_MAX)),
            originals_ttl_ms: ttl(self.originals_ttl_ms),
            manifests_ttl_ms: ttl(self.manifests_ttl_ms),
            chunks_ttl_ms: ttl(self.chunks_ttl_ms),
            refusals_max: self.refusals_max,
            index_look_ms: self.index_look_ms,
            index_spare_bytes: self.index_spare_bytes,
        }
    }
}

impl Budgets {
    /// The size at which packs are rolled: small enough that one of them is a small part of the budget.
    pub fn pack_size_max(&self) -> u64 {
        (self.chunks_bytes_max / PACKS_PER_BUDGET).clamp(PACK_SIZE_MIN, crate::store::PACK_SIZE_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn left_out_is_a_share_and_zero_is_no_limit() {
        let budgets = CacheConfig::default().budgets_of(1000 << 30);
        assert_eq!(budgets.originals_bytes_max, (10 * SHARE_PERCENT) << 30);
        assert_eq!(budgets.free_bytes_min, 1 << 30);
        assert_eq!(budgets.pack_size_max(), 1 << 30);
        let small = CacheConfig {
            originals_bytes_max: Some(0),
            chunks_bytes_max: Some(80 << 20),
            chunks_ttl_ms: 5,
            ..CacheConfig::default()
        };
        let budgets = small.budgets_of(1000 << 30);
        assert_eq!(budgets.originals_bytes_max, u64::MAX);
        assert_eq!(budgets.pack_size_max(), 10 << 20);
        assert_eq!((budgets.chunks_ttl_ms, budgets.originals_ttl_ms), (Some(5), None));
    }
}
