//! A layer's tree on this node's disk, so that it need not be in memory while the layer is shown.
//!
//! In: a TOC, once; then questions. Out: a file of blocks (`layout.rs`) in which everything has its place, and answers from
//! the few blocks that have them. Invariant: an answer is what the TOC says, or an error: every block is checked when it is
//! read (`block.rs`), and nothing that is read can end the process. In memory a tree takes 4 bytes for some 150 names, and
//! its share of the node's [`Blocks`].
//! Not here: what is done about a damaged file (`fuse/shown.rs`), answers in the terms of requests (`fuse/tree_fs.rs`).

mod block;
mod blocks;
mod layout;
mod names;
mod record;
mod writer;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use headstart_layer_format::toc::{InodeId, Xattr};
use headstart_layer_format::{LayerOffset, LayerRange, Toc, TocDigest};
use rustix::fs::MemfdFlags;

use super::attr::FileKind;
use block::{BLOCK_LEN, BODY_LEN, Block, Seal, u32_at, u64_at};
use layout::{Layout, NUMBERS_A_BLOCK, record_at};
use record::{Body, EXTENT_LEN};

pub use blocks::Blocks;
pub(crate) use record::Record;

/// Extents of a file that are looked at as a whole, for what is fetched along with a read: of a file with more, those that the
/// read touches.
const EXTENTS_NEAR: u64 = 1024;

/// Why there is no answer. Each text completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("read a layer's tree: its file is damaged, or of another TOC or version")]
    Damaged,
    #[error("read a layer's tree: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug)]
pub struct TreeFile {
    file: File,
    seal: Seal,
    layout: Layout,
    /// The first entry of each block of names.
    index: Box<[u32]>,
    blocks: Arc<Blocks>,
    /// Among the node's blocks.
    id: u64,
}

/// Bytes of a file at and after an offset.
#[derive(Debug, Default)]
pub(crate) struct Extents {
    /// What lies in what was asked for: place in the file, and in the data space.
    pub(crate) touched: Vec<(u64, LayerRange)>,
    /// All of the file, or as much of it as is near.
    pub(crate) bodies: Vec<LayerRange>,
}

impl TreeFile {
    /// Writes a TOC's tree in place of whatever is at `path`. A kill leaves what was there, and perhaps half a new one, which
    /// the next to write it writes over. Waits for no disk: what power loss tears is found when it is read.
    pub fn make(path: &Path, toc: &Toc, digest: &TocDigest) -> io::Result<()> {
        let new = path.with_extension("new");
        let made = File::create(&new).and_then(|file| writer::write(toc, Seal::of(digest), &file));
        let made = made.and_then(|()| std::fs::rename(&new, path));
        // As on a full disk, which needs the room.
        made.inspect_err(|_| drop(std::fs::remove_file(&new)))
    }

    /// As [`TreeFile::make`] and [`TreeFile::open`], in memory that no disk can damage.
    pub fn in_memory(toc: &Toc, digest: &TocDigest, blocks: &Arc<Blocks>) -> Result<Self, TreeError> {
        let memory = rustix::fs::memfd_create("headstart-tree", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
        let file = File::from(memory);
        writer::write(toc, Seal::of(digest), &file)?;
        Self::of(file, digest, blocks)
    }

    /// The tree of the TOC with this digest, if the file has that.
    pub fn open(path: &Path, digest: &TocDigest, blocks: &Arc<Blocks>) -> Result<Self, TreeError> {
        Self::of(File::open(path)?, digest, blocks)
    }

    fn of(file: File, digest: &TocDigest, blocks: &Arc<Blocks>) -> Result<Self, TreeError> {
        let (seal, len) = (Seal::of(digest), file.metadata()?.len());
        let header = read(&file, seal, 0)?;
        let layout = Layout::decode(header.body(), len).ok_or(TreeError::Damaged)?;
        let mut index = Vec::with_capacity(layout.name_blocks as usize);
        for at in 0..layout.index_blocks() {
            let block = read(&file, seal, layout.index() + at)?;
            let left = layout.name_blocks as usize - index.len();
            let numbers = (0..left.min(NUMBERS_A_BLOCK)).map_while(|at| u32_at(block.body(), at * 4));
            index.extend(numbers);
        }
        let ascends = index.is_sorted_by(|a, b| a < b) && index.first() == Some(&0);
        if !ascends || index.last() >= Some(&layout.entries) {
            return Err(TreeError::Damaged);
        }
        Ok(Self {
            file,
            seal,
            layout,
            index: index.into(),
            blocks: Arc::clone(blocks),
            id: blocks.enter(),
        })
    }

    /// Bytes of it.
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// `None` for an id of another tree.
    pub(crate) fn inode(&self, id: InodeId) -> Result<Option<Record>, TreeError> {
        self.inode_near(id, &mut None)
    }

    /// As [`TreeFile::inode`], for who asks for many in order. `near`: the block that had the last.
    fn inode_near(&self, id: InodeId, near: &mut Option<(u64, Arc<Block>)>) -> Result<Option<Record>, TreeError> {
        if id.0 >= self.layout.inodes {
            return Ok(None);
        }
        let (number, at) = record_at(id.0);
        let block = match near {
            Some((had, block)) if *had == number => &*block,
            _ => &near.insert((number, self.block(number)?)).1,
        };
        let record = block.body().get(at..).and_then(Record::decode);
        record.map(Some).ok_or(TreeError::Damaged)
    }

    /// The child of a directory called `name`.
    pub(crate) fn lookup(&self, dir: &Record, name: &[u8]) -> Result<Option<InodeId>, TreeError> {
        let (start, end) = self.children(dir)?;
        if start == end {
            return Ok(None);
        }
        // The last block whose first name among the directory's is not behind this one.
        let (mut low, mut high) = (self.names_block(start), self.names_block(end - 1));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            let block = self.names(middle)?;
            let (first, _) = names::entry(&block, 0).ok_or(TreeError::Damaged)?;
            match first <= name {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        let block = self.names(low)?;
        let (mut from, mut to) = self.within(&block, start, end);
        while from < to {
            let middle = from + (to - from) / 2;
            let (found, inode) = names::entry(&block, middle).ok_or(TreeError::Damaged)?;
            match found.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(inode)),
                std::cmp::Ordering::Less => from = middle + 1,
                std::cmp::Ordering::Greater => to = middle,
            }
        }
        Ok(None)
    }

    /// Calls `visit` with a directory's children from the `from`th on, in order of names, until it returns false.
    pub(super) fn list(
        &self,
        dir: &Record,
        from: u64,
        visit: &mut dyn FnMut(&[u8], InodeId, &Record) -> bool,
    ) -> Result<(), TreeError> {
        let (start, end) = self.children(dir)?;
        let mut next = start.saturating_add(u32::try_from(from).unwrap_or(u32::MAX)).min(end);
        let mut near = None;
        while next < end {
            let block = self.names(self.names_block(next))?;
            let (from, to) = self.within(&block, next, end);
            if from >= to {
                return Err(TreeError::Damaged);
            }
            for at in from..to {
                let (name, inode) = names::entry(&block, at).ok_or(TreeError::Damaged)?;
                let record = self.inode_near(inode, &mut near)?.ok_or(TreeError::Damaged)?;
                if !visit(name, inode, &record) {
                    return Ok(());
                }
                next += 1;
            }
        }
        Ok(())
    }

    /// The attributes that are shown as they are.
    pub(crate) fn xattrs(&self, of: &Record) -> Result<Vec<Xattr>, TreeError> {
        let bytes = self.heap(of.heap, u64::from(of.xattrs_len))?;
        record::xattrs(&bytes).ok_or(TreeError::Damaged)
    }

    /// Target of a symbolic link; `None` for anything else.
    pub(crate) fn link(&self, of: &Record) -> Result<Option<Vec<u8>>, TreeError> {
        match of.kind() {
            FileKind::Symlink => self.heap(beside(of)?, of.size()).map(Some),
            _ => Ok(None),
        }
    }

    /// Where the bytes of a regular file from `start` to `end` are. `None` for anything else.
    pub(crate) fn extents(&self, of: &Record, start: u64, end: u64) -> Result<Option<Extents>, TreeError> {
        let count = match of.body {
            Body::Sole { start: place } => {
                let only = Extent {
                    offset: 0,
                    range: range(place, of.size())?,
                };
                let touched = only.part(start, end)?.into_iter().collect();
                let bodies = vec![only.range];
                return Ok(Some(Extents { touched, bodies }));
            }
            Body::Extents { count } => count,
            _ => return Ok(None),
        };
        let list = beside(of)?;
        if count > self.layout.heap_len / EXTENT_LEN {
            return Err(TreeError::Damaged);
        }
        // The first that ends behind `start`.
        let (mut low, mut high) = (0, count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.extent(list, middle)?.end()? <= start {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        let mut found = Extents::default();
        let is_near = count <= EXTENTS_NEAR;
        for at in if is_near { 0 } else { low }..count {
            let extent = self.extent(list, at)?;
            let part = extent.part(start, end)?;
            if part.is_none() && !is_near {
                break;
            }
            found.touched.extend(part);
            found.bodies.push(extent.range);
        }
        Ok(Some(found))
    }

    fn extent(&self, list: u64, at: u64) -> Result<Extent, TreeError> {
        let bytes = self.heap(list.saturating_add(at * EXTENT_LEN), EXTENT_LEN)?;
        let number = |at| u64_at(&bytes, at).ok_or(TreeError::Damaged);
        Ok(Extent {
            offset: number(0)?,
            range: range(number(8)?, number(16)?)?,
        })
    }

    /// Numbers of a directory's entries; none for anything else.
    fn children(&self, dir: &Record) -> Result<(u32, u32), TreeError> {
        match dir.body {
            Body::Directory { start, end, .. } if start <= end && end <= self.layout.entries => Ok((start, end)),
            Body::Directory { .. } => Err(TreeError::Damaged),
            _ => Ok((0, 0)),
        }
    }

    /// Which block of names has an entry.
    fn names_block(&self, entry: u32) -> usize {
        // The first block has entry 0.
        self.index.partition_point(|first| *first <= entry).saturating_sub(1)
    }

    fn names(&self, at: usize) -> Result<Arc<Block>, TreeError> {
        let block = self.block(self.layout.names() + at as u64)?;
        (self.index.get(at) == Some(&block.first()))
            .then_some(block)
            .ok_or(TreeError::Damaged)
    }

    /// Which entries of a block are from `start` to `end`.
    fn within(&self, block: &Block, start: u32, end: u32) -> (usize, usize) {
        let at = |entry: u32| entry.saturating_sub(block.first()) as usize;
        (at(start), at(end).min(usize::from(block.count())))
    }

    fn heap(&self, start: u64, len: u64) -> Result<Vec<u8>, TreeError> {
        if start.checked_add(len).is_none_or(|end| end > self.layout.heap_len) {
            return Err(TreeError::Damaged);
        }
        let mut out = Vec::with_capacity(len as usize);
        while (out.len() as u64) < len {
            let at = start + out.len() as u64;
            let block = self.block(self.layout.heap() + at / BODY_LEN as u64)?;
            let part = &block.body()[(at % BODY_LEN as u64) as usize..];
            out.extend_from_slice(&part[..part.len().min(len as usize - out.len())]);
        }
        Ok(out)
    }

    fn block(&self, number: u64) -> Result<Arc<Block>, TreeError> {
        let number = u32::try_from(number).map_err(|_| TreeError::Damaged)?;
        if let Some(block) = self.blocks.get(self.id, number) {
            return Ok(block);
        }
        let block = Arc::new(read(&self.file, self.seal, u64::from(number))?);
        self.blocks.put(self.id, number, &block);
        Ok(block)
    }
}

/// A piece of a regular file.
#[derive(Clone, Copy, Debug)]
struct Extent {
    offset: u64,
    range: LayerRange,
}

impl Extent {
    fn end(&self) -> Result<u64, TreeError> {
        self.offset.checked_add(self.range.len).ok_or(TreeError::Damaged)
    }

    /// What of it is from `start` to `end`.
    fn part(&self, start: u64, end: u64) -> Result<Option<(u64, LayerRange)>, TreeError> {
        let (from, to) = (self.offset.max(start), self.end()?.min(end));
        if from >= to {
            return Ok(None);
        }
        let range = range(self.range.start.0 + (from - self.offset), to - from)?;
        Ok(Some((from, range)))
    }
}

/// Behind an inode's attributes in the heap.
fn beside(record: &Record) -> Result<u64, TreeError> {
    let at = record.heap.checked_add(u64::from(record.xattrs_len));
    at.ok_or(TreeError::Damaged)
}

fn range(start: u64, len: u64) -> Result<LayerRange, TreeError> {
    start.checked_add(len).ok_or(TreeError::Damaged)?;
    Ok(LayerRange {
        start: LayerOffset(start),
        len,
    })
}

fn read(file: &File, seal: Seal, number: u64) -> Result<Block, TreeError> {
    let mut bytes = Box::new([0; BLOCK_LEN]);
    file.read_exact_at(&mut bytes[..], number * BLOCK_LEN as u64)
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TreeError::Damaged,
            _ => TreeError::Io(error),
        })?;
    let number = u32::try_from(number).map_err(|_| TreeError::Damaged)?;
    Block::open(seal, number, bytes).ok_or(TreeError::Damaged)
}

#[cfg(test)]
mod tests;
