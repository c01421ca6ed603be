//! Whether a layer that is all here is the layer its image names.
//!
//! In: a full layer. Out: a [`Verdict`], on record. Invariant: "right" is said only of bytes that gave, with the skeleton, the
//! DiffID: the digest in the signed image config that the snapshotter compared. A chunk that rotted on this disk is told
//! apart from a TOC that lies: the one is fetched again, the other is quarantined.
//! Not here: when (`upkeep.rs`).

use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use headstart_layer_format::{ChunkDigest, DiffId, LayerRange};
use sha2::{Digest as _, Sha256};

use super::layer_file::LayerFile;
use super::marks::Mark;

/// Bytes read at once.
const BUFFER: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Right,
    /// So many chunks were rotten; they are missing now.
    Rotten(u32),
    Lies,
}

impl LayerFile {
    /// Reads everything. Blocks for as long as the disk takes.
    pub fn verify(&self) -> io::Result<Verdict> {
        let before = self.evictions.load(Ordering::Acquire);
        let contents = self.contents();
        let mut is_right = self.diff_id()? == *contents.diff_id();
        if !is_right {
            let rotten = self.rotten()?;
            if !rotten.is_empty() {
                for &index in &rotten {
                    self.forget_rotten(index)?;
                }
                return Ok(Verdict::Rotten(rotten.len() as u32));
            }
            // The verdict costs a layer, so it is come to twice.
            is_right = self.diff_id()? == *contents.diff_id();
        }
        if self.evictions.load(Ordering::Acquire) != before || !self.is_full() {
            // Something went meanwhile, so what was read may have been a hole.
            return Ok(Verdict::Rotten(0));
        }
        if is_right {
            Mark::Verified.set(&self.dir, contents.toc_digest())?;
            self.verified.store(true, Ordering::Release);
            self.room.counters.layers_verified.add(1);
            return Ok(Verdict::Right);
        }
        self.quarantined.store(true, Ordering::Release);
        self.room.counters.layers_quarantined.add(1);
        tracing::error!(
            layer = %contents.layer(),
            diff_id = %contents.diff_id(),
            "LAYER QUARANTINED: its server's TOC describes other bytes than its image names"
        );
        Mark::Quarantined.set(&self.dir, contents.toc_digest())?;
        Ok(Verdict::Lies)
    }

    fn diff_id(&self) -> io::Result<DiffId> {
        let mut hash = Hash(Sha256::new());
        let mut buffer = vec![0; BUFFER];
        self.contents()
            .toc()?
            .skeleton()
            .write_tar(&mut hash, |range: LayerRange, out| {
                let mut at = range.start.0;
                while at < range.end().0 {
                    let len = usize::try_from(range.end().0 - at).unwrap_or(BUFFER).min(BUFFER);
                    self.data.read_exact_at(&mut buffer[..len], at)?;
                    out.write_all(&buffer[..len])?;
                    at += len as u64;
                }
                Ok(())
            })?;
        Ok(DiffId::from_bytes(hash.0.finalize().into()))
    }

    /// Chunks that are not what their digest says.
    fn rotten(&self) -> io::Result<Vec<u32>> {
        let mut rotten = Vec::new();
        let mut buffer = Vec::new();
        for chunk in self.chunks().iter() {
            let stable = self.stable.read().unwrap_or_else(|p| p.into_inner());
            if !self.bitmap.get(chunk.index) {
                continue;
            }
            // At most CHUNK_SIZE_MAX.
            buffer.resize(chunk.range.len as usize, 0);
            self.data.read_exact_at(&mut buffer, chunk.range.start.0)?;
            drop(stable);
            if ChunkDigest::of(&buffer) != chunk.digest {
                rotten.push(chunk.index);
            }
        }
        Ok(rotten)
    }
}

struct Hash(Sha256);

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
