//! A layer's tree with what the kernel asks for that the TOC does not store.
//!
//! In: a layer. Out: entry of a directory by inode, and directory link counts. Invariant: derived once from an immutable
//! tree; 8 bytes an inode. Not here: answers in the terms of requests (`fuse/tree_fs.rs`).

use std::sync::Arc;

use headstart_layer_format::toc::{EntryId, Inode, InodeId, Kind, Tree, Xattr};

use crate::cache::Layer;

/// Marks a directory that hides all below it in lower layers (Linux, Documentation/filesystems/overlayfs.rst).
pub(super) const OPAQUE_NAME: &[u8] = b"trusted.overlay.opaque";
pub(super) const OPAQUE_VALUE: &[u8] = b"y";
/// Runtimes do not unpack these (a layer could steer overlayfs with them), so they are not shown either.
const HIDDEN_PREFIX: &[u8] = b"trusted.";

#[derive(Debug)]
pub(super) struct Shown {
    pub(super) layer: Arc<Layer>,
    /// By inode; [`NO_ENTRY`] for what is not a directory.
    entries: Vec<u32>,
    /// By inode: subdirectories.
    subdirectories: Vec<u32>,
}

const NO_ENTRY: u32 = u32::MAX;

impl Shown {
    pub(super) fn new(layer: Arc<Layer>) -> Self {
        let tree = layer.toc().tree();
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
            layer,
            entries,
            subdirectories,
        }
    }

    pub(super) fn tree(&self) -> &Tree {
        self.layer.toc().tree()
    }

    pub(super) fn inode(&self, id: InodeId) -> Option<&Inode> {
        self.tree().inode(id)
    }

    /// The directory entry of a directory's inode: a directory has one name.
    pub(super) fn directory(&self, id: InodeId) -> Option<EntryId> {
        let entry = *self.entries.get(id.0 as usize)?;
        (entry != NO_ENTRY).then_some(EntryId(entry))
    }

    /// The directory that holds a directory; itself for the layer's root.
    pub(super) fn parent(&self, id: InodeId) -> Option<InodeId> {
        let entry = self.tree().entry(self.directory(id)?)?;
        Some(self.tree().entry(entry.parent)?.inode)
    }

    pub(super) fn nlink(&self, id: InodeId) -> u32 {
        match self.directory(id) {
            Some(_) => 2 + self.subdirectories.get(id.0 as usize).copied().unwrap_or(0),
            None => self.tree().nlink(id),
        }
    }
}

/// The attributes of an inode that are shown as they are.
pub(super) fn plain_xattrs(inode: &Inode) -> impl Iterator<Item = &Xattr> {
    inode.xattrs.iter().filter(|x| !x.name.starts_with(HIDDEN_PREFIX))
}

pub(super) fn is_opaque(inode: &Inode) -> bool {
    matches!(inode.kind, Kind::Directory { opaque: true, .. })
}
