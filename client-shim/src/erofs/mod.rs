//! A layer's tree as an EROFS image of metadata alone.
//!
//! In: a TOC. Out: an image, written in one pass from its first byte to its last, whose regular files are chunks of an
//! external device: the layer's data space. Invariant: equal TOCs make equal images; attributes are what the FUSE tree
//! says (one function, `fuse/attr.rs`, makes both); a TOC that cannot be shown exactly so is an error, and nothing that a
//! TOC says makes an image larger than its limits or ends the process.
//! Not here: mounting (`presentation`), the data space's bytes (`cache`).
//!
//! The format is described in the kernel's Documentation/filesystems/erofs.rst. Of it we use what every kernel with
//! file-backed mounts has: blocks of 4 KiB, inodes of both sizes, inline tails, shared attributes, chunk indexes, one device.
//! The times of short inodes are what kernels disagree about ([`ShortTimes`]).
//!
//! ```text
//! block 0      1024 zero bytes, superblock, device slot
//! block 1 ...  inodes in the TOC's order, each followed by its attributes and its inline tail or its chunk indexes
//!         ...  shared attributes
//!         ...  blocks of directories and of long link targets, in the order of their inodes
//! behind it    the device, as if it were there: for files of one block
//! ```
//!
//! Small, because cold it is read block by block: the kernel reads no metadata ahead. A file of one block with a usual owner is 32
//! bytes and its name, where an extended inode with a chunk index takes 96.

mod chunk_map;
mod directory;
mod format;
mod layout;
mod times;
mod writer;
mod xattrs;

use std::io;

pub use times::ShortTimes;
pub use writer::write;

/// Largest image: the metadata of the largest TOC, and as much again for alignment and fixed-size records.
const IMAGE_SIZE_MAX: u64 = 2 << 30;
/// Chunk indexes of a layer (8 bytes each): a sparse file whose holes have no larger common measure takes one for every
/// 4 KiB of its length, so this is 32 GiB of such files.
const INDEXES_MAX: u64 = 8 << 20;
/// Different attributes that are looked at for sharing. Layers have a handful; further ones are written where they are.
const SHARED_MAX: usize = 1 << 16;

/// Why there is no image of a layer. Each text completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    #[error("describe the layer in EROFS: {0}")]
    Unsupported(&'static str),
    #[error("describe the layer in EROFS: {what} would be over {max}")]
    OverLimit { what: &'static str, max: u64 },
    #[error("write an EROFS image: {0}")]
    Io(#[from] io::Error),
}
