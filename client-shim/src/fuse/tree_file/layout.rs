//! Where what is in a tree file.
//!
//! In: numbers of inodes, names, and bytes beside them. Out: block numbers, and the header that says so. Invariant: a layout
//! that was decoded is of a file of exactly its length. Not here: what is in blocks.
//!
//! ```text
//! block 0   header
//!       ... inodes, a record each (`record.rs`), in the TOC's order
//!       ... names (`names.rs`), in the TOC's order: a directory's are together, and ascend
//!       ... heap: what a record has no room for, in the order of inodes
//!       ... index: the first entry of each block of names
//! ```

use super::block::{BLOCK_LEN, BODY_LEN, u32_at, u64_at};
use super::record::RECORD_LEN;

pub(super) const RECORDS_A_BLOCK: usize = BODY_LEN / RECORD_LEN;
/// Of the index.
pub(super) const NUMBERS_A_BLOCK: usize = BODY_LEN / 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) inodes: u32,
    pub(super) entries: u32,
    pub(super) name_blocks: u32,
    pub(super) heap_len: u64,
}

impl Layout {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for n in [self.inodes, self.entries, self.name_blocks] {
            out.extend(n.to_le_bytes());
        }
        out.extend(self.heap_len.to_le_bytes());
        out
    }

    /// `None`: it is of another file than one of this length.
    pub(super) fn decode(bytes: &[u8], file_len: u64) -> Option<Self> {
        let layout = Self {
            inodes: u32_at(bytes, 0)?,
            entries: u32_at(bytes, 4)?,
            name_blocks: u32_at(bytes, 8)?,
            heap_len: u64_at(bytes, 12)?,
        };
        let blocks = layout.index().checked_add(layout.index_blocks())?;
        (blocks.checked_mul(BLOCK_LEN as u64)? == file_len).then_some(layout)
    }

    pub(super) fn names(&self) -> u64 {
        1 + u64::from(self.inodes).div_ceil(RECORDS_A_BLOCK as u64)
    }

    pub(super) fn heap(&self) -> u64 {
        self.names() + u64::from(self.name_blocks)
    }

    pub(super) fn index(&self) -> u64 {
        self.heap() + self.heap_len.div_ceil(BODY_LEN as u64)
    }

    pub(super) fn index_blocks(&self) -> u64 {
        u64::from(self.name_blocks).div_ceil(NUMBERS_A_BLOCK as u64)
    }
}

/// Block and place in its body of an inode's record.
pub(super) fn record_at(inode: u32) -> (u64, usize) {
    let at = inode as usize;
    let block = 1 + (at / RECORDS_A_BLOCK) as u64;
    (block, at % RECORDS_A_BLOCK * RECORD_LEN)
}
