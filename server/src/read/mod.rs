//! Reading: from disk, from a flight, or from upstream.
//!
//! In: a source and a tag or digest. Out: manifests, blobs, and the seekable form of layers.
//! Invariant: whatever comes out was verified, or its end is withheld until it is.
//! Not here: HTTP.

pub mod accept;
mod beginnings;
mod blob;
pub mod blobs;
pub(crate) mod blocking;
mod claims;
pub(crate) mod coalesce;
mod conversion;
mod demand;
pub(crate) mod document;
mod errand;
mod error;
mod fetch;
mod flight;
pub mod images;
mod kept;
mod landed;
pub mod layers;
pub mod manifests;
pub mod negative;
mod obtainable;
mod opening;
mod orphans;
mod passage;
mod patience;
pub mod platform;
pub mod policy;
mod recheck;
pub mod referrers;
mod run;
pub mod saved;
pub mod seekable;
mod setbacks;
mod shelf;
pub mod sizes;
mod suspects;
mod sweep;
pub mod tags;
pub mod turns;
pub mod wants;
mod whole;
mod withheld;

pub use error::ReadError;
