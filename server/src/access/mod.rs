//! Who may read what.
//!
//! In: a client, and what it asks for. Out: on whose behalf upstreams are asked for it, or why it may not have it.
//! Invariant: bytes are shared by everybody, rights are not: each request for a manifest, blob, TOC, data or chunk passes
//! here first. Without `[access]` everybody may read everything, and nobody is challenged.
//! Not here: the answer to a client that may not (`http/error.rs`).

mod basic;
mod client;
mod error;

pub use client::{Client, Peer, Shown};
pub use error::{AccessError, AccessSetupError};
use headstart_layer_format::BlobDigest;

use crate::{
    config::AccessConfig,
    store::facts::Source,
    upstream::{Caller, Reference},
};

/// What a client wants of a repository: where rights have to be proven at an upstream, it is asked for this.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    Manifest(Reference),
    Blob(BlobDigest),
    /// Its tags, or whatever else has no digest.
    Repository,
}

/// Decides; clones share what it remembers.
#[derive(Clone, Debug)]
pub struct Access {
    restricted: bool,
}

impl Access {
    pub fn new(config: &AccessConfig) -> Result<Self, AccessSetupError> {
        Ok(Self {
            restricted: config.is_restricted(),
        })
    }

    /// On whose behalf the upstream is asked, if `client` may read `probe` of `source`.
    pub async fn allow(&self, _client: &Client, _source: &Source, _probe: &Probe) -> Result<Caller, AccessError> {
        if !self.restricted {
            return Ok(Caller::Server);
        }
        Err(AccessError::Denied)
    }
}
