//! Whether there is room for another chunk.
//!
//! In: bytes written, what layers take (`cache/evict.rs` counts them from time to time). Out: keep a chunk or not, fill or not,
//! lend a layer to the kernel or not.
//! Invariant: what is kept never takes the disk below its floor and never grows past the cap, but for what the filesystem itself
//! needs for it between two counts; a chunk that is not kept still reaches its reader (`cache/transit.rs`). Not here: what goes when there is no room (`cache/evict.rs`).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::chunk_index::ChunkIndex;
use super::config::LazyConfig;
use super::transit::Transit;
use crate::counters::Counters;

/// How long a look at the disk is believed, and for how many bytes written.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const LOOK_BYTES: u64 = 16 << 20;
/// Parts in a hundred of the cap: above the first something goes, down to the second; filling stops between them.
const HIGH: u64 = 95;
const LOW: u64 = 85;
const FILL: u64 = 90;
/// What layers that are lent may take together: none of it can go. So of what eviction leaves ([`LOW`]) a quarter of the cap is
/// still of all the others, and most of a node's layers, if they fit at all, are read without us.
const LENT: u64 = 60;

/// What the layers of a node share. One a cache directory.
#[derive(Debug)]
pub struct Room {
    dir: PathBuf,
    cache_bytes_max: u64,
    free_bytes_min: u64,
    /// Bytes that layers take: counted, and written since.
    used: AtomicU64,
    /// Bytes that are being written: whoever asks for room meanwhile counts them too.
    reserved: AtomicU64,
    /// Bytes of layers that the kernel reads by itself.
    lent: AtomicU64,
    free: Mutex<Free>,
    /// Something must go.
    tight: Notify,
    pub(super) transit: Transit,
    pub(super) index: ChunkIndex,
    /// Files of this filesystem can share blocks.
    pub(super) shares_blocks: bool,
    pub(super) counters: Arc<Counters>,
}

#[derive(Debug)]
struct Free {
    bytes: u64,
    looked: Option<Instant>,
    written: u64,
}

impl Room {
    pub fn new(dir: &Path, config: &LazyConfig, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            dir: dir.to_owned(),
            cache_bytes_max: config.cache_bytes_max,
            free_bytes_min: config.free_bytes_min,
            used: AtomicU64::new(0),
            reserved: AtomicU64::new(0),
            lent: AtomicU64::new(0),
            free: Mutex::new(Free {
                bytes: 0,
                looked: None,
                written: 0,
            }),
            tight: Notify::new(),
            transit: Transit::new(config.transit_bytes_max),
            index: ChunkIndex::new(config.index_chunks_max),
            shares_blocks: can_share(dir),
            counters,
        })
    }

    /// A place for a chunk that is to be written, if there is one.
    pub(super) fn admit(&self, len: u64) -> Option<Place<'_>> {
        let reserved = self.reserved.fetch_add(len, Ordering::AcqRel).saturating_add(len);
        let place = Place { room: self, len };
        // In this order: what became used since then is counted twice and not left out.
        let used = self.used.load(Ordering::Acquire).saturating_add(reserved);
        if self.cache_bytes_max > 0 && used > percent(self.cache_bytes_max, HIGH) {
            self.tight.notify_one();
        }
        let within_cap = self.cache_bytes_max == 0 || used <= self.cache_bytes_max;
        let above_floor = self.leaves(len, self.free_bytes_min);
        if !above_floor {
            self.tight.notify_one();
        }
        (within_cap && above_floor).then_some(place)
    }

    /// Whether the disk has room for a file beside the chunks, and the floor besides.
    pub(crate) fn may_keep(&self, len: u64) -> bool {
        self.leaves(len, self.free_bytes_min)
    }

    /// Whether there is room for what nobody has asked for.
    pub fn may_fill(&self, len: u64) -> bool {
        let used = self.used.load(Ordering::Relaxed).saturating_add(len);
        let within_cap = self.cache_bytes_max == 0 || used <= percent(self.cache_bytes_max, FILL);
        // Twice the floor: filling must not be what brings a node to it.
        within_cap && self.leaves(len, self.free_bytes_min.saturating_mul(2).max(LOOK_BYTES))
    }

    /// How far ahead of a reader to fetch who should have `bytes`: no further than what can be kept.
    pub fn ahead(&self, bytes: u64) -> u64 {
        let used = self.used.load(Ordering::Relaxed).saturating_add(bytes);
        let within_cap = self.cache_bytes_max == 0 || used <= self.cache_bytes_max;
        match within_cap && self.leaves(bytes, self.free_bytes_min) {
            true => bytes,
            false => bytes.min(self.transit.ahead_max()),
        }
    }

    /// Whether another layer of so many bytes may be lent; then it counts, until it is returned.
    pub(super) fn lend(&self, len: u64) -> bool {
        let share = match self.cache_bytes_max {
            0 => u64::MAX,
            cap => percent(cap, LENT),
        };
        let fits = |lent: u64| lent.checked_add(len).filter(|sum| *sum <= share);
        self.lent
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .is_ok()
    }

    /// A layer that an earlier process lent in this boot: that is not asked any more, and counts.
    pub(super) fn was_lent(&self, len: u64) {
        self.lent.fetch_add(len, Ordering::AcqRel);
    }

    /// A lent layer is gone.
    pub(super) fn returned(&self, len: u64) {
        self.lent.fetch_sub(len, Ordering::AcqRel);
    }

    /// Bytes of layers that the kernel reads by itself.
    pub fn lent(&self) -> u64 {
        self.lent.load(Ordering::Acquire)
    }

    /// The disk refused: it has less room than it said.
    pub(super) fn refused(&self) {
        let mut free = self.lock();
        free.bytes = 0;
        free.looked = Some(Instant::now());
        self.tight.notify_one();
    }

    /// Returns when there is no room for a chunk, or soon will not be.
    pub async fn is_tight(&self) {
        self.tight.notified().await;
    }

    /// Counts what all layers take now; returns how many bytes must go. One call at a time.
    pub(super) fn excess(&self, count: impl FnOnce() -> u64) -> u64 {
        let before = self.used.load(Ordering::Acquire);
        let counted = count();
        // What was written meanwhile was counted or not: it is added.
        let recount = |now: u64| counted.saturating_add(now.saturating_sub(before));
        let recounted = self
            .used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| Some(recount(now)));
        let used = recounted.map_or(counted, recount);
        self.lock().looked = None;
        let over_cap = match self.cache_bytes_max {
            0 => 0,
            cap if used > percent(cap, HIGH) => used - percent(cap, LOW),
            _ => 0,
        };
        // With a little more than the floor, so that one chunk does not bring us here again.
        let below_floor = match self.free() {
            free if free < self.free_bytes_min => (self.free_bytes_min - free).saturating_add(LOOK_BYTES),
            _ => 0,
        };
        over_cap.max(below_floor)
    }

    /// Whether so much is free after so much more was written.
    fn leaves(&self, len: u64, free: u64) -> bool {
        self.free() >= free.saturating_add(len)
    }

    fn free(&self) -> u64 {
        let mut free = self.lock();
        let is_fresh = free.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY) && free.written < LOOK_BYTES;
        if !is_fresh {
            // Not to be told is not to be stopped: a write says so itself when there is no room.
            free.bytes = match rustix::fs::statvfs(&self.dir) {
                Ok(fs) => fs.f_bavail.saturating_mul(fs.f_frsize),
                Err(_) => u64::MAX,
            };
            free.looked = Some(Instant::now());
            free.written = 0;
        }
        free.bytes.saturating_sub(free.written)
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// Room that was promised to a chunk.
#[derive(Debug)]
pub(super) struct Place<'a> {
    room: &'a Room,
    len: u64,
}

impl Place<'_> {
    /// The chunk was written.
    pub(super) fn taken(self) {
        self.room.used.fetch_add(self.len, Ordering::AcqRel);
        self.room.lock().written += self.len;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.room.reserved.fetch_sub(self.len, Ordering::AcqRel);
    }
}

/// Tried, not concluded from the filesystem's name.
fn can_share(dir: &Path) -> bool {
    let paths = [dir.join("reflink.a"), dir.join("reflink.b")];
    let tried = || {
        std::fs::write(&paths[0], [1; 4096])?;
        let from = std::fs::File::open(&paths[0])?;
        let to = std::fs::File::create(&paths[1])?;
        Ok::<_, std::io::Error>(rustix::fs::ioctl_ficlone(&to, &from)?)
    };
    let can = tried().is_ok();
    for path in &paths {
        // Left over they are 4 KiB, and written over by the next start.
        let _ = std::fs::remove_file(path);
    }
    can
}

fn percent(of: u64, percent: u64) -> u64 {
    (u128::from(of) * u128::from(percent) / 100) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(dir: &Path, cache_bytes_max: u64) -> Arc<Room> {
        let config = LazyConfig {
            cache_bytes_max,
            ..LazyConfig::default()
        };
        Room::new(dir, &config, Arc::default())
    }

    #[test]
    fn layers_are_lent_within_their_share_and_counted_to_the_byte() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path(), 1000);
        assert!(!room.lend(601), "alone too large");
        assert!(room.lend(400));
        assert!(!room.lend(201));
        assert!(room.lend(200), "up to the last byte");
        assert!(!room.lend(1) && room.lend(0));
        room.returned(400);
        assert_eq!(room.lent(), 200);
        // What a predecessor with a larger cap lent is lent, however much it is.
        room.was_lent(5000);
        assert!(!room.lend(1));
        room.returned(5000);
        assert!(room.lend(400) && !room.lend(1));
        assert_eq!(room.lent(), 600);
    }

    #[test]
    fn without_a_cap_every_layer_is_lent() {
        let dir = tempfile::tempdir().unwrap();
        let room = room(dir.path(), 0);
        assert!(room.lend(1 << 60) && room.lend(1 << 60));
        assert_eq!(room.lent(), 2 << 60);
        assert!(!room.lend(u64::MAX), "a number that is no size of layers");
    }
}
