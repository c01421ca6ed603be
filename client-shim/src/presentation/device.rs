//! The file that an EROFS mount takes its data from.
//!
//! In: a path. Out: how it is mounted. Invariant: what this process answers is never read directly: that would let the kernel cut a
//! read in two. Not here: the mount itself (`erofs_tree.rs`, `replace.rs`), which files are read directly (`whole.rs`).

use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) path: PathBuf,
    /// Past the page cache of the filesystem below.
    pub(super) direct: bool,
}

impl Device {
    /// A file of the FUSE mount.
    pub(super) fn asked(path: PathBuf) -> Self {
        Self { path, direct: false }
    }

    /// A whole layer's own file.
    pub(super) fn local(path: PathBuf, direct: bool) -> Self {
        Self { path, direct }
    }
}
