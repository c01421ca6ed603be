//! A directory as blocks of sorted names.
//!
//! In: a directory's entry. Out: its length, and its bytes block by block. Invariant: names ascend by their bytes over all
//! blocks, `.` and `..` among them (the kernel looks names up by halving); a name and its record are in one block.
//! Not here: where the blocks go (`layout.rs`).

use headstart_layer_format::toc::{Entry, EntryId, InodeId, Tree};

use super::format::{BLOCK, DIRENT_LEN, dirent};
use crate::fuse::attr::FileKind;

/// Names with their inodes, in order.
#[derive(Debug)]
pub(super) struct Directory<'a> {
    tree: &'a Tree,
    /// Names before `.`, between the two, and behind `..`.
    own: [&'a [Entry]; 3],
    dots: [Name<'a>; 2],
}

type Name<'a> = (&'a [u8], InodeId);

const DOTS: [&[u8]; 2] = [b".", b".."];

impl<'a> Directory<'a> {
    /// `rest`: the tree's entries from the directory's first child on, and then those behind its last.
    pub(super) fn next(tree: &'a Tree, entry: EntryId, rest: &mut &'a [Entry]) -> Self {
        let inode = |e: EntryId| tree.entry(e).map_or(InodeId::ROOT, |e| e.inode);
        let parent = tree.entry(entry).map_or(EntryId::ROOT, |e| e.parent);
        let count = rest.iter().take_while(|e| e.parent == entry).count();
        let (own, behind) = rest.split_at(count);
        *rest = behind;
        let (first, others) = own.split_at(before(own, DOTS[0]));
        let (second, third) = others.split_at(before(others, DOTS[1]));
        Self {
            tree,
            own: [first, second, third],
            dots: [(DOTS[0], inode(entry)), (DOTS[1], inode(parent))],
        }
    }

    fn names(&self) -> impl Iterator<Item = Name<'a>> + use<'a> {
        let own = self.own.map(|entries| entries.iter().map(|e| (&*e.name, e.inode)));
        let ([first, second, third], [dot, dots]) = (own, self.dots.map(std::iter::once));
        first.chain(dot).chain(second).chain(dots).chain(third)
    }

    /// Length of all but the last block is that of a block; of the last what it holds.
    pub(super) fn size(&self) -> u64 {
        let (mut full, mut used) = (0, 0);
        self.names().for_each(|(name, _)| {
            let len = (DIRENT_LEN + name.len()) as u64;
            if used + len > BLOCK {
                full += BLOCK;
                used = 0;
            }
            used += len;
        });
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

/// How many are before `name`: mostly none.
fn before(entries: &[Entry], name: &[u8]) -> usize {
    match entries.first() {
        Some(first) if *first.name < *name => entries.partition_point(|e| *e.name < *name),
        _ => 0,
    }
}
