//! Reading: from disk, from a flight, or from upstream.
//!
//! In: a source and a tag or digest. Out: manifests, blobs, and the seekable form of layers.
//! Invariant: whatever comes out was verified, or its end is withheld until it is.
//! Not here: HTTP.

pub mod blobs;
pub(crate) mod blocking;
pub(crate) mod coalesce;
mod conversion;
mod document;
mod error;
mod fetch;
mod flight;
pub mod images;
pub mod layers;
pub mod manifests;
pub mod seekable;

pub use error::ReadError;
