//! Reading: from disk, from a flight, or from upstream.
//!
//! In: a source and a tag or digest. Out: manifests, blobs, and the seekable form of layers.
//! Invariant: whatever comes out was verified, or its end is withheld until it is.
//! Not here: HTTP.

pub mod accept;
pub mod blobs;
pub(crate) mod blocking;
pub(crate) mod coalesce;
mod conversion;
mod document;
mod error;
mod fetch;
mod flight;
pub mod images;
mod kept;
pub mod layers;
pub mod manifests;
pub mod negative;
mod obtainable;
pub mod policy;
pub mod referrers;
pub mod seekable;
mod shelf;
pub mod tags;

pub use error::ReadError;
