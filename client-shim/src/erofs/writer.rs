//! Writing an image.
//!
//! In: a TOC and a writer. Out: the image, in order. Invariant: nothing is sought or read back; memory is the layout's and
//! one block. Not here: where things are (`layout.rs`).

use std::io::{self, Write};

use headstart_layer_format::Toc;
use headstart_layer_format::toc::InodeId;

use super::ErofsError;
use super::format::{self, BLOCK, Data, INDEX_LEN, Superblock};
use super::layout::{Bytes, Layout, Place};
use super::times::ShortTimes;

/// Writes the image of `toc` to `out`, which should buffer; returns its length.
pub fn write(toc: &Toc, short: ShortTimes, out: &mut dyn Write) -> Result<u64, ErofsError> {
    let layout = Layout::of(toc, short)?;
    let mut out = Counted { out, at: 0 };
    out.write_all(&superblock(&layout)?.block())?;
    layout.each(|place| write_inode(&layout, &place, &mut out))?;
    out.pad(BLOCK)?;
    layout.xattrs.write_area(&mut out)?;
    out.pad(BLOCK)?;
    layout.each_with_blocks(|place| write_blocks(&layout, &place, &mut out))?;
    Ok(out.at)
}

fn superblock(layout: &Layout<'_>) -> Result<Superblock, ErofsError> {
    let mut uuid = [0; 16];
    // Overlayfs tells layers apart by this where it can.
    for (to, from) in uuid.iter_mut().zip(layout.toc.diff_id().as_bytes()) {
        *to = *from;
    }
    Ok(Superblock {
        // The root is the first inode, in block 1.
        root: u16::try_from(layout.nid(InodeId::ROOT)).map_err(|_| ErofsError::Unsupported("the root is too far"))?,
        inodes: layout.toc.tree().inodes().len() as u64,
        epoch: layout.epoch,
        blocks: layout.blocks,
        shared_xattrs: layout.xattr_block,
        // At most 2^28: `DATA_SIZE_MAX` in blocks.
        device_blocks: (layout.toc.chunks().data_size() / BLOCK) as u32,
        uuid,
    })
}

fn write_inode(layout: &Layout<'_>, place: &Place<'_>, out: &mut Counted<'_>) -> Result<(), ErofsError> {
    out.pad_to(place.offset)?;
    // Numbered from 1; at most `ENTRIES_MAX`.
    let (number, xattr_len) = (place.id.0 + 1, place.xattrs.len());
    let head = format::inode(&place.attr, place.form, number, place.size, xattr_len, place.data);
    out.write_all(&head[..place.form.len() as usize])?;
    out.write_all(&place.xattrs)?;
    match &place.bytes {
        Bytes::Chunks(map) if matches!(place.data, Data::Chunks(_)) => {
            out.pad(INDEX_LEN)?;
            for block in map.blocks() {
                out.write_all(&format::chunk_index(block))?;
            }
        }
        Bytes::Target(target) if matches!(place.data, Data::Tail(_)) => out.write_all(target)?,
        Bytes::Directory(directory) if matches!(place.data, Data::Tail(_)) => {
            directory.blocks(|id| layout.nid(id), |block| only_tail(block, out))?;
        }
        _ => {}
    }
    Ok(())
}

fn write_blocks(layout: &Layout<'_>, place: &Place<'_>, out: &mut Counted<'_>) -> Result<(), ErofsError> {
    let whole = matches!(place.data, Data::Blocks(_));
    match &place.bytes {
        Bytes::Target(target) if whole => {
            out.write_all(target)?;
            out.pad(BLOCK)?;
        }
        Bytes::Directory(directory) if whole || place.size >= BLOCK => {
            directory.blocks(
                |id| layout.nid(id),
                |block| match whole || block.len() as u64 == BLOCK {
                    true => out.write_all(block).and_then(|()| out.pad(BLOCK)),
                    false => Ok(()),
                },
            )?;
        }
        _ => {}
    }
    Ok(())
}

/// The last block of a directory, if it is not a whole one.
fn only_tail(block: &[u8], out: &mut Counted<'_>) -> io::Result<()> {
    match (block.len() as u64) < BLOCK {
        true => out.write_all(block),
        false => Ok(()),
    }
}

/// Not made anew for each inode.
static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

struct Counted<'a> {
    out: &'a mut dyn Write,
    at: u64,
}

impl Counted<'_> {
    fn pad(&mut self, to: u64) -> io::Result<()> {
        self.pad_to(self.at.next_multiple_of(to))
    }

    /// Zeros up to `offset`: less than a block.
    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        let len = offset.saturating_sub(self.at).min(BLOCK);
        self.write_all(&ZEROS[..len as usize])
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
