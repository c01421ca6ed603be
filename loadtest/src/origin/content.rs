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
    /// What a list of tags has instead, as it is.
    pub(super) listed: Option<Vec<String>>,
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

    /// What a list of tags has after `last`: ascending, or in the order that the test gave.
    pub(super) fn tags(&self, repository: &str, last: &str) -> Option<Vec<String>> {
        let repository = self.repositories.get(repository)?;
        Some(match &repository.listed {
            Some(listed) => {
                let from = listed.iter().position(|tag| tag == last).map_or(0, |at| at + 1);
                listed[from..].to_vec()
            }
            None => repository
                .tags
                .keys()
                .filter(|tag| tag.as_str() > last)
                .cloned()
                .collect(),
        })
    }

    /// Descriptors of the manifests whose `subject` is `digest`, ascending by digest.
    pub(super) fn referrers(&self, repository: &str, digest: &str) -> Vec<serde_json::Value> {
        let Some(repository) = self.repositories.get(repository) else {
            return Vec::new();
        };
        let mut found: Vec<_> = repository
            .manifests
            .iter()
            .filter_map(|(own, manifest)| {
                let fields: serde_json::Value = serde_json::from_slice(&manifest.bytes).ok()?;
                (fields["subject"]["digest"].as_str()? == digest).then(|| {
                    let kind = fields["artifactType"]
                        .as_str()
                        .or(fields["config"]["mediaType"].as_str());
                    serde_json::json!({
                        "mediaType": manifest.media_type, "digest": own.to_string(), "size": manifest.bytes.len(),
                        "artifactType": kind, "annotations": fields["annotations"],
                    })
                })
            })
            .collect();
        found.sort_by_key(|descriptor| descriptor["digest"].to_string());
        found
    }

    /// Of any repository: the CDN knows signatures, not names.
    pub(super) fn any_blob(&self, digest: &BlobDigest) -> Option<Bytes> {
        self.repositories.values().find_map(|r| r.blobs.get(digest).cloned())
    }
}
