//! A chunk that another layer of this node has: taken from there instead of fetched.
//!
//! In: a chunk that is missing here, and the node's index. Out: the chunk, here. Invariant: its digest is compared before it
//! is believed, so neither a stale hint nor a rotten disk gives wrong bytes; where the filesystem can share blocks between
//! files, it does. Not here: which layer has what (`cache/chunk_index.rs`).

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use headstart_layer_format::ChunkDigest;
use headstart_layer_format::limits::BODY_ALIGN;
use headstart_layer_format::toc::Chunk;

use super::layer_file::LayerFile;

impl LayerFile {
    /// Whether there is a hint.
    pub(super) fn is_near_by(&self, index: u32) -> bool {
        let digest = self.chunks().entries().get(index as usize).map(|c| c.digest);
        digest.is_some_and(|digest| self.room.index.find(&digest).is_some())
    }

    pub(super) fn take_near_by(&self, index: u32) -> bool {
        self.try_take(index).unwrap_or(false)
    }

    /// `None`: the hint was of no use.
    fn try_take(&self, index: u32) -> Option<bool> {
        let chunk = self.chunks().chunk(index)?;
        let (other, at) = self.room.index.find(&chunk.digest)?;
        let other = other.upgrade()?;
        let there = other.chunks().chunk(at)?;
        if there.digest != chunk.digest || there.range.len != chunk.range.len || other.is_quarantined() {
            return None;
        }
        let bytes = match other.chunk_bytes(&there)? {
            Ok(bytes) => bytes,
            Err(()) => {
                // Not what it was. That layer's next reader must not have it either.
                let _ = other.forget_rotten(at);
                return None;
            }
        };
        let kept = self.keep(&chunk, &bytes, || {
            match self.room.shares_blocks && self.share(&other, &there, &chunk, &bytes) {
                true => Ok(()),
                false => self.data.write_all_at(&bytes, chunk.range.start.0),
            }
        });
        if kept.is_err() {
            return None;
        }
        self.room.counters.near_chunks.add(1);
        self.room.counters.near_bytes.add(chunk.range.len);
        Some(true)
    }

    /// The chunk's bytes, if they are in the file; an error if they are not the chunk's.
    fn chunk_bytes(&self, chunk: &Chunk) -> Option<Result<Vec<u8>, ()>> {
        let _stable = self.stable.read().unwrap_or_else(|p| p.into_inner());
        if !self.bitmap.get(chunk.index) {
            return None;
        }
        // At most CHUNK_SIZE_MAX.
        let mut bytes = vec![0; chunk.range.len as usize];
        self.data.read_exact_at(&mut bytes, chunk.range.start.0).ok()?;
        Some(match ChunkDigest::of(&bytes) == chunk.digest {
            true => Ok(bytes),
            false => Err(()),
        })
    }

    /// Has the filesystem let both files point at the same blocks. False: copy.
    fn share(&self, other: &Arc<LayerFile>, there: &Chunk, chunk: &Chunk, bytes: &[u8]) -> bool {
        let aligned = |n: u64| n.is_multiple_of(BODY_ALIGN);
        if ![there.range.start.0, chunk.range.start.0, chunk.range.len]
            .into_iter()
            .all(aligned)
        {
            return false;
        }
        let (mut from, mut to) = (there.range.start.0, chunk.range.start.0);
        let mut left = bytes.len();
        while left > 0 {
            // Which such filesystems do by pointing at the blocks.
            match rustix::fs::copy_file_range(&other.data, Some(&mut from), &self.data, Some(&mut to), left) {
                Ok(n) if n > 0 => left -= n,
                _ => return false,
            }
        }
        // The other file may have lost the chunk meanwhile.
        let mut copied = vec![0; bytes.len()];
        self.data.read_exact_at(&mut copied, chunk.range.start.0).is_ok() && copied == bytes
    }
}
