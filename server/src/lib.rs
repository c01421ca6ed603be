//! The Headstart server: a pull-through registry mirror that makes layers seekable beside the untouched originals.
//!
//! In: a configuration. Out: an [`app::App`] that serves HTTP.
//! Invariant: the directories are the steps of a byte, and use each other only leftwards:
//! `upstream -> ingest -> store -> read -> http`; `app` alone wires them.
//! Not here: the formats (`headstart-layer-format`) and anything of the node.

pub mod access;
pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod http;
pub mod ingest;
pub mod log;
pub mod metrics;
pub mod read;
pub mod reclaim;
pub mod store;
pub mod telemetry;
pub mod upstream;
pub mod watched;
