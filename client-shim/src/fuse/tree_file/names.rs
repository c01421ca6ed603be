//! Blocks of names.
//!
//! In: entries in the tree's order, or a block of them. Out: the other. Invariant: a block's names are entries that follow each
//! other, ascending within a directory; whatever bytes are decoded, nothing panics.
//! Not here: which block has which entries (the index, in `mod.rs`).
//!
//! ```text
//! { inode u32, where its name ends among the names u16 } ...   as many as the block's head says
//! names
//! ```

use headstart_layer_format::toc::{Entry, InodeId};

use super::block::{BODY_LEN, Block, u16_at, u32_at};

const SLOT_LEN: usize = 6;

/// Entries for one block.
#[derive(Debug, Default)]
pub(super) struct Filling {
    slots: Vec<u8>,
    names: Vec<u8>,
    pub(super) count: u16,
}

impl Filling {
    /// False when there is no room: take the block first. An empty one has room for any name.
    pub(super) fn add(&mut self, entry: &Entry) -> bool {
        let end = self.names.len() + entry.name.len();
        if self.slots.len() + SLOT_LEN + end > BODY_LEN {
            return false;
        }
        self.names.extend_from_slice(&entry.name);
        self.slots.extend(entry.inode.0.to_le_bytes());
        self.slots.extend((end as u16).to_le_bytes());
        self.count += 1;
        true
    }

    pub(super) fn take(&mut self) -> (u16, Vec<u8>) {
        let mut body = std::mem::take(&mut self.slots);
        body.append(&mut self.names);
        (std::mem::take(&mut self.count), body)
    }
}

/// The `at`th entry of a block.
pub(super) fn entry(block: &Block, at: usize) -> Option<(&[u8], InodeId)> {
    let count = usize::from(block.count());
    if at >= count {
        return None;
    }
    let (slots, names) = block.body().split_at_checked(count * SLOT_LEN)?;
    let end = |at: usize| u16_at(slots, at * SLOT_LEN + 4).map(usize::from);
    let start = if at == 0 { 0 } else { end(at - 1)? };
    let name = names.get(start..end(at)?)?;
    Some((name, InodeId(u32_at(slots, at * SLOT_LEN)?)))
}
