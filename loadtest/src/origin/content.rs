//! What the origin holds.
//!
//! In: blobs, manifests and tags per repository. Out: the same, by reference.
//! Invariant: a blob is visible only in the repositories it was added to, as in a real registry. Nothing checks that
//! bytes match their digest: a test may lie.
//! Not here: HTTP.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;

#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub(super) media_type: String,
    pub(super) bytes: Bytes,
}

#[derive(Debug, Default)]
pub(super) struct Repository {
    pub(super) blobs: HashMap<BlobDigest, Bytes>,
    pub(super) manifests: HashMap<BlobDigest, Manifest>,
    pub(super) tags: BTreeMap<String, BlobDigest>,
}

#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) repositories: HashMap<String, Repository>,
}

impl Content {
    pub(super) fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    pub(super) fn blob(&self, repository: &str, digest: &BlobDigest) -> Option<Bytes> {
        self.repositories.get(repository)?.blobs.get(digest).cloned()
    }

    /// By tag or digest.
    pub(super) fn manifest(&self, repository: &str, reference: &str) -> Option<(BlobDigest, Manifest)> {
        let repository = self.repositories.get(repository)?;
        let digest = match repository.tags.get(reference) {
            Some(digest) => *digest,
            None => reference.parse().ok()?,
        };
        Some((digest, repository.manifests.get(&digest)?.clone()))
    }

    /// Of any repository: the CDN knows signatures, not names.
    pub(super) fn any_blob(&self, digest: &BlobDigest) -> Option<Bytes> {
        self.repositories.values().find_map(|r| r.blobs.get(digest).cloned())
    }
}
