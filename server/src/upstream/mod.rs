//! Upstreams: the closed set of registries this server speaks to.
//!
//! In: a request's `ns`, path and reference. Out: a [`Route`] to a configured upstream, and answers from it.
//! Invariant: what a client sends selects an upstream by name and never becomes an address; credentials leave only for
//! hosts pinned to their upstream.
//! Not here: keeping bytes (`store/originals.rs`), coalescing and resuming (`read/`).

mod address;
mod answer;
pub(crate) mod base64;
mod body;
mod breaker;
mod budget;
mod caller;
mod challenge;
mod client;
mod connect;
mod dial;
mod docker_config;
mod error;
mod exchange;
mod helper;
mod hold;
mod listing;
mod name;
mod probe;
mod proof;
mod realm;
mod secret;
mod set;
mod site;
mod stamp;
mod token;
mod transport;

pub use answer::{ManifestAnswer, ManifestHead};
pub use body::{BlobAnswer, BlobBody, RangeAnswer};
pub use caller::{Caller, CallerKey, ClientCredentials};
pub use client::{Health, Upstream};
pub use error::UpstreamError;
pub use listing::{AFTER_LEN_MAX, Descriptor, Referring, Rest, TagPage};
pub use name::{NameError, Reference, RepositoryName, Tag};
pub use set::{ResolveError, Route, SetupError, Upstreams};
