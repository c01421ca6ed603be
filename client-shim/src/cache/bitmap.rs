//! Which chunks of a layer are here.
//!
//! In: chunk indices. Out: yes or no; and the same on disk. Invariant: in memory a bit is set after the chunk's bytes
//! were written; on disk, after they were made durable (`cache/layer_file.rs` keeps that order).
//! Not here: bytes, files.
//!
//! ```text
//! 0          8              40            48          48 + 8 * words    + 32
//! | "HSBMAP" 0 1 | TOC digest | chunk count | words (LE) | SHA-256 of all before |
//! ```

use std::sync::atomic::{AtomicU64, Ordering};

use headstart_layer_format::TocDigest;
use headstart_layer_format::limits::CHUNKS_MAX;
use sha2::{Digest as _, Sha256};

const MAGIC: &[u8; 8] = b"HSBMAP\0\x01";
const HEAD_LEN: usize = 48;
const SUM_LEN: usize = 32;

/// Largest bitmap file: every chunk a TOC may have.
pub(super) const FILE_SIZE_MAX: u64 = (HEAD_LEN + SUM_LEN) as u64 + CHUNKS_MAX / 8 + 8;

#[derive(Debug)]
pub struct ChunkBitmap {
    words: Box<[AtomicU64]>,
    len: u32,
}

impl ChunkBitmap {
    /// All clear.
    pub fn new(len: u32) -> Self {
        let words = (0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, len }
    }

    /// False past the end.
    pub fn get(&self, index: u32) -> bool {
        index < self.len
            && self
                .words
                .get(index as usize / 64)
                .is_some_and(|w| w.load(Ordering::Acquire) >> (index % 64) & 1 == 1)
    }

    /// The chunk's bytes are written.
    pub fn set(&self, index: u32) {
        if index < self.len
            && let Some(word) = self.words.get(index as usize / 64)
        {
            word.fetch_or(1 << (index % 64), Ordering::Release);
        }
    }

    /// The chunk's bytes are not to be read any more.
    pub fn clear(&self, index: u32) {
        if let Some(word) = self.words.get(index as usize / 64) {
            word.fetch_and(!(1 << (index % 64)), Ordering::AcqRel);
        }
    }

    /// Clears what `other` does not have.
    pub fn keep_only(&self, other: &Self) {
        for (word, kept) in self.words.iter().zip(&other.words) {
            word.fetch_and(kept.load(Ordering::Acquire), Ordering::AcqRel);
        }
    }

    /// Those that are set.
    pub fn set_bits(&self) -> Vec<u32> {
        (0..self.len).filter(|i| self.get(*i)).collect()
    }

    /// How many are set.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|w| w.load(Ordering::Relaxed).count_ones()).sum()
    }

    /// The file form, as of now.
    pub fn encode(&self, toc: &TocDigest) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_LEN + 8 * self.words.len() + SUM_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(toc.as_bytes());
        out.extend_from_slice(&u64::from(self.len).to_le_bytes());
        for word in &self.words {
            out.extend_from_slice(&word.load(Ordering::Acquire).to_le_bytes());
        }
        let sum: [u8; SUM_LEN] = Sha256::digest(&out).into();
        out.extend_from_slice(&sum);
        out
    }

    /// `None` for anything but an intact bitmap of `len` chunks of that TOC: a miss, the chunks are fetched again.
    pub fn decode(bytes: &[u8], toc: &TocDigest, len: u32) -> Option<Self> {
        let new = Self::new(len);
        if bytes.len() != HEAD_LEN + 8 * new.words.len() + SUM_LEN {
            return None;
        }
        let (body, sum) = bytes.split_at(bytes.len() - SUM_LEN);
        let expected: [u8; SUM_LEN] = Sha256::digest(body).into();
        let (magic, rest) = body.split_at(MAGIC.len());
        let (digest, rest) = rest.split_at(32);
        let (count, words) = rest.split_at(8);
        if sum != expected || magic != MAGIC || digest != toc.as_bytes() || count != u64::from(len).to_le_bytes() {
            return None;
        }
        for (word, bytes) in new.words.iter().zip(words.chunks_exact(8)) {
            let mut le = [0; 8];
            le.copy_from_slice(bytes);
            word.store(u64::from_le_bytes(le), Ordering::Release);
        }
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_every_damage_is_a_miss() {
        let toc = TocDigest::of(b"toc");
        let map = ChunkBitmap::new(130);
        for i in [0, 63, 64, 129] {
            map.set(i);
        }
        map.set(130);
        let bytes = map.encode(&toc);
        let back = ChunkBitmap::decode(&bytes, &toc, 130).unwrap_or_else(|| panic!("decodes"));
        assert_eq!(back.count(), 4);
        assert!((0..200).all(|i| back.get(i) == [0, 63, 64, 129].contains(&i)));

        assert!(ChunkBitmap::decode(&bytes, &TocDigest::of(b"other"), 130).is_none());
        assert!(ChunkBitmap::decode(&bytes, &toc, 129).is_none());
        for cut in 0..bytes.len() {
            assert!(ChunkBitmap::decode(&bytes[..cut], &toc, 130).is_none());
        }
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(ChunkBitmap::decode(&flipped, &toc, 130).is_none(), "{at}");
        }
    }
}
