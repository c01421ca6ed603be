//! Giving room back: chunks of a layer become holes.
//!
//! In: how many bytes must go, and which layers are in use. Out: as many, from layers not in use first, the least recently
//! read first, as far as they can. Invariant: before a byte goes, no bitmap claims it, neither in memory nor on disk; a reader
//! that looked before reads it whole. What the kernel reads by itself never goes.
//! Not here: when it is time (`cache/room.rs`).

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use headstart_layer_format::BlobDigest;
use headstart_layer_format::limits::BODY_ALIGN;
use rustix::fs::{FallocateFlags, fallocate};

use super::layer::Layer;
use super::layer_file::{BITMAP, LayerFile};
use crate::atomic_file;

/// Looks at what all layers take, and makes room. Blocks. Returns the bytes that went.
pub fn make_room(layers: &[Arc<Layer>], in_use: &HashSet<BlobDigest>) -> u64 {
    let Some(room) = layers.first().map(|l| l.file().room()) else {
        return 0;
    };
    let count = || layers.iter().map(|l| l.file().disk_bytes()).sum();
    let mut excess = room.excess(count);
    if excess == 0 {
        return 0;
    }
    let mut order: Vec<_> = layers.iter().filter(|l| !l.file().is_lent()).collect();
    order.sort_by_key(|l| (in_use.contains(l.digest()), l.file().last_used()));
    let mut gone = 0;
    for layer in order {
        if excess == 0 {
            break;
        }
        match layer.file().evict(excess) {
            Ok(bytes) => {
                excess = excess.saturating_sub(bytes);
                gone += bytes;
            }
            Err(error) => tracing::warn!(layer = %layer.digest(), %error, "cache-eviction-failed"),
        }
    }
    room.counters.evicted_bytes.add(gone);
    // Counted anew, so that chunks are admitted again.
    room.excess(count);
    tracing::info!(bytes = gone, short = excess, "cache-evicted");
    gone
}

impl LayerFile {
    /// Gives back about `bytes`, or all there is. Blocks.
    pub fn evict(&self, bytes: u64) -> io::Result<u64> {
        let retired = self.retired.lock().unwrap_or_else(|p| p.into_inner());
        if *retired || self.is_lent() {
            return Ok(0);
        }
        let before = self.disk_bytes();
        let mut left = bytes;
        // From the hand to the end, and from the start to the hand.
        for _ in 0..2 {
            let going = self.next_victims(left);
            if !going.is_empty() {
                self.punch(going)?;
            }
            left = bytes.saturating_sub(before.saturating_sub(self.disk_bytes()));
            if left == 0 {
                break;
            }
            self.hand.store(0, Ordering::Relaxed);
        }
        Ok(before.saturating_sub(self.disk_bytes()))
    }

    /// A stretch of chunks with at least `bytes` of what is here.
    fn next_victims(&self, bytes: u64) -> Range<u32> {
        let start = self.hand.load(Ordering::Relaxed);
        let mut sum = 0;
        let mut end = start;
        while sum < bytes
            && let Some(chunk) = self.chunks().chunk(end)
        {
            if self.bitmap.get(end) {
                sum += chunk.range.len;
            }
            end += 1;
        }
        self.hand.store(end, Ordering::Relaxed);
        start..end
    }

    /// With `retired` held, so that no flush claims anything meanwhile.
    fn punch(&self, going: Range<u32>) -> io::Result<()> {
        self.disown(going.clone())?;
        let chunks = self.chunks();
        let (Some(first), Some(last)) = (chunks.chunk(going.start), chunks.chunk(going.end - 1)) else {
            return Ok(());
        };
        // A block that a neighbour shares stays.
        let start = first.range.start.0.next_multiple_of(BODY_ALIGN);
        let end = match last.range.end().0 == chunks.data_size() {
            true => last.range.end().0,
            false => last.range.end().0 / BODY_ALIGN * BODY_ALIGN,
        };
        let punched = match end > start {
            true => fallocate(
                &self.data,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                start,
                end - start,
            ),
            false => Ok(()),
        };
        *self.stable.write().unwrap_or_else(|p| p.into_inner()) = 0..0;
        Ok(punched?)
    }

    /// Takes the claims on chunks back, in memory and then, durably, on disk. Chunks that come meanwhile are not kept.
    fn disown(&self, going: Range<u32>) -> io::Result<()> {
        let mut stable = self.stable.write().unwrap_or_else(|p| p.into_inner());
        *stable = going.clone();
        self.evictions.fetch_add(1, Ordering::AcqRel);
        going.for_each(|i| self.bitmap.clear(i));
        drop(stable);
        // Of what was claimed before, what is still here. What came since then is claimed by the next flush, after a sync.
        let claim = self.durable();
        claim.keep_only(&self.bitmap);
        let done = atomic_file::replace(&self.dir, BITMAP, &claim.encode(self.contents().toc_digest()));
        if done.is_err() {
            *self.stable.write().unwrap_or_else(|p| p.into_inner()) = 0..0;
        }
        done
    }

    /// A chunk that is not what it was: forgotten, so that it is fetched again. Blocks.
    pub(super) fn forget_rotten(&self, index: u32) -> io::Result<()> {
        let retired = self.retired.lock().unwrap_or_else(|p| p.into_inner());
        self.room.counters.rotten_chunks.add(1);
        tracing::error!(dir = %self.dir.display(), chunk = index, "cache-chunk-rotten");
        if *retired {
            return Ok(());
        }
        let done = self.disown(index..index + 1);
        *self.stable.write().unwrap_or_else(|p| p.into_inner()) = 0..0;
        done
    }
}
