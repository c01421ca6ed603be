//! The gate every chunk passes.
//!
//! In: a chunk's place in the TOC, and a frame from anywhere. Out: a [`VerifiedChunk`], the only way to its bytes.
//! Invariant: a `VerifiedChunk` holds exactly the chunk's length of bytes, and their SHA-256 is the chunk's digest.
//! Not here: trust in the TOC that names the digest (ARCHITECTURE.md, "What is deliberately absent"), and where the bytes go.

use std::sync::{Mutex, PoisonError};

use headstart_layer_format::ChunkDigest;
use headstart_layer_format::toc::Chunk;
use zstd::bulk::Decompressor;

/// Decompressors that nobody uses. Making one takes as long as decompressing a chunk of 300 KB (16 and 7 us).
static IDLE: Mutex<Vec<Decompressor<'static>>> = Mutex::new(Vec::new());
/// Some 160 KB each.
const IDLE_MAX: usize = 4;

/// Why a frame is not its chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    #[error("its frame does not decompress")]
    Frame,
    #[error("it has the wrong length")]
    Length,
    #[error("its digest differs")]
    Digest,
}

/// Bytes of one chunk, checked.
#[derive(Debug)]
pub struct VerifiedChunk {
    chunk: Chunk,
    bytes: Vec<u8>,
}

impl VerifiedChunk {
    /// Decompresses into exactly the space the TOC says, then compares the digest.
    pub fn open(chunk: Chunk, frame: &[u8]) -> Result<Self, Corrupt> {
        // Bounded by limits::CHUNK_SIZE_MAX, which ChunkTable checked; a frame that holds more is an error.
        let raw_len = usize::try_from(chunk.range.len).map_err(|_| Corrupt::Length)?;
        let bytes = decompress(frame, raw_len).map_err(|_| Corrupt::Frame)?;
        Self::check(chunk, bytes)
    }

    /// Compares the digest of bytes that are not in a frame.
    pub fn check(chunk: Chunk, bytes: Vec<u8>) -> Result<Self, Corrupt> {
        if bytes.len() as u64 != chunk.range.len {
            return Err(Corrupt::Length);
        }
        if ChunkDigest::of(&bytes) != chunk.digest {
            return Err(Corrupt::Digest);
        }
        Ok(Self { chunk, bytes })
    }

    /// Which chunk this is.
    pub fn chunk(&self) -> &Chunk {
        &self.chunk
    }

    /// Its bytes, uncompressed.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn decompress(frame: &[u8], raw_len: usize) -> std::io::Result<Vec<u8>> {
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = idle().pop();
    let mut decompressor = match kept {
        Some(kept) => kept,
        None => Decompressor::new()?,
    };
    let bytes = decompressor.decompress(frame, raw_len);
    // Also after a bad frame: each begins anew.
    let mut idle = idle();
    if idle.len() < IDLE_MAX {
        idle.push(decompressor);
    }
    bytes
}

/// Where verified chunks of one layer go. The cache's file, or a test's double.
pub trait ChunkSink: Send + Sync + std::fmt::Debug {
    /// Whether readers can have the chunk already.
    fn has(&self, index: u32) -> bool;
    /// Keeps the chunk; once this returns, [`ChunkSink::has`] is true. Blocks on the disk.
    fn put(&self, chunk: VerifiedChunk) -> std::io::Result<()>;
    /// Whether the chunk may be on this node already, elsewhere. Cheap.
    fn is_near(&self, _index: u32) -> bool {
        false
    }
    /// Takes the chunk from where else it is on this node; false if that did not work. Blocks on the disk.
    fn take_near(&self, _index: u32) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::toc::{ChunkEntry, ChunkTable};

    use super::*;

    fn chunk(raw: &[u8], frame: &[u8]) -> Chunk {
        let table = ChunkTable::new(vec![ChunkEntry {
            digest: ChunkDigest::of(raw),
            raw_len: raw.len() as u32,
            frame_len: frame.len() as u32,
        }]);
        table
            .ok()
            .and_then(|t| t.chunk(0))
            .unwrap_or_else(|| panic!("a valid table"))
    }

    #[test]
    fn only_the_right_bytes_pass() {
        let raw = vec![7u8; 9000];
        let frame = |b: &[u8]| zstd::bulk::compress(b, 1).unwrap_or_default();
        let good = frame(&raw);
        let at = chunk(&raw, &good);
        assert_eq!(
            VerifiedChunk::open(at, &good).map(|v| v.bytes().to_vec()),
            Ok(raw.clone())
        );

        let mut other = raw.clone();
        other[8999] ^= 1;
        let mut flipped = good.clone();
        flipped[0] ^= 0xff;
        let cases = [
            (frame(&other), Corrupt::Digest),
            (frame(&raw[..8999]), Corrupt::Length),
            (frame(&vec![7u8; 9001]), Corrupt::Frame),
            (frame(&vec![0u8; 64 << 20]), Corrupt::Frame),
            (good[..good.len() - 1].to_vec(), Corrupt::Frame),
            (flipped, Corrupt::Frame),
            (Vec::new(), Corrupt::Length),
        ];
        for (bytes, why) in cases {
            assert_eq!(VerifiedChunk::open(at, &bytes).map(|_| ()), Err(why));
        }
    }
}
