//! A regular file's content as chunks of the data space.
//!
//! In: extents. Out: a chunk size and the block of each chunk. Invariant: what the chunks show is what the extents say,
//! byte for byte; else it is an error. The size is the largest that does, so a file in one piece is one chunk.
//! Not here: writing them (`writer.rs`).

use headstart_layer_format::toc::{Content, Skeleton};

use super::format::BLOCK;
use super::{ErofsError, INDEXES_MAX};

/// The format has five bits for it.
const BITS_MAX: u32 = 31;

/// Where bodies end in the data space: behind these offsets there are zeros up to the next block.
#[derive(Debug)]
pub(super) struct BodyEnds(Vec<u64>);

impl BodyEnds {
    pub(super) fn of(skeleton: &Skeleton) -> Self {
        let mut start = 0u64;
        let ends = skeleton.bodies().iter().map(|body| {
            // The sum was checked against the data space when the skeleton was decoded.
            let end = start.saturating_add(body.len);
            start = end.div_ceil(BLOCK).saturating_mul(BLOCK);
            end
        });
        Self(ends.collect())
    }

    fn zeros_follow(&self, end: u64) -> bool {
        end.is_multiple_of(BLOCK) || self.0.binary_search(&end).is_ok()
    }
}

#[derive(Debug)]
pub(super) struct ChunkMap {
    /// Chunks have 2^this blocks.
    pub(super) bits: u8,
    pub(super) count: u64,
    runs: Vec<Run>,
}

/// Blocks that follow each other in the file and in the data space.
#[derive(Clone, Copy, Debug)]
struct Run {
    file: u64,
    data: u64,
    len: u64,
}

impl ChunkMap {
    pub(super) fn of(content: &Content, ends: &BodyEnds) -> Result<Self, ErofsError> {
        let runs = runs(content, ends)?;
        let blocks = content.size().div_ceil(BLOCK);
        // A chunk is one run or none: each edge of a run is an edge of chunks, but for the file's own.
        let edges = runs.iter().flat_map(|r| [r.file, r.file + r.len]);
        let bits = edges
            .filter(|edge| *edge != 0 && *edge != blocks)
            .map(u64::trailing_zeros)
            .fold(blocks.max(1).next_power_of_two().trailing_zeros(), u32::min)
            .min(BITS_MAX);
        let count = blocks.div_ceil(1 << bits);
        if count > INDEXES_MAX {
            return Err(ErofsError::OverLimit {
                what: "chunk indexes",
                max: INDEXES_MAX,
            });
        }
        Ok(Self {
            bits: bits as u8,
            count,
            runs,
        })
    }

    /// The device's block of each chunk; `None` for a hole.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Option<u32>> + '_ {
        let mut at = 0;
        (0..self.count).map(move |chunk| {
            let block = chunk << self.bits;
            while self.runs.get(at).is_some_and(|r| r.file + r.len <= block) {
                at += 1;
            }
            let run = self.runs.get(at).filter(|r| r.file <= block)?;
            // At most 2^28: `DATA_SIZE_MAX` in blocks.
            u32::try_from(run.data + (block - run.file)).ok()
        })
    }
}

fn runs(content: &Content, ends: &BodyEnds) -> Result<Vec<Run>, ErofsError> {
    let mut runs: Vec<Run> = Vec::with_capacity(content.extents().len());
    // Where the extent before ended, in bytes of the file and of the data space.
    let mut before = (0, 0);
    for e in content.extents() {
        let (start, len) = (e.offset.0, e.range.len);
        let data = e.range.start.0;
        match runs.last_mut() {
            // Goes on where the one before ended, mid-block or not.
            Some(last) if before == (start, data) => last.len = (start + len).div_ceil(BLOCK) - last.file,
            last => {
                if !start.is_multiple_of(BLOCK) || !data.is_multiple_of(BLOCK) {
                    return Err(ErofsError::Unsupported("a piece of a file does not begin with a block"));
                }
                if last.is_some() && !ends.zeros_follow(before.1) {
                    return Err(ErofsError::Unsupported("a piece of a file ends inside a body"));
                }
                runs.push(Run {
                    file: start / BLOCK,
                    data: data / BLOCK,
                    len: len.div_ceil(BLOCK),
                });
            }
        }
        before = (start + len, data + len);
    }
    if !runs.is_empty() && !ends.zeros_follow(before.1) {
        return Err(ErofsError::Unsupported("a piece of a file ends inside a body"));
    }
    Ok(runs)
}
