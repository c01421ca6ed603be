//! Upstreams: the closed set of registries this server speaks to.
//!
//! In: a request's `ns`, path and reference. Out: a [`Route`] to a configured upstream, and answers from it.
//! Invariant: what a client sends selects an upstream by name and never becomes an address; credentials leave only for
//! hosts pinned to their upstream.
//! Not here: keeping bytes (`store/originals.rs`), coalescing and resuming (`read/`).

pub mod auth;
mod caller;
mod client;
mod error;
mod name;
mod set;

pub use caller::{Caller, ClientCredentials};
pub use client::{BlobAnswer, BlobBody, ManifestAnswer, ManifestHead, Upstream};
pub use error::UpstreamError;
pub use name::{NameError, Reference, RepositoryName, Tag};
pub use set::{ResolveError, Route, SetupError, Upstreams};
