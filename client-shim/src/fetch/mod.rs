//! Bytes from the servers: TOCs, image states and chunks.
//!
//! In: digests and chunk indices. Out: parsed answers, and [`verify::VerifiedChunk`]s handed to a [`ChunkSink`].
//! Invariant: a chunk leaves this room only verified; every body, wait and queue is bounded; one fetch a chunk however
//! many readers want it.
//! Not here: where chunks are kept (`cache`), and what a reader wants ahead of its reads (`cache/reader.rs`).

mod arrival;
mod body;
mod budget;
pub mod config;
mod data;
pub mod demand;
pub mod error;
mod health;
pub mod identity;
pub mod original;
mod pace;
pub mod probe;
mod profile_stream;
mod run;
pub mod servers;
pub mod single_flight;
pub mod verify;
mod warm;

pub use config::FetchConfig;
pub use error::FetchError;
pub use identity::IdentityConfig;
pub(crate) use profile_stream::ProfileStream;
pub use servers::{Servers, TocAnswer};
pub use single_flight::Flights;
pub use verify::{ChunkSink, VerifiedChunk};
