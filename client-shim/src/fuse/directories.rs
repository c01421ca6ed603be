//! What a tree says of its directories only by its other entries.
//!
//! In: a tree. Out: the entry of a directory by inode, and link counts. Invariant: derived once from an immutable tree;
//! 8 bytes an inode. Not here: the tree itself, which callers pass again.

use headstart_layer_format::toc::{EntryId, InodeId, Kind, Tree};

#[derive(Debug)]
pub(crate) struct Directories {
    /// By inode; [`NO_ENTRY`] for what is not a directory.
    entries: Vec<u32>,
    /// By inode: subdirectories.
    subdirectories: Vec<u32>,
}

const NO_ENTRY: u32 = u32::MAX;

impl Directories {
    pub(crate) fn of(tree: &Tree) -> Self {
        let mut entries = vec![NO_ENTRY; tree.inodes().len()];
        let mut subdirectories = vec![0; tree.inodes().len()];
        for (at, entry) in tree.entries().iter().enumerate() {
            let inode = entry.inode.0 as usize;
            if matches!(tree.inodes().get(inode).map(|i| &i.kind), Some(Kind::Directory { .. })) {
                entries[inode] = at as u32;
                if at > 0
                    && let Some(parent) = tree.entry(entry.parent)
                {
                    subdirectories[parent.inode.0 as usize] += 1;
                }
            }
        }
        Self {
            entries,
            subdirectories,
        }
    }

    /// The directory entry of a directory's inode: a directory has one name.
    pub(crate) fn entry(&self, id: InodeId) -> Option<EntryId> {
        let entry = *self.entries.get(id.0 as usize)?;
        (entry != NO_ENTRY).then_some(EntryId(entry))
    }

    /// Number of names, or for a directory 2 and its subdirectories.
    pub(crate) fn nlink(&self, tree: &Tree, id: InodeId) -> u32 {
        match self.entry(id) {
            Some(_) => 2 + self.subdirectories.get(id.0 as usize).copied().unwrap_or(0),
            None => tree.nlink(id),
        }
    }
}
