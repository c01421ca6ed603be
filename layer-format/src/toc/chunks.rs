//! The chunk table: how the data space is cut, and where each chunk's frame is in the seekable blob.
//!
//! In: (digest, raw length, frame length) in data-space order. Out: lookups between the two spaces.
//! Invariant: chunks are a gapless partition of the data space, and their frames of the seekable blob, because
//! offsets are running sums and are never stored.
//! Not here: how cut points are chosen (the server's `ingest/cut.rs`).

use std::ops::Range;

use super::{TocError, within};
use crate::digest::ChunkDigest;
use crate::limits::{CHUNK_SIZE_MAX, CHUNKS_MAX, DATA_SIZE_MAX, FRAME_SIZE_MAX};
use crate::offset::{BlobOffset, BlobRange, LayerOffset, LayerRange};

/// A chunk as the table stores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkEntry {
    /// SHA-256 of the uncompressed bytes.
    pub digest: ChunkDigest,
    /// Uncompressed length.
    pub raw_len: u32,
    /// Length of the zstd frame.
    pub frame_len: u32,
}

/// A chunk with its place in both spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub index: u32,
    pub digest: ChunkDigest,
    pub range: LayerRange,
    pub frame: BlobRange,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkTable {
    chunks: Vec<ChunkEntry>,
    /// Start of each chunk in (data space, seekable blob), and the two sizes at the end.
    starts: Vec<(u64, u64)>,
}

impl ChunkTable {
    pub fn new(chunks: Vec<ChunkEntry>) -> Result<Self, TocError> {
        within("chunk count", chunks.len() as u64, CHUNKS_MAX)?;
        let mut starts = Vec::with_capacity(chunks.len() + 1);
        let (mut layer, mut blob) = (0u64, 0u64);
        for c in &chunks {
            starts.push((layer, blob));
            within("chunk size", u64::from(c.raw_len), u64::from(CHUNK_SIZE_MAX))?;
            within("frame size", u64::from(c.frame_len), u64::from(FRAME_SIZE_MAX))?;
            if c.raw_len == 0 || c.frame_len == 0 {
                return Err(TocError::Malformed("an empty chunk"));
            }
            layer += u64::from(c.raw_len);
            blob += u64::from(c.frame_len);
        }
        within("data space size", layer, DATA_SIZE_MAX)?;
        starts.push((layer, blob));
        Ok(Self { chunks, starts })
    }

    /// Number of chunks.
    pub fn len(&self) -> u32 {
        self.chunks.len() as u32
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub fn entries(&self) -> &[ChunkEntry] {
        &self.chunks
    }

    /// Size of the layer data space.
    pub fn data_size(&self) -> u64 {
        self.starts[self.chunks.len()].0
    }

    /// Size of the seekable blob.
    pub fn blob_size(&self) -> u64 {
        self.starts[self.chunks.len()].1
    }

    /// `None` past the end of the table.
    pub fn chunk(&self, index: u32) -> Option<Chunk> {
        let c = self.chunks.get(index as usize)?;
        let (layer, blob) = self.starts[index as usize];
        Some(Chunk {
            index,
            digest: c.digest,
            range: LayerRange {
                start: LayerOffset(layer),
                len: u64::from(c.raw_len),
            },
            frame: BlobRange {
                start: BlobOffset(blob),
                len: u64::from(c.frame_len),
            },
        })
    }

    /// Every chunk, in order.
    pub fn iter(&self) -> impl Iterator<Item = Chunk> + '_ {
        (0..self.len()).filter_map(|i| self.chunk(i))
    }

    /// Indices of the chunks that hold `range`, clipped to the data space.
    pub fn covering(&self, range: LayerRange) -> Range<u32> {
        self.indices(range.start.0, range.len, |s| s.0)
    }

    /// Indices of the chunks whose frames hold `range`, clipped to the seekable blob.
    pub fn covering_frames(&self, range: BlobRange) -> Range<u32> {
        self.indices(range.start.0, range.len, |s| s.1)
    }

    /// The one HTTP Range that holds the frames of a run of chunks.
    pub fn frames(&self, indices: Range<u32>) -> BlobRange {
        let end = indices.end.min(self.len()) as usize;
        let start = (indices.start as usize).min(end);
        let (from, to) = (self.starts[start].1, self.starts[end].1);
        BlobRange {
            start: BlobOffset(from),
            len: to - from,
        }
    }

    fn indices(&self, start: u64, len: u64, space: impl Fn(&(u64, u64)) -> u64) -> Range<u32> {
        let size = space(&self.starts[self.chunks.len()]);
        let end = start.saturating_add(len).min(size);
        if start >= end {
            return 0..0;
        }
        let starts = &self.starts[..self.chunks.len()];
        let first = starts.partition_point(|s| space(s) <= start) - 1;
        let last = starts.partition_point(|s| space(s) < end);
        first as u32..last as u32
    }
}
