//! Chunks that the disk has no room for, on their way to the reader who waits for them.
//!
//! In: verified chunks, and who waits for which. Out: the same, for a short time. Invariant: a chunk that somebody waits for
//! stays until he has read it, so what these take is bounded by the reads that wait; the others take a bounded number of bytes,
//! and the oldest goes first. Not here: when the disk has no room (`cache/room.rs`).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use super::layer_file::LayerFile;

/// A layer's file on this node, and a chunk of it.
pub(super) type Key = (u32, u32);

#[derive(Debug)]
pub(super) struct Transit {
    bytes_max: u64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    chunks: HashMap<Key, Arc<[u8]>>,
    /// How many reads wait for a chunk.
    wanted: HashMap<Key, usize>,
    /// Those of `chunks` that nobody waits for, and their bytes.
    order: VecDeque<Key>,
    bytes: u64,
}

impl Transit {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            held: Mutex::default(),
        }
    }

    /// How much may be fetched for later while the disk takes nothing.
    pub(super) fn ahead_max(&self) -> u64 {
        self.bytes_max / 4
    }

    pub(super) fn put(&self, key: Key, bytes: &[u8]) {
        let mut held = self.lock();
        if held.chunks.insert(key, bytes.into()).is_none() && !held.wanted.contains_key(&key) {
            held.enqueue(key);
        }
        held.trim(self.bytes_max);
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<[u8]>> {
        self.lock().chunks.get(key).cloned()
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.lock().chunks.contains_key(key)
    }

    /// A layer goes.
    pub(super) fn forget(&self, file: u32) {
        let mut held = self.lock();
        let held = &mut *held;
        held.order.retain(|key| key.0 != file);
        held.chunks.retain(|key, _| key.0 != file);
        held.bytes = held.order.iter().map(|key| held.len(key)).sum();
    }

    fn want(&self, key: Key) {
        let mut held = self.lock();
        let count = held.wanted.entry(key).or_default();
        *count += 1;
        if *count == 1 && held.chunks.contains_key(&key) {
            held.bytes -= held.len(&key);
            held.order.retain(|k| *k != key);
        }
    }

    fn unwant(&self, key: Key) {
        let mut held = self.lock();
        let Some(count) = held.wanted.get_mut(&key) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            held.wanted.remove(&key);
            if held.chunks.contains_key(&key) {
                held.enqueue(key);
                held.trim(self.bytes_max);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl Held {
    fn len(&self, key: &Key) -> u64 {
        self.chunks.get(key).map_or(0, |bytes| bytes.len() as u64)
    }

    fn enqueue(&mut self, key: Key) {
        self.order.push_back(key);
        self.bytes += self.len(&key);
    }

    fn trim(&mut self, bytes_max: u64) {
        while self.bytes > bytes_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.len(&oldest);
            self.chunks.remove(&oldest);
        }
    }
}

/// Chunks that a read waits for: once they came they stay, on disk or here, until this is dropped.
#[derive(Debug)]
pub struct Wanted {
    file: Arc<LayerFile>,
    chunks: Vec<u32>,
}

impl Wanted {
    pub(super) fn new(file: &Arc<LayerFile>, chunks: Vec<u32>) -> Self {
        for &chunk in &chunks {
            file.room.transit.want((file.id, chunk));
        }
        Self {
            file: Arc::clone(file),
            chunks,
        }
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        for &chunk in &self.chunks {
            self.file.room.transit.unwant((self.file.id, chunk));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_and_what_is_wanted_stays() {
        let transit = Transit::new(100);
        for i in 0..4 {
            transit.put((1, i), &[i as u8; 40]);
        }
        transit.put((1, 3), &[3; 40]);
        assert!(!transit.has(&(1, 0)) && !transit.has(&(1, 1)) && transit.has(&(1, 2)));
        assert_eq!(transit.get(&(1, 3)).as_deref(), Some(&[3; 40][..]));
        // One that is here already, and one that comes.
        transit.want((1, 2));
        transit.want((2, 0));
        transit.want((2, 0));
        transit.put((2, 0), &[9; 500]);
        for i in 10..20 {
            transit.put((1, i), &[0; 40]);
        }
        assert!(transit.has(&(2, 0)) && transit.has(&(1, 2)) && !transit.has(&(1, 3)));
        transit.unwant((2, 0));
        assert!(transit.has(&(2, 0)), "another waits for it too");
        transit.unwant((2, 0));
        assert!(!transit.has(&(2, 0)), "larger than everything allowed");
        transit.unwant((1, 2));
        assert!(transit.has(&(1, 2)), "the newest of those that nobody waits for");
        let state = |transit: &Transit| {
            let held = transit.lock();
            (held.bytes, held.chunks.len(), held.wanted.len())
        };
        assert_eq!(state(&transit), (40, 1, 0));
        transit.forget(1);
        assert_eq!(state(&transit), (0, 0, 0));
    }
}
