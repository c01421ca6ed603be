//! The last resort: chunks out of a layer's original blob, from an ordinary registry.
//!
//! In: an image reference learnt at `Prepare`; containerd's `hosts.toml` files. Out: verified chunks, as from a server.
//! Invariant: nothing here is asked while a Headstart server gives good bytes; what comes is believed as little as theirs.
//! Not here: when (`fetch/run.rs`), and keeping what was learnt (`cache/sources.rs`).
//!
//! The server's upstream client is not shared: it is the server's, with its budgets, callers, breakers and store. What a node
//! needs is one GET of one blob, a few times in its life.

mod config;
mod credentials;
mod download;
mod hosts_file;
mod inflate;
pub(crate) mod rebuild;
mod refill;
mod registry;
mod source;

pub use config::OriginalConfig;
pub use rebuild::{Originals, Sources};
pub use source::{BadReference, BlobSource};
