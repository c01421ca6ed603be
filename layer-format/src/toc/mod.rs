//! TOC v1: what a layer contains and where its bytes are.
//!
//! In: the parts ([`Tree`], [`ChunkTable`], [`Skeleton`]) from a conversion, or encoded bytes. Out: a [`Toc`].
//! Invariant: a `Toc` is consistent in itself: the tree is a tree, every extent lies inside the data space, the chunks
//! partition the data space without a gap, and the skeleton's bodies fill it.
//! Not here: whether the chunks *exist* (the store), and whether tree and tar agree (the DiffID check does that).

mod chunks;
mod codec;
mod json;
mod name;
mod skeleton;
mod tree;

pub use chunks::{Chunk, ChunkEntry, ChunkTable};
pub use codec::{TOC_MAGIC, TOC_VERSION};
pub use json::TocView;
pub use name::Name;
pub use skeleton::{Body, Piece, Skeleton, SkeletonBuilder};
pub use tree::{Content, Entry, EntryId, Extent, Inode, InodeId, Kind, Mtime, Tree, Xattr};

use crate::digest::{BlobDigest, DiffId, TocDigest};
use crate::limits::TOC_SIZE_MAX;

/// Why bytes or parts are not a TOC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TocError {
    #[error("not a TOC: bad magic")]
    BadMagic,
    #[error("TOC version {0} is not supported")]
    UnsupportedVersion(u8),
    #[error("TOC ends early")]
    Truncated,
    #[error("bytes after the end of the TOC's {0}")]
    TrailingBytes(&'static str),
    #[error("TOC {what} is {value}, over the limit of {max}")]
    OverLimit { what: &'static str, value: u64, max: u64 },
    #[error("TOC {0} section does not decompress")]
    BadFrame(&'static str),
    #[error("malformed TOC: {0}")]
    Malformed(&'static str),
}

/// Fails with [`TocError::OverLimit`] when `value > max`.
fn within(what: &'static str, value: u64, max: u64) -> Result<u64, TocError> {
    if value > max {
        Err(TocError::OverLimit { what, value, max })
    } else {
        Ok(value)
    }
}

/// The table of contents of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toc {
    layer_digest: BlobDigest,
    diff_id: DiffId,
    tree: Tree,
    chunks: ChunkTable,
    skeleton: Skeleton,
}

impl Toc {
    /// Joins the parts, checking that they describe one data space.
    pub fn new(
        layer_digest: BlobDigest,
        diff_id: DiffId,
        tree: Tree,
        chunks: ChunkTable,
        skeleton: Skeleton,
    ) -> Result<Self, TocError> {
        if skeleton.data_size() != chunks.data_size() {
            return Err(TocError::Malformed(
                "chunks and skeleton disagree on the size of the data space",
            ));
        }
        for inode in tree.inodes() {
            if let Kind::Regular(content) = &inode.kind
                && content.extents().iter().any(|e| {
                    let end = e.range.start.0.checked_add(e.range.len);
                    end.is_none_or(|end| end > chunks.data_size())
                })
            {
                return Err(TocError::Malformed("a file extent lies outside the data space"));
            }
        }
        Ok(Self {
            layer_digest,
            diff_id,
            tree,
            chunks,
            skeleton,
        })
    }

    /// Digest of the original blob this TOC describes.
    pub fn layer_digest(&self) -> &BlobDigest {
        &self.layer_digest
    }

    /// Digest of the uncompressed tar.
    pub fn diff_id(&self) -> &DiffId {
        &self.diff_id
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    pub fn chunks(&self) -> &ChunkTable {
        &self.chunks
    }

    pub fn skeleton(&self) -> &Skeleton {
        &self.skeleton
    }

    /// The canonical bytes. Equal TOCs encode equally, so their digest names them.
    pub fn encode(&self) -> Result<Vec<u8>, TocError> {
        codec::encode(self)
    }

    /// Parses bytes from anywhere, trusted or not.
    pub fn decode(bytes: &[u8]) -> Result<Self, TocError> {
        within("size", bytes.len() as u64, TOC_SIZE_MAX)?;
        codec::decode(bytes)
    }

    /// Digest of encoded bytes, as the `headstart-toc-digest` header carries it.
    pub fn digest(encoded: &[u8]) -> TocDigest {
        TocDigest::of(encoded)
    }
}
