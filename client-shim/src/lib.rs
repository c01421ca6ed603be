//! The Headstart shim: a containerd remote snapshotter whose layers are mounted lazily.
//!
//! In: a configuration. Out: a gRPC service for containerd on a unix socket, one FUSE mount, and an EROFS mount
//! a layer where the kernel can.
//! Invariant: follow a read: `snapshotter -> layers -> presentation -> fuse -> cache -> fetch -> contents`; each uses only what is
//! to its right (`erofs`, beside `presentation`, writes images; `survival` keeps mounts over restarts). Lazy is an optimisation: whatever goes wrong before a mount ends in an ordinary pull.
//! Not here: the formats (`headstart-layer-format`) and conversion (the server).

pub mod app;
mod atomic_file;
pub mod cache;
pub mod cli;
pub mod config;
pub mod contents;
pub mod counters;
mod dir_lock;
pub mod doctor;
pub mod erofs;
pub mod fetch;
pub mod fuse;
pub mod fuzz;
pub mod last_good;
pub mod layers;
pub mod memory;
pub mod metrics;
pub mod observe;
mod parallel;
pub mod presentation;
mod process_id;
pub mod profile;
pub mod proto;
pub mod snapshotter;
pub mod survival;
pub mod telemetry;
pub mod upkeep;
