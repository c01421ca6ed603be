//! Offsets, one type for each space that has offsets.
//!
//! In: numbers from a TOC or a kernel request. Out: typed positions and ranges.
//! Invariant: the spaces are crossed only by named functions ([`crate::toc`] and [`crate::toc::ChunkTable`]).
//! Not here: HTTP `Range` (the server's `http/range.rs`).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::BODY_ALIGN;

macro_rules! offset_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

offset_newtype! {
    /// Position in a layer's *data space*: all regular-file bodies in tar order, each at a 4 KiB boundary.
    LayerOffset
}
offset_newtype! {
    /// Position in one file, as a reader in the container sees it.
    FileOffset
}
offset_newtype! {
    /// Position in a layer's *seekable blob*: its chunk frames, compressed, in table order.
    BlobOffset
}

impl LayerOffset {
    /// The first body boundary at or after this position.
    pub fn align_up(self) -> Self {
        Self(self.0.div_ceil(BODY_ALIGN) * BODY_ALIGN)
    }
}

/// `len` bytes of the layer data space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerRange {
    pub start: LayerOffset,
    pub len: u64,
}

impl LayerRange {
    /// One past the last byte. Ranges in a decoded TOC are known not to overflow.
    pub fn end(&self) -> LayerOffset {
        LayerOffset(self.start.0 + self.len)
    }
}

/// `len` bytes of the seekable blob: one HTTP Range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlobRange {
    pub start: BlobOffset,
    pub len: u64,
}

impl BlobRange {
    /// One past the last byte.
    pub fn end(&self) -> BlobOffset {
        BlobOffset(self.start.0 + self.len)
    }
}
