//! A regular file's content as chunks of the data space.
//!
//! In: extents. Out: a chunk size and the block of each chunk. Invariant: what the chunks show is what the extents say,
//! byte for byte; else it is an error. The size is the largest that does, so a file in one piece is one chunk.
//! Not here: writing them (`writer.rs`).

use std::cell::Cell;

use headstart_layer_format::toc::{Content, Skeleton};

use super::format::BLOCK;
use super::{ErofsError, INDEXES_MAX};

/// The format has five bits for it.
const BITS_MAX: u32 = 31;

/// Where bodies end in the data space: behind these offsets there are zeros up to the next block.
#[derive(Debug)]
pub(super) struct BodyEnds {
    ends: Vec<u64>,
    /// Behind the one that was found last: bodies mostly lie in the order in which files are asked about.
    next: Cell<usize>,
}

impl BodyEnds {
    pub(super) fn of(skeleton: &Skeleton) -> Self {
        let mut start = 0u64;
        let ends = skeleton.bodies().iter().map(|body| {
            // The sum was checked against the data space when the skeleton was decoded.
            let end = start.saturating_add(body.len);
            start = end.div_ceil(BLOCK).saturating_mul(BLOCK);
            end
        });
        Self {
            ends: ends.collect(),
            next: Cell::default(),
        }
    }

    fn zeros_follow(&self, end: u64) -> bool {
        if end.is_multiple_of(BLOCK) {
            return true;
        }
        let next = self.next.get();
        let found = match self.ends.get(next) == Some(&end) {
            true => Some(next),
            false => self.ends.binary_search(&end).ok(),
        };
        if let Some(at) = found {
            self.next.set(at + 1);
        }
        found.is_some()
    }
}

#[derive(Debug)]
pub(super) struct ChunkMap {
    /// Chunks have 2^this blocks.
    pub(super) bits: u8,
    pub(super) count: u64,
    /// Of the whole file.
    blocks: u64,
    runs: Runs,
}

/// In the order of the file. Most files are one, which takes no allocation.
#[derive(Debug, Default)]
struct Runs {
    first: Option<Run>,
    others: Vec<Run>,
}

impl Runs {
    fn push(&mut self, run: Run) {
        match self.first {
            None => self.first = Some(run),
            Some(_) => self.others.push(run),
        }
    }

    fn get(&self, at: usize) -> Option<&Run> {
        match at.checked_sub(1) {
            None => self.first.as_ref(),
            Some(at) => self.others.get(at),
        }
    }

    fn last_mut(&mut self) -> Option<&mut Run> {
        self.others.last_mut().or(self.first.as_mut())
    }

    fn iter(&self) -> impl Iterator<Item = &Run> {
        self.first.iter().chain(&self.others)
    }
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
            blocks,
            runs,
        })
    }

    /// The device's block that is all of the file.
    pub(super) fn only_block(&self) -> Option<u32> {
        let run = self.runs.first.filter(|_| self.blocks == 1)?;
        // At most 2^28: `DATA_SIZE_MAX` in blocks.
        u32::try_from(run.data).ok()
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

fn runs(content: &Content, ends: &BodyEnds) -> Result<Runs, ErofsError> {
    let mut runs = Runs::default();
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
    if runs.first.is_some() && !ends.zeros_follow(before.1) {
        return Err(ErofsError::Unsupported("a piece of a file ends inside a body"));
    }
    Ok(runs)
}
