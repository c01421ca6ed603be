//! Records of the on-disk format, as bytes.
//!
//! In: numbers. Out: records, little-endian. Invariant: every field not named here is zero, which the format defines as
//! "not used". Not here: where records go (`layout.rs`) and what is in them.

use headstart_layer_format::limits::BODY_ALIGN;

use super::times::Epoch;
use crate::fuse::attr::{Attr, FileKind};

/// Block size: also what bodies of the data space are aligned to, so that a chunk can begin with any body.
pub(super) const BLOCK: u64 = BODY_ALIGN;
/// Inodes begin at multiples of this, and are numbered in it.
pub(super) const SLOT: u64 = 32;
/// Of an inode with full ids and a time of its own, and of one without.
const EXTENDED_LEN: u64 = 64;
const SHORT_LEN: u64 = 32;
pub(super) const DIRENT_LEN: usize = 12;
pub(super) const INDEX_LEN: u64 = 8;
pub(super) const XATTR_HEADER_LEN: usize = 12;
pub(super) const XATTR_ENTRY_LEN: usize = 4;
/// Attributes and references to them are aligned to this.
pub(super) const XATTR_ALIGN: usize = 4;

const BLOCK_BITS: u8 = 12;
const SUPERBLOCK_AT: usize = 1024;
const SUPERBLOCK_LEN: usize = 128;
/// In units of the slot's own 128 bytes: right behind the superblock.
const DEVICE_SLOT: usize = (SUPERBLOCK_AT + SUPERBLOCK_LEN) / 128;
const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_CHECKSUM: u32 = 1;
/// Each inode has its own mtime.
const COMPAT_MTIME: u32 = 2;
const INCOMPAT_CHUNKED_FILE: u32 = 4;
const INCOMPAT_DEVICE_TABLE: u32 = 8;
/// With 64 bytes: full ids and nanoseconds.
const EXTENDED: u16 = 1;
const SHORT: u16 = 0;
/// Chunks are 8-byte indexes, which name a device.
const CHUNK_INDEXES: u32 = 0x20;
/// The first (and here only) external device.
const DEVICE: u16 = 1;
const HOLE: u32 = u32::MAX;

/// Where an inode's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Data {
    /// Nothing, or a device number.
    None,
    /// All of it in blocks from this one on. The device's blocks are counted on behind the image's.
    Blocks(u32),
    /// Whole blocks from this one on, the rest behind the inode.
    Tail(u32),
    /// Chunks of 2^this blocks, on the device.
    Chunks(u8),
}

/// How much an inode says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// With its time as seconds from the image's.
    Short(u32),
    Extended,
}

impl Form {
    /// Short if everything has room in it. `time`: what a short inode would say of its time.
    pub(super) fn of(attr: &Attr, size: u64, time: Option<u32>) -> Self {
        let small = |number: u32| number <= u32::from(u16::MAX);
        let fits = small(attr.uid) && small(attr.gid) && small(attr.nlink) && size <= u64::from(u32::MAX);
        time.filter(|_| fits).map_or(Self::Extended, Self::Short)
    }

    pub(super) fn len(self) -> u64 {
        match self {
            Self::Short(_) => SHORT_LEN,
            Self::Extended => EXTENDED_LEN,
        }
    }
}

/// What block 0 says of the whole.
#[derive(Clone, Copy, Debug)]
pub(super) struct Superblock {
    pub(super) root: u16,
    pub(super) inodes: u64,
    pub(super) epoch: Epoch,
    pub(super) blocks: u32,
    pub(super) shared_xattrs: u32,
    pub(super) device_blocks: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// Block 0, with its checksum.
    pub(super) fn block(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        let at = |field: usize| SUPERBLOCK_AT + field;
        put(at(0), &MAGIC.to_le_bytes());
        put(at(8), &(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        put(at(12), &[BLOCK_BITS]);
        put(at(14), &self.root.to_le_bytes());
        put(at(16), &self.inodes.to_le_bytes());
        put(at(24), &self.epoch.secs.to_le_bytes());
        put(at(32), &self.epoch.nanos.to_le_bytes());
        put(at(36), &self.blocks.to_le_bytes());
        // Inode numbers count from block 0 (offset 40 stays 0): none of ours is 0, which readdir(3) would leave out.
        put(at(44), &self.shared_xattrs.to_le_bytes());
        put(at(48), &self.uuid);
        put(at(80), &(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE).to_le_bytes());
        put(at(86), &1u16.to_le_bytes());
        put(at(88), &(DEVICE_SLOT as u16).to_le_bytes());
        // The slot's tag stays empty: it would be a path, and a mount without `device=` is a mistake.
        put(DEVICE_SLOT * 128 + 64, &self.device_blocks.to_le_bytes());
        // What its first block is called by those who name no device.
        put(DEVICE_SLOT * 128 + 68, &self.blocks.to_le_bytes());
        let sum = crc32c(&block[SUPERBLOCK_AT..]);
        block[SUPERBLOCK_AT + 4..][..4].copy_from_slice(&sum.to_le_bytes());
        block
    }
}

/// An inode, of which the form's length counts. `xattr_len`: bytes of attributes that follow it; `size`: of its content.
pub(super) fn inode(
    attr: &Attr,
    form: Form,
    number: u32,
    size: u64,
    xattr_len: usize,
    data: Data,
) -> [u8; EXTENDED_LEN as usize] {
    let (layout, union): (u16, u32) = match data {
        Data::None => (0, attr.rdev),
        Data::Blocks(block) => (0, block),
        Data::Tail(block) => (2, block),
        Data::Chunks(bits) => (4, CHUNK_INDEXES | u32::from(bits)),
    };
    let xattrs = match xattr_len {
        0 => 0,
        len => (len - XATTR_HEADER_LEN) / XATTR_ALIGN + 1,
    };
    let mut out = [0; EXTENDED_LEN as usize];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(2, &(xattrs as u16).to_le_bytes());
    put(4, &(kind_bits(attr.kind) | attr.perm).to_le_bytes());
    put(16, &union.to_le_bytes());
    put(20, &number.to_le_bytes());
    match form {
        // `Form::of` saw that they are no larger than their fields.
        Form::Short(time) => {
            put(0, &(SHORT | layout << 1).to_le_bytes());
            put(6, &(attr.nlink as u16).to_le_bytes());
            put(8, &(size as u32).to_le_bytes());
            put(12, &time.to_le_bytes());
            put(24, &(attr.uid as u16).to_le_bytes());
            put(26, &(attr.gid as u16).to_le_bytes());
        }
        Form::Extended => {
            put(0, &(EXTENDED | layout << 1).to_le_bytes());
            put(8, &size.to_le_bytes());
            put(24, &attr.uid.to_le_bytes());
            put(28, &attr.gid.to_le_bytes());
            put(32, &attr.mtime.secs.to_le_bytes());
            put(40, &attr.mtime.nanos.to_le_bytes());
            put(44, &attr.nlink.to_le_bytes());
        }
    }
    out
}

/// `name_at`: where in the block its name begins.
pub(super) fn dirent(nid: u64, name_at: u16, kind: FileKind) -> [u8; DIRENT_LEN] {
    let mut out = [0; DIRENT_LEN];
    out[..8].copy_from_slice(&nid.to_le_bytes());
    out[8..10].copy_from_slice(&name_at.to_le_bytes());
    out[10] = match kind {
        FileKind::Regular => 1,
        FileKind::Directory => 2,
        FileKind::CharDevice => 3,
        FileKind::BlockDevice => 4,
        FileKind::Fifo => 5,
        FileKind::Symlink => 7,
    };
    out
}

/// A chunk: a block of the device, or nothing.
pub(super) fn chunk_index(block: Option<u32>) -> [u8; INDEX_LEN as usize] {
    let (device, block) = match block {
        Some(block) => (DEVICE, block),
        None => (0, HOLE),
    };
    let mut out = [0; INDEX_LEN as usize];
    out[2..4].copy_from_slice(&device.to_le_bytes());
    out[4..].copy_from_slice(&block.to_le_bytes());
    out
}

fn kind_bits(kind: FileKind) -> u16 {
    let bits = match kind {
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Regular => libc::S_IFREG,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
        FileKind::Fifo => libc::S_IFIFO,
    };
    bits as u16
}

/// CRC-32C as the format has it: all ones at the start, not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::toc::{Inode, InodeId, Kind, Mtime};

    use super::*;
    use crate::fuse::node_id::Node;

    #[test]
    fn an_inode_is_short_where_every_number_has_room() {
        let inode = Inode {
            mode: 0o644,
            uid: 65_535,
            gid: 65_535,
            mtime: Mtime::default(),
            xattrs: Vec::new(),
            kind: Kind::Fifo,
        };
        let node = Node::File {
            slot: 0,
            inode: InodeId::ROOT,
        };
        let attr = Attr::of(node, &inode, 65_535);
        let largest = u64::from(u32::MAX);
        assert_eq!(Form::of(&attr, largest, Some(7)), Form::Short(7));
        assert_eq!(Form::of(&attr, largest, None), Form::Extended);
        assert_eq!(Form::of(&attr, largest + 1, Some(7)), Form::Extended);
        let changes: [fn(&mut Attr); 3] = [|a| a.uid += 1, |a| a.gid += 1, |a| a.nlink += 1];
        for change in changes {
            let mut attr = attr;
            change(&mut attr);
            assert_eq!(Form::of(&attr, 0, Some(7)), Form::Extended);
        }
    }

    #[test]
    fn the_checksum_is_the_known_one() {
        // The check value of CRC-32C, which is inverted at the end.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }
}
