//! Where everything of an image is.
//!
//! In: a TOC. Out: the offset of every inode and the beginning of each area; then, again and in order, every inode's
//! place, and the place of those that have blocks. Invariant: all rounds run the same code over the same tree, so what was
//! measured is what is written; a tail lies within one block. Memory: 12 bytes an inode.
//! Not here: the bytes (`writer.rs`).

use headstart_layer_format::Toc;
use headstart_layer_format::toc::{Entry, EntryId, Inode, InodeId, Kind};

use super::chunk_map::{BodyEnds, ChunkMap};
use super::directory::Directory;
use super::format::{BLOCK, Data, Form, INDEX_LEN, SLOT};
use super::times::{Epoch, ShortTimes};
use super::xattrs::Xattrs;
use super::{ErofsError, IMAGE_SIZE_MAX, INDEXES_MAX};
use crate::fuse::attr::Attr;
use crate::fuse::directories::Directories;
use crate::fuse::node_id::Node;

#[derive(Debug)]
pub(super) struct Layout<'a> {
    pub(super) toc: &'a Toc,
    pub(super) directories: Directories,
    pub(super) xattrs: Xattrs<'a>,
    pub(super) epoch: Epoch,
    ends: BodyEnds,
    /// By inode: its number, which is its offset in slots.
    nids: Vec<u32>,
    pub(super) xattr_block: u32,
    pub(super) data_block: u32,
    pub(super) blocks: u32,
}

/// What an inode contains, as far as it is written behind it or into blocks.
#[derive(Debug)]
pub(super) enum Bytes<'a> {
    None,
    Chunks(ChunkMap),
    Target(&'a [u8]),
    Directory(Directory<'a>),
}

#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) id: InodeId,
    pub(super) attr: Attr,
    pub(super) form: Form,
    pub(super) offset: u64,
    /// Bytes of attributes.
    pub(super) xattrs: Vec<u8>,
    /// Length as the format counts it.
    pub(super) size: u64,
    pub(super) data: Data,
    pub(super) bytes: Bytes<'a>,
}

/// Counters of one round.
#[derive(Debug)]
struct Cursor<'a> {
    offset: u64,
    block: u64,
    indexes: u64,
    /// Those of directories to come. Directories are in the order of their entries, which are in the order of what they are in.
    entries: &'a [Entry],
}

impl<'a> Layout<'a> {
    pub(super) fn of(toc: &'a Toc, short: ShortTimes) -> Result<Self, ErofsError> {
        let mut layout = Self {
            toc,
            directories: Directories::of(toc.tree()),
            xattrs: Xattrs::of(toc.tree())?,
            epoch: Epoch::of(toc.tree(), short),
            ends: BodyEnds::of(toc.skeleton()),
            nids: Vec::new(),
            xattr_block: 0,
            data_block: 0,
            blocks: 0,
        };
        let mut nids = Vec::with_capacity(toc.tree().inodes().len());
        let end = layout.places(
            |_| true,
            |place| {
                nids.push((place.offset / SLOT) as u32);
                Ok(())
            },
        )?;
        layout.nids = nids;
        let xattr_block = end.offset.div_ceil(BLOCK);
        let data_block = xattr_block + layout.xattrs.area_len().div_ceil(BLOCK);
        let blocks = data_block + end.block;
        // Below it every number of ours has room in its field.
        if blocks > IMAGE_SIZE_MAX / BLOCK {
            return Err(too_large());
        }
        (layout.xattr_block, layout.data_block) = (xattr_block as u32, data_block as u32);
        layout.blocks = blocks as u32;
        Ok(layout)
    }

    pub(super) fn nid(&self, id: InodeId) -> u64 {
        self.nids.get(id.0 as usize).copied().map_or(0, u64::from)
    }

    /// Visits every inode in order.
    pub(super) fn each(&self, visit: impl FnMut(Place<'a>) -> Result<(), ErofsError>) -> Result<(), ErofsError> {
        self.places(|_| true, visit).map(|_| ())
    }

    /// Visits in order those inodes that may have blocks in the last area.
    pub(super) fn each_with_blocks(
        &self,
        visit: impl FnMut(Place<'a>) -> Result<(), ErofsError>,
    ) -> Result<(), ErofsError> {
        let has_blocks = |kind: &Kind| matches!(kind, Kind::Directory { .. } | Kind::Symlink { .. });
        self.places(has_blocks, visit).map(|_| ())
    }

    fn places(
        &self,
        of: impl Fn(&Kind) -> bool,
        mut visit: impl FnMut(Place<'a>) -> Result<(), ErofsError>,
    ) -> Result<Cursor<'a>, ErofsError> {
        let mut cursor = Cursor {
            offset: BLOCK,
            block: u64::from(self.data_block),
            indexes: 0,
            // But for the root.
            entries: self.toc.tree().entries().get(1..).unwrap_or_default(),
        };
        let inodes = self.toc.tree().inodes().iter().enumerate();
        for (at, inode) in inodes.filter(|(_, inode)| of(&inode.kind)) {
            let place = self.place(InodeId(at as u32), inode, &mut cursor)?;
            if cursor.offset > IMAGE_SIZE_MAX || cursor.block > IMAGE_SIZE_MAX / BLOCK {
                return Err(too_large());
            }
            visit(place)?;
        }
        Ok(cursor)
    }

    fn place(&self, id: InodeId, inode: &'a Inode, cursor: &mut Cursor<'a>) -> Result<Place<'a>, ErofsError> {
        let mut xattrs = Vec::new();
        self.xattrs.body(inode, &mut xattrs)?;
        let (size, bytes) = self.bytes(id, inode, &mut cursor.entries)?;
        let node = Node::File { slot: 0, inode: id };
        let attr = Attr::of(node, inode, self.directories.nlink(self.toc.tree(), id));
        let form = Form::of(&attr, size, self.epoch.until(attr.mtime));
        // Known from the second round on, which may leave inodes out.
        let known = self.nids.get(id.0 as usize).map(|nid| u64::from(*nid) * SLOT);
        let mut offset = known.unwrap_or(cursor.offset.next_multiple_of(SLOT));
        let head = form.len() + xattrs.len() as u64;
        cursor.offset = offset + head;
        let data = match &bytes {
            Bytes::None => Data::None,
            Bytes::Chunks(map) => match map.only_block() {
                // Found without an index: there is nothing behind the inode. Not so several: of those that name no device the
                // kernel reads each page by itself. In the first round `blocks` is 0.
                Some(block) => Data::Blocks(self.blocks + block),
                None => {
                    cursor.indexes += map.count;
                    if cursor.indexes > INDEXES_MAX {
                        return Err(ErofsError::OverLimit {
                            what: "chunk indexes",
                            max: INDEXES_MAX,
                        });
                    }
                    cursor.offset = cursor.offset.next_multiple_of(INDEX_LEN) + map.count * INDEX_LEN;
                    Data::Chunks(map.bits)
                }
            },
            Bytes::Target(_) | Bytes::Directory(_) => {
                // Directories' blocks are found by the number of the first; `data_block` is 0 in the first round.
                let first = cursor.block as u32;
                let tail = size % BLOCK;
                let room = |offset: u64| tail > 0 && (offset + head) % BLOCK + tail <= BLOCK;
                if !room(offset) && room(offset.next_multiple_of(BLOCK)) {
                    offset = offset.next_multiple_of(BLOCK);
                }
                match room(offset) {
                    true => {
                        cursor.offset = offset + head + tail;
                        cursor.block += size / BLOCK;
                        Data::Tail(first)
                    }
                    false => {
                        cursor.block += size.div_ceil(BLOCK);
                        Data::Blocks(first)
                    }
                }
            }
        };
        Ok(Place {
            id,
            attr,
            form,
            offset,
            xattrs,
            size,
            data,
            bytes,
        })
    }

    fn bytes(&self, id: InodeId, inode: &'a Inode, entries: &mut &'a [Entry]) -> Result<(u64, Bytes<'a>), ErofsError> {
        Ok(match &inode.kind {
            Kind::Directory { .. } => {
                let entry = self.directories.entry(id).unwrap_or(EntryId::ROOT);
                let directory = Directory::next(self.toc.tree(), entry, entries);
                (directory.size(), Bytes::Directory(directory))
            }
            Kind::Symlink { target } => (target.len() as u64, Bytes::Target(target)),
            Kind::Regular(content) if content.size() == 0 => (0, Bytes::None),
            Kind::Regular(content) => (content.size(), Bytes::Chunks(ChunkMap::of(content, &self.ends)?)),
            _ => (0, Bytes::None),
        })
    }
}

fn too_large() -> ErofsError {
    ErofsError::OverLimit {
        what: "the image",
        max: IMAGE_SIZE_MAX,
    }
}
