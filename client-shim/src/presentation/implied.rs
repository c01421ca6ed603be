//! Directories that a layer has without an entry for them, over ones that a lower layer does describe.
//!
//! In: the TOCs of a stack. Out: the first directory that the stack, shown layer by layer, would give other owner, mode or
//! extended attributes than unpacking does. Invariant: no false "none": a stack without an answer looks as unpacked, but
//! for modification times of such directories.
//! Not here: what to do about it (the snapshotter declines).
//!
//! A runtime that unpacks `home/app/x` without an entry for `home/app` copies that directory's attributes from the layers
//! below (containerd: `mkparent` with the parents of the snapshot). overlayfs takes a merged directory's attributes from
//! its topmost layer, and a layer's tree is shown alike in every stack, so it cannot know them: 0755 root:root.

use headstart_layer_format::Toc;
use headstart_layer_format::toc::{EntryId, Inode, Kind};

/// Path of such a directory. `stack`: bottom layer first. `over_unpacked`: below the stack are layers without a TOC, in
/// which any directory may be.
pub fn conflict(stack: &[&Toc], over_unpacked: bool) -> Option<Vec<u8>> {
    stack.iter().enumerate().find_map(|(at, upper)| {
        let tree = upper.tree();
        tree.entries().iter().enumerate().find_map(|(entry, e)| {
            let inode = tree.inode(e.inode)?;
            if !matches!(inode.kind, Kind::Directory { implied: true, .. }) {
                return None;
            }
            let path = tree.path(EntryId(u32::try_from(entry).ok()?));
            let differs = match described_below(&stack[..at], &path) {
                Some(below) => !is_plain(below),
                // The root's attributes are the snapshotter's own matter: it copies them from below.
                None => over_unpacked && !path.is_empty(),
            };
            differs.then_some(path)
        })
    })
}

/// The directory as the topmost of `stack` with an entry for it has it. Whiteouts are not looked at: a directory that was
/// hidden meanwhile only makes the answer too careful.
fn described_below<'a>(stack: &[&'a Toc], path: &[u8]) -> Option<&'a Inode> {
    stack.iter().rev().find_map(|toc| {
        let entry = toc.tree().entry(toc.tree().find(path)?)?;
        let inode = toc.tree().inode(entry.inode)?;
        matches!(inode.kind, Kind::Directory { implied: false, .. }).then_some(inode)
    })
}

/// Whether the directory is what an implied one is shown as.
fn is_plain(inode: &Inode) -> bool {
    (inode.mode & 0o7777, inode.uid, inode.gid) == (0o755, 0, 0) && inode.xattrs.is_empty()
}
