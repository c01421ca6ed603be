//! Which originals there are, how large, and when each was last used.
//!
//! In: additions, removals, uses. Out: totals, and a snapshot for whoever decides what goes.
//! Invariant: a use costs a shared lock of one shard and one relaxed store, never a system call. The last use is kept as
//! the file's mtime, written at most once in [`SAVE_EVERY_MS`] and by the reclaimer alone: a crash then costs the order
//! within that hour, and nothing else depends on it.
//! Not here: files ([`super::originals`]), and the decision ([`crate::reclaim`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use headstart_layer_format::BlobDigest;

/// Locks: enough that two busy cores seldom meet.
const SHARDS: usize = 32;
/// The last use of one file is written to its mtime at most this often.
pub const SAVE_EVERY_MS: u64 = 3_600_000;

/// Milliseconds since 1970; 0 when the clock is before that.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

/// One kept file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    pub digest: BlobDigest,
    pub bytes: u64,
    pub used_unix_ms: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: AtomicU64,
    saved: AtomicU64,
    /// Of the file that this process wrote, or compared with its digest; 0: none.
    intact: AtomicU64,
}

type Shard = RwLock<HashMap<BlobDigest, Entry>>;

/// Every original in memory, some hundred bytes each.
#[derive(Debug)]
pub struct Usage {
    shards: [Shard; SHARDS],
    bytes: AtomicU64,
    scanned: AtomicBool,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            shards: std::array::from_fn(|_| Shard::default()),
            bytes: AtomicU64::new(0),
            scanned: AtomicBool::new(false),
        }
    }
}

impl Usage {
    fn shard(&self, digest: &BlobDigest) -> &Shard {
        // A digest is evenly spread already.
        &self.shards[usize::from(digest.as_bytes()[0]) % SHARDS]
    }

    /// A file came, or the scan found it. One that is known stays as it is.
    pub fn add(&self, digest: &BlobDigest, bytes: u64, used_unix_ms: u64) {
        let mut shard = self.shard(digest).write().unwrap_or_else(PoisonError::into_inner);
        shard.entry(*digest).or_insert_with(|| {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
            Entry {
                bytes,
                used: AtomicU64::new(used_unix_ms),
                saved: AtomicU64::new(used_unix_ms),
                intact: AtomicU64::new(0),
            }
        });
    }

    /// A file was used now. One that the scan has not come to yet becomes known. After the scan, one that is not known
    /// is gone (its reader opened it before), and must not count again.
    pub fn used(&self, digest: &BlobDigest, bytes: u64) {
        let now = now_ms();
        {
            let shard = self.shard(digest).read().unwrap_or_else(PoisonError::into_inner);
            if let Some(entry) = shard.get(digest) {
                entry.used.store(now, Ordering::Relaxed);
                return;
            }
        }
        if !self.is_scanned() {
            self.add(digest, bytes, now);
        }
    }

    /// The file with this inode number is what its digest names. Of one that is gone nothing is kept.
    pub fn mark_intact(&self, digest: &BlobDigest, inode: u64) {
        let shard = self.shard(digest).read().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = shard.get(digest) {
            entry.intact.store(inode, Ordering::Relaxed);
        }
    }

    /// Whether it was marked so, and not another one since, and is as long as it was.
    pub fn is_intact(&self, digest: &BlobDigest, inode: u64, bytes: u64) -> bool {
        let shard = self.shard(digest).read().unwrap_or_else(PoisonError::into_inner);
        let entry = shard.get(digest);
        inode != 0 && entry.is_some_and(|e| e.bytes == bytes && e.intact.load(Ordering::Relaxed) == inode)
    }

    pub fn remove(&self, digest: &BlobDigest) {
        let mut shard = self.shard(digest).write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = shard.remove(digest) {
            self.bytes.fetch_sub(entry.bytes, Ordering::Relaxed);
        }
    }

    pub fn get(&self, digest: &BlobDigest) -> Option<Kept> {
        let shard = self.shard(digest).read().unwrap_or_else(PoisonError::into_inner);
        shard.get(digest).map(|entry| Kept {
            digest: *digest,
            bytes: entry.bytes,
            used_unix_ms: entry.used.load(Ordering::Relaxed),
        })
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether the scan at start has ended: before, nobody knows what is old.
    pub fn is_scanned(&self) -> bool {
        self.scanned.load(Ordering::Acquire)
    }

    pub fn scan_ended(&self) {
        self.scanned.store(true, Ordering::Release);
    }

    /// Least recently used first.
    pub fn oldest_first(&self) -> Vec<Kept> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.iter().map(|(digest, entry)| Kept {
                digest: *digest,
                bytes: entry.bytes,
                used_unix_ms: entry.used.load(Ordering::Relaxed),
            }));
        }
        all.sort_unstable_by_key(|kept| (kept.used_unix_ms, kept.digest));
        all
    }

    /// Those whose last use is newer than what their files say by more than `lag_ms`; they count as saved from now on.
    pub fn to_save(&self, lag_ms: u64) -> Vec<(BlobDigest, u64)> {
        let mut out = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            for (digest, entry) in shard.iter() {
                let used = entry.used.load(Ordering::Relaxed);
                if used > entry.saved.load(Ordering::Relaxed).saturating_add(lag_ms) {
                    entry.saved.store(used, Ordering::Relaxed);
                    out.push((*digest, used));
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_order_and_what_is_to_be_saved() {
        let usage = Usage::default();
        let [a, b] = [b"a", b"b"].map(|s| BlobDigest::of(s));
        usage.add(&a, 10, 5);
        usage.add(&b, 20, 4);
        usage.add(&b, 99, 1);
        assert_eq!(usage.bytes(), 30);
        let order: Vec<_> = usage.oldest_first().iter().map(|k| k.digest).collect();
        assert_eq!(order, [b, a]);
        usage.used(&b, 20);
        assert_eq!(usage.oldest_first()[0].digest, a);
        let saved = usage.to_save(1000);
        assert_eq!(saved.len(), 1);
        assert_eq!(saved[0].0, b);
        assert!(usage.to_save(1000).is_empty(), "once");
        usage.mark_intact(&b, 7);
        assert!(usage.is_intact(&b, 7, 20) && !usage.is_intact(&b, 8, 20) && !usage.is_intact(&a, 0, 10));
        assert!(!usage.is_intact(&b, 7, 19), "it was cut");
        usage.remove(&b);
        usage.remove(&b);
        assert_eq!(usage.bytes(), 10);
        usage.mark_intact(&b, 7);
        usage.add(&b, 20, 4);
        assert!(!usage.is_intact(&b, 7, 20), "it is another file");
        usage.remove(&b);
        // The scan may not have come to it yet.
        usage.used(&b, 20);
        assert_eq!(usage.bytes(), 30);
        usage.scan_ended();
        usage.remove(&b);
        usage.used(&b, 20);
        assert_eq!(usage.bytes(), 10, "whoever had it open still brings nothing back");
    }
}
