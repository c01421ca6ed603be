//! The Headstart server: a pull-through registry mirror that makes layers seekable beside the untouched originals.
//!
//! In: a configuration. Out: an [`app::App`] that serves HTTP.
//! Invariant: a byte goes `upstream -> read -> ingest -> store -> read -> http`; a room uses only rooms that come before it
//! in `upstream, store, ingest, reclaim, scrub, read, profile, access, admin, http`; `app` alone wires them.
//! Not here: the formats (`headstart-layer-format`) and anything of the node.

#[cfg(test)]
extern crate self as headstart_server;

pub mod access;
pub mod admin;
pub mod allocator;
pub mod app;
pub mod cli;
pub mod config;
#[doc(hidden)]
pub mod fuzz;
pub mod http;
pub mod ingest;
pub mod log;
pub mod metrics;
pub mod orders;
pub mod profile;
pub mod read;
pub mod reclaim;
pub mod scrub;
pub mod store;
pub mod telemetry;
pub mod upstream;
pub mod watched;
