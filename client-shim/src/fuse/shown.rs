//! A layer's tree with what the kernel asks for that the TOC does not store.
//!
//! In: a layer. Out: its tree, its directories, and the attributes that are shown. Invariant: derived once from an
//! immutable tree, when somebody first asks: most layers are shown as images, and nobody does. Then it stays in memory.
//! Not here: answers in the terms of requests (`fuse/tree_fs.rs`).

use std::sync::{Arc, OnceLock};

use headstart_layer_format::Toc;
use headstart_layer_format::toc::{EntryId, Inode, InodeId, Kind, Tree, Xattr};

use super::directories::Directories;
use super::tree_fs::FsError;
use crate::cache::Layer;

/// Marks a directory that hides all below it in lower layers (Linux, Documentation/filesystems/overlayfs.rst).
pub(crate) const OPAQUE_NAME: &[u8] = b"trusted.overlay.opaque";
pub(crate) const OPAQUE_VALUE: &[u8] = b"y";
/// Runtimes do not unpack these (a layer could steer overlayfs with them), so they are not shown either.
const HIDDEN_PREFIX: &[u8] = b"trusted.";

#[derive(Debug)]
pub(super) struct Shown {
    pub(super) layer: Arc<Layer>,
    whole: OnceLock<Whole>,
}

/// What is needed to answer for names.
#[derive(Debug)]
pub(super) struct Whole {
    pub(super) toc: Arc<Toc>,
    directories: Directories,
}

impl Shown {
    pub(super) fn new(layer: Arc<Layer>) -> Self {
        Self {
            layer,
            whole: OnceLock::new(),
        }
    }

    /// Reads a file the first time. Two who come first together have the same TOC.
    pub(super) fn whole(&self) -> Result<&Whole, FsError> {
        if let Some(whole) = self.whole.get() {
            return Ok(whole);
        }
        let toc = self.layer.contents().toc().map_err(|error| {
            tracing::error!(layer = %self.layer.digest(), %error, "layer-tree-unreadable");
            FsError::Io
        })?;
        let directories = Directories::of(toc.tree());
        Ok(self.whole.get_or_init(|| Whole { toc, directories }))
    }
}

impl Whole {
    pub(super) fn tree(&self) -> &Tree {
        self.toc.tree()
    }

    pub(super) fn inode(&self, id: InodeId) -> Option<&Inode> {
        self.tree().inode(id)
    }

    pub(super) fn directory(&self, id: InodeId) -> Option<EntryId> {
        self.directories.entry(id)
    }

    /// The directory that holds a directory; itself for the layer's root.
    pub(super) fn parent(&self, id: InodeId) -> Option<InodeId> {
        let entry = self.tree().entry(self.directory(id)?)?;
        Some(self.tree().entry(entry.parent)?.inode)
    }

    pub(super) fn nlink(&self, id: InodeId) -> u32 {
        self.directories.nlink(self.tree(), id)
    }
}

/// The attributes of an inode that are shown as they are.
pub(crate) fn plain_xattrs(inode: &Inode) -> impl Iterator<Item = &Xattr> {
    inode.xattrs.iter().filter(|x| !x.name.starts_with(HIDDEN_PREFIX))
}

pub(crate) fn is_opaque(inode: &Inode) -> bool {
    matches!(inode.kind, Kind::Directory { opaque: true, .. })
}
