//! Writing a tree file.
//!
//! In: a TOC. Out: its tree in blocks. Invariant: equal TOCs make equal files; the header is written last, so what was not
//! written to its end is no tree. Memory: 8 bytes an inode, and what one inode has in the heap.
//! Not here: names of files, and when they are written (`TreeFile::make`).

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};

use headstart_layer_format::Toc;
use headstart_layer_format::toc::{EntryId, InodeId};

use super::block::{BLOCK_LEN, BODY_LEN, Block, Seal};
use super::layout::{Layout, NUMBERS_A_BLOCK, RECORDS_A_BLOCK};
use super::names::Filling;
use super::record::{Record, heap_of};
use crate::fuse::directories::Directories;

/// A few writes for the tree of an ordinary layer: a pull waits for it.
const BUFFER_LEN: usize = 256 << 10;

/// Blocks, one behind the other.
struct Out<'a> {
    file: BufWriter<&'a File>,
    seal: Seal,
    next: u32,
}

impl Out<'_> {
    fn put(&mut self, first: u32, count: u16, body: &[u8]) -> io::Result<()> {
        let block = Block::seal(self.seal, self.next, first, count, body);
        self.next = self.next.checked_add(1).ok_or(io::ErrorKind::FileTooLarge)?;
        self.file.write_all(block.bytes())
    }
}

/// `file` is empty.
pub(super) fn write(toc: &Toc, seal: Seal, file: &File) -> io::Result<()> {
    let mut out = Out {
        file: BufWriter::with_capacity(BUFFER_LEN, file),
        seal,
        next: 1,
    };
    out.file.seek(SeekFrom::Start(BLOCK_LEN as u64))?;
    let heap_len = write_inodes(toc, &mut out)?;
    let index = write_names(toc, &mut out)?;
    write_heap(toc, &mut out)?;
    for numbers in index.chunks(NUMBERS_A_BLOCK) {
        let body: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        out.put(0, 0, &body)?;
    }
    let layout = Layout {
        inodes: toc.tree().inodes().len() as u32,
        entries: toc.tree().entries().len() as u32,
        name_blocks: index.len() as u32,
        heap_len,
    };
    out.file.rewind()?;
    out.next = 0;
    out.put(0, 0, &layout.encode())?;
    out.file.flush()
}

/// Returns the length of the heap.
fn write_inodes(toc: &Toc, out: &mut Out<'_>) -> io::Result<u64> {
    let tree = toc.tree();
    let directories = Directories::of(tree);
    let (mut body, mut heap, mut heap_len) = (Vec::with_capacity(BODY_LEN), Vec::new(), 0);
    for (id, inode) in (0..).map(InodeId).zip(tree.inodes()) {
        let entry = directories.entry(id);
        let parent = entry.and_then(|e| tree.entry(tree.entry(e)?.parent));
        let mut record = Record::of(
            inode,
            directories.nlink(tree, id),
            entry.map_or(0..0, |e| tree.children(e)),
            parent.map_or(InodeId::ROOT, |p| p.inode),
        );
        heap.clear();
        record.heap = heap_len;
        record.xattrs_len = heap_of(inode, &mut heap);
        heap_len += heap.len() as u64;
        record.encode(&mut body);
        if (id.0 as usize + 1).is_multiple_of(RECORDS_A_BLOCK) {
            out.put(0, 0, &body)?;
            body.clear();
        }
    }
    if !body.is_empty() {
        out.put(0, 0, &body)?;
    }
    Ok(heap_len)
}

/// Returns the first entry of each block.
fn write_names(toc: &Toc, out: &mut Out<'_>) -> io::Result<Vec<u32>> {
    let (mut filling, mut index, mut first) = (Filling::default(), Vec::new(), 0);
    let mut flush = |filling: &mut Filling, next: u32| {
        let (count, body) = filling.take();
        index.push(first);
        let done = out.put(first, count, &body);
        first = next;
        done
    };
    for (EntryId(number), entry) in (0..).map(EntryId).zip(toc.tree().entries()) {
        if !filling.add(entry) {
            flush(&mut filling, number)?;
            filling.add(entry);
        }
    }
    // The root has an entry, so there is something.
    flush(&mut filling, 0)?;
    Ok(index)
}

fn write_heap(toc: &Toc, out: &mut Out<'_>) -> io::Result<()> {
    let mut heap = Vec::new();
    for inode in toc.tree().inodes() {
        heap_of(inode, &mut heap);
        let whole = heap.len() / BODY_LEN * BODY_LEN;
        for body in heap[..whole].chunks(BODY_LEN) {
            out.put(0, 0, body)?;
        }
        heap.drain(..whole);
    }
    match heap.is_empty() {
        true => Ok(()),
        false => out.put(0, 0, &heap),
    }
}
