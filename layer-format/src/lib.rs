//! The contract between a Headstart server and its nodes.
//!
//! In: bytes from a peer or a disk. Out: typed values (digests, offsets, a [`toc::Toc`], API messages).
//! Invariant: a value that exists is valid; every bound is checked before memory is reserved for it.
//! Not here: any I/O, any clock, any async. `FORMAT.md` beside this crate is normative; it, the codec, the golden
//! file and [`toc::TOC_VERSION`] change together.

pub mod api;
pub mod chunk_stream;
pub mod digest;
#[doc(hidden)]
pub mod fuzz;
pub mod limits;
pub mod offset;
pub mod profile;
pub mod routes;
pub mod toc;

pub use digest::{BlobDigest, ChainId, ChunkDigest, DiffId, DigestError, ProfileDigest, TocDigest};
pub use offset::{BlobOffset, BlobRange, FileOffset, LayerOffset, LayerRange};
pub use toc::{Toc, TocError};
