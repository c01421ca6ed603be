//! A private playground: a real image, a real upstream registry, the server, the shim and a private containerd, all on
//! loopback and below one work directory.
//!
//! In: the binaries under test and Debian's tools. Out: measured starts of one container (the rounds are
//! `coldstart`'s), or a running playground to look around in ([`keep`]); the end-to-end tests use the same parts.
//! Invariant: everything is undone by `Drop`, so that success, error, panic and Ctrl-C (which drops the future) leave
//! no process, mount or socket behind; what a `kill -9` of this process leaves, the next run removes
//! ([`leftovers`]). The system's own containerd, its state and its sockets are never touched.
//! Not here: simulated nodes and storms (`storm`).

pub mod binaries;
pub mod cli;
pub mod command;
pub mod container;
pub mod containerd;
pub mod containerd_config;
pub mod debian;
pub mod debian_tree;
pub mod error;
pub mod gzip_tools;
pub mod image;
pub mod keep;
pub mod lab;
pub mod leftovers;
pub mod measure;
pub mod mounts;
pub mod netns;
pub mod node;
pub mod ports;
pub mod process;
pub mod progress;
pub mod proxy;
pub mod ready;
pub mod recipe;
pub mod registry;
pub mod report;
pub mod runtime;
pub mod shim;
pub mod site;
pub mod sources;
pub mod tools;
pub mod workdir;

pub use error::PlaygroundError;

/// Short form for everything below this module.
pub type Result<T> = std::result::Result<T, PlaygroundError>;
