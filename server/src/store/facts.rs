//! Facts: what the server has learnt about upstreams, and must not lose with its index.
//!
//! In: what a served manifest said. Out: the same, by tag, digest, membership or chain ID.
//! Invariant: facts are appended to the packs (the truth) and indexed in sled; replaying the packs gives the same
//! answers. Keys carry the upstream, so two upstreams never share a tag or a membership.
//! Not here: the manifest's bytes (`originals.rs` keeps them like any blob), and layer TOCs (`layers.rs`).

use headstart_layer_format::{BlobDigest, ChainId, DiffId};
use serde::{Deserialize, Serialize};

/// Where a blob may be fetched from: an upstream of the configured set, by name, and a repository in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Source {
    pub upstream: String,
    pub repository: String,
}

/// How a repository is known to hold a digest. Later ones say more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Membership {
    /// A manifest of the repository names it. Whoever may push there can claim that, of any digest.
    Named,
    /// The upstream has served it from there, or said that it has it.
    Served,
}

/// A manifest that was fetched from `source`, verified, and served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFact {
    pub source: Source,
    pub digest: BlobDigest,
    pub media_type: String,
    pub size: u64,
    /// Every digest the manifest names (config, layers, child manifests): members of the repository.
    pub members: Vec<BlobDigest>,
    /// Of these, in ascending order, what clients fetch from elsewhere, if at all. (Facts of an earlier version have none; of images, the layers'
    /// types tell.)
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub foreign: Vec<BlobDigest>,
    /// Present for an image manifest with tar layers.
    pub image: Option<ImageFact>,
}

/// The layers of an image manifest, bottom first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFact {
    pub config: BlobDigest,
    pub layers: Vec<LayerFact>,
}

/// A layer descriptor of an image manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFact {
    pub digest: BlobDigest,
    pub media_type: String,
    pub size: u64,
}

/// What the image config adds: known only after the config blob was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigFact {
    pub manifest: BlobDigest,
    /// Same order and length as the manifest's layers.
    pub diff_ids: Vec<DiffId>,
}

/// Answer to a chain ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFact {
    pub chain_id: ChainId,
    pub layer: BlobDigest,
    pub diff_id: DiffId,
    /// Latest first, bounded by `limits::CHAIN_IMAGES_MAX`.
    pub manifests: Vec<BlobDigest>,
}

/// What a tag pointed at, and when the upstream last confirmed it (Unix seconds).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagFact {
    pub digest: BlobDigest,
    pub media_type: String,
    pub size: u64,
    pub confirmed_unix_secs: u64,
}
