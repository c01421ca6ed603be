//! What `stat(2)` says about a node.
//!
//! In: an inode of a TOC. Out: [`Attr`]. Invariant: the same as `stat` on the layer unpacked by a container runtime on
//! ext4, where a layer says it at all. Not here: the protocol's struct (`fuse/kernel.rs`).

use headstart_layer_format::limits::BODY_ALIGN;
use headstart_layer_format::toc::{Content, Inode, Kind, Mtime};

use super::node_id::Node;

/// What kind of file a node is, for the kernel: whiteouts are character devices to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    Directory,
    Regular,
    Symlink,
    CharDevice,
    BlockDevice,
    Fifo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    pub node: Node,
    pub kind: FileKind,
    pub size: u64,
    /// In units of 512 bytes.
    pub blocks: u64,
    pub mtime: Mtime,
    /// Permission, set-id and sticky bits.
    pub perm: u16,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    /// Device number in the kernel's 32-bit form.
    pub rdev: u32,
}

/// `stat` size of a directory on ext4: one block.
const DIRECTORY_SIZE: u64 = 4096;
/// `st_blocks` counts these.
const SECTOR: u64 = 512;

impl Attr {
    /// `nlink`: number of names, or for a directory 2 and its subdirectories.
    pub fn of(node: Node, inode: &Inode, nlink: u32) -> Self {
        let mut attr = Self {
            node,
            kind: FileKind::of(&inode.kind),
            size: 0,
            blocks: 0,
            mtime: inode.mtime,
            perm: inode.mode & 0o7777,
            nlink,
            uid: inode.uid,
            gid: inode.gid,
            rdev: 0,
        };
        match &inode.kind {
            Kind::Directory { implied, .. } => {
                attr.size = DIRECTORY_SIZE;
                attr.blocks = DIRECTORY_SIZE / SECTOR;
                if *implied {
                    // Its group may be that of the directory it was made in.
                    (attr.perm, attr.uid) = (0o755, 0);
                }
            }
            Kind::Regular(content) => {
                attr.size = content.size();
                attr.blocks = allocated(content) / SECTOR;
            }
            Kind::Symlink { target } => attr.size = target.len() as u64,
            Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
                attr.rdev = device_number(*major, *minor);
            }
            Kind::Fifo => {}
            Kind::Whiteout => attr.perm = 0,
        }
        attr
    }

    /// A layer's data space as a file: for the kernel's own reading, hence root's alone.
    pub fn device(node: Node, size: u64) -> Self {
        Self {
            kind: FileKind::Regular,
            size,
            blocks: size / SECTOR,
            perm: 0o400,
            ..Self::own_directory(node, 1)
        }
    }

    /// A directory of the mount itself.
    pub fn own_directory(node: Node, nlink: u32) -> Self {
        Self {
            node,
            kind: FileKind::Directory,
            size: DIRECTORY_SIZE,
            blocks: DIRECTORY_SIZE / SECTOR,
            mtime: Mtime::default(),
            perm: 0o755,
            nlink,
            uid: 0,
            gid: 0,
            rdev: 0,
        }
    }
}

impl FileKind {
    pub fn of(kind: &Kind) -> Self {
        match kind {
            Kind::Directory { .. } => Self::Directory,
            Kind::Regular(_) => Self::Regular,
            Kind::Symlink { .. } => Self::Symlink,
            // overlayfs's whiteout is a character device 0:0.
            Kind::CharDevice { .. } | Kind::Whiteout => Self::CharDevice,
            Kind::BlockDevice { .. } => Self::BlockDevice,
            Kind::Fifo => Self::Fifo,
        }
    }
}

/// Bytes in whole blocks; holes take none.
fn allocated(content: &Content) -> u64 {
    content
        .extents()
        .iter()
        .map(|e| e.range.len.div_ceil(BODY_ALIGN) * BODY_ALIGN)
        .sum()
}

/// Linux `new_encode_dev`: 12 bits of major, 20 of minor.
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xfff00) << 12
}

#[cfg(test)]
mod tests {
    use super::device_number;

    #[test]
    fn device_numbers_are_in_the_kernels_form() {
        assert_eq!(device_number(1, 3), 0x103);
        assert_eq!(device_number(259, 0x12345), 0x1231_0345);
    }
}
