//! Where on this node a chunk is already, by its digest.
//!
//! In: chunks as they are put into layers. Out: a layer's file and the chunk's number in it. Invariant: a bounded number of
//! entries; an entry is a hint: whoever follows it looks whether the chunk is still there and checks its digest, so nothing
//! depends on the index but bytes fetched. Made again by every start, from TOCs and bitmaps.
//! Not here: copying (`cache/borrow.rs`).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, Weak};

use headstart_layer_format::ChunkDigest;

use super::layer_file::LayerFile;

#[derive(Debug)]
pub(super) struct ChunkIndex {
    entries_max: usize,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// The digest's first 8 bytes: whoever follows compares the rest. About 20 bytes an entry.
    places: HashMap<u64, (u32, u32)>,
    files: HashMap<u32, Weak<LayerFile>>,
}

impl ChunkIndex {
    pub(super) fn new(entries_max: usize) -> Self {
        Self {
            entries_max,
            held: Mutex::default(),
        }
    }

    /// A layer's file can be pointed at from now on.
    pub(super) fn add_file(&self, id: u32, file: Weak<LayerFile>) {
        self.lock().files.insert(id, file);
    }

    /// A full index learns nothing new: what it has is as good.
    pub(super) fn add(&self, digest: &ChunkDigest, file: u32, chunk: u32) {
        let mut held = self.lock();
        let key = key(digest);
        if held.places.len() < self.entries_max || held.places.contains_key(&key) {
            held.places.insert(key, (file, chunk));
        }
    }

    pub(super) fn find(&self, digest: &ChunkDigest) -> Option<(Weak<LayerFile>, u32)> {
        let held = self.lock();
        let &(file, chunk) = held.places.get(&key(digest))?;
        Some((held.files.get(&file)?.clone(), chunk))
    }

    /// A layer goes.
    pub(super) fn forget(&self, file: u32) {
        let mut held = self.lock();
        held.files.remove(&file);
        held.places.retain(|_, place| place.0 != file);
        held.places.shrink_to_fit();
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().places.len()
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(|p| p.into_inner())
    }
}

/// Digests are uniform, so any 8 bytes of one are.
fn key(digest: &ChunkDigest) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_bounded_and_forgets_layers() {
        let index = ChunkIndex::new(2);
        for file in [1, 2] {
            index.add_file(file, Weak::new());
        }
        let digest = |n: u8| ChunkDigest::of(&[n]);
        for n in 0..5 {
            index.add(&digest(n), 1 + u32::from(n % 2), u32::from(n));
        }
        assert_eq!(index.len(), 2);
        assert_eq!(index.find(&digest(1)).map(|f| f.1), Some(1));
        index.add(&digest(1), 1, 7);
        assert_eq!(index.find(&digest(1)).map(|f| f.1), Some(7));
        index.forget(1);
        assert_eq!(index.len(), 0);
        assert!(index.find(&digest(0)).is_none());
    }
}
