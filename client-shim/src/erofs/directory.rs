//! A directory as blocks of sorted names.
//!
//! In: a directory's entry. Out: its length, and its bytes block by block. Invariant: names ascend by their bytes over all
//! blocks, `.` and `..` among them (the kernel looks names up by halving); a name and its record are in one block.
//! Not here: where the blocks go (`layout.rs`).

use headstart_layer_format::toc::{EntryId, InodeId, Tree};

use super::format::{BLOCK, DIRENT_LEN, dirent};
use crate::fuse::attr::FileKind;

/// Names with their inodes, in order.
#[derive(Debug)]
pub(super) struct Directory<'a> {
    tree: &'a Tree,
    children: std::ops::Range<u32>,
    dots: [(&'static [u8], InodeId); 2],
}

type Name<'a> = (&'a [u8], InodeId);

impl<'a> Directory<'a> {
    pub(super) fn new(tree: &'a Tree, entry: EntryId) -> Self {
        let inode = |e: EntryId| tree.entry(e).map_or(InodeId::ROOT, |e| e.inode);
        let parent = tree.entry(entry).map_or(EntryId::ROOT, |e| e.parent);
        Self {
            tree,
            children: tree.children(entry),
            dots: [(b".", inode(entry)), (b"..", inode(parent))],
        }
    }

    fn names(&self) -> impl Iterator<Item = Name<'a>> + '_ {
        let tree = self.tree;
        let own = self
            .children
            .clone()
            .filter_map(move |at| tree.entry(EntryId(at)))
            .map(|e| (&*e.name, e.inode));
        let (mut own, mut dots) = (own.peekable(), self.dots.iter().copied().peekable());
        std::iter::from_fn(move || match (own.peek(), dots.peek()) {
            (Some(name), Some(dot)) if dot.0 < name.0 => dots.next(),
            (None, _) => dots.next(),
            _ => own.next(),
        })
    }

    /// Length of all but the last block is that of a block; of the last what it holds.
    pub(super) fn size(&self) -> u64 {
        let (mut full, mut used) = (0, 0);
        for (name, _) in self.names() {
            let len = (DIRENT_LEN + name.len()) as u64;
            if used + len > BLOCK {
                full += BLOCK;
                used = 0;
            }
            used += len;
        }
        full + used
    }

    /// Gives each block's content to `visit`, the last one cut to its length.
    pub(super) fn blocks<E>(
        &self,
        nid: impl Fn(InodeId) -> u64,
        mut visit: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut pending: Vec<Name<'a>> = Vec::new();
        let mut used = 0;
        for name in self.names() {
            let len = DIRENT_LEN + name.0.len();
            if used + len > BLOCK as usize {
                let mut block = self.block(&pending, &nid);
                block.resize(BLOCK as usize, 0);
                visit(&block)?;
                pending.clear();
                used = 0;
            }
            pending.push(name);
            used += len;
        }
        visit(&self.block(&pending, &nid))
    }

    fn block(&self, names: &[Name<'a>], nid: &impl Fn(InodeId) -> u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(BLOCK as usize);
        let mut name_at = names.len() * DIRENT_LEN;
        for (name, id) in names {
            let kind = self
                .tree
                .inode(*id)
                .map_or(FileKind::Regular, |i| FileKind::of(&i.kind));
            // Within a block, so below 4096.
            out.extend_from_slice(&dirent(nid(*id), name_at as u16, kind));
            name_at += name.len();
        }
        for (name, _) in names {
            out.extend_from_slice(name);
        }
        out
    }
}
