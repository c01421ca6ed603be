//! The shim as a process that is killed, stopped, upgraded and cut off, with somebody reading all the while. Needs root,
//! /dev/fuse and overlayfs.
//!
//! In: the program, a server that can go away, a service manager, emulated or systemd itself. Out: every byte right, nobody left waiting.
//! Not here: real containers (`loadtest/tests/e2e/survival.rs`).

#[allow(dead_code, reason = "the same")]
#[path = "../lazy/support/disk.rs"]
mod disk;
#[allow(dead_code, reason = "shared with the tests of the lazy half, which use more of it")]
#[path = "../lazy/support/layer.rs"]
mod layer;
#[allow(dead_code, reason = "the tests receive, and send by other means")]
#[path = "../../src/survival/message.rs"]
mod message;
#[allow(dead_code, reason = "the same")]
#[path = "../lazy/support/server.rs"]
mod server;
#[path = "../support/mod.rs"]
mod support;

mod bad_config;
mod campaign;
mod daemonset;
mod frozen;
mod holder;
mod host;
mod manager;
mod network;
mod node;
mod pod;
mod readers;
mod service;
mod systemd;
mod takeover;
mod unopened;
mod unshown;

pub use layer::TestLayer;
