//! Reading: from disk, from a flight, or from upstream (owner MIRROR; layers, images, seekable are INGEST's).
pub mod blobs;
pub mod layers;
