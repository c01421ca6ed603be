//! Blocks of all trees of the node that were read lately.
//!
//! In: blocks, checked. Out: the same, without a read. Invariant: at most [`BYTES_MAX`], whatever is mounted and walked; the
//! least recently used goes first. Not here: reading and checking (`TreeFile`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moka::policy::EvictionPolicy;
use moka::sync::Cache;

use super::block::{BLOCK_LEN, Block};

/// What a walk comes back to: it reads inodes and names in the order in which they lie, so a few of each layer's would do. The
/// kernel remembers what it was told, and what it forgets is in the page cache still.
const BYTES_MAX: u64 = 2 << 20;

#[derive(Debug)]
pub struct Blocks {
    /// By tree and number.
    blocks: Cache<(u64, u32), Arc<Block>>,
    next_tree: AtomicU64,
}

impl Default for Blocks {
    fn default() -> Self {
        let blocks = Cache::builder()
            .max_capacity(BYTES_MAX / BLOCK_LEN as u64)
            // By frequency of use, a walk's blocks would each be refused a few times.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self {
            blocks,
            next_tree: AtomicU64::new(0),
        }
    }
}

impl Blocks {
    /// A tree's name here: none has it again, so blocks of one that is gone are never another's.
    pub(super) fn enter(&self) -> u64 {
        self.next_tree.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn get(&self, tree: u64, number: u32) -> Option<Arc<Block>> {
        self.blocks.get(&(tree, number))
    }

    pub(super) fn put(&self, tree: u64, number: u32, block: &Arc<Block>) {
        self.blocks.insert((tree, number), Arc::clone(block));
    }
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::TocDigest;

    use super::super::block::Seal;
    use super::*;

    #[test]
    fn what_was_read_last_stays_and_no_more_than_the_bound() {
        let blocks = Blocks::default();
        let most = (BYTES_MAX / BLOCK_LEN as u64) as u32;
        let tree = blocks.enter();
        let block = Arc::new(Block::seal(Seal::of(&TocDigest::of(b"t")), 0, 0, 0, b""));
        for number in 0..4 * most {
            blocks.put(tree, number, &block);
        }
        blocks.blocks.run_pending_tasks();
        assert!(blocks.blocks.entry_count() <= u64::from(most));
        assert!(blocks.get(tree, 4 * most - 1).is_some());
        assert!(blocks.get(tree, 0).is_none());
        assert!(blocks.get(blocks.enter(), 4 * most - 1).is_none());
    }
}
