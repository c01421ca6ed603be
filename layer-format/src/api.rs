//! JSON bodies of our own endpoints.
//!
//! In/out: serde values. Unknown fields from a newer peer are ignored; new fields are optional.
//! Invariant: numbers are bytes unless the name says otherwise.
//! Not here: the binary bodies ([`crate::toc`], [`crate::chunk_stream`]) and OCI's own JSON.

use serde::{Deserialize, Serialize};

use crate::digest::{BlobDigest, ChainId, ChunkDigest, DiffId, TocDigest};
use crate::profile::Profile;

/// Where a layer's conversion stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerState {
    /// Known, but nobody has asked for its conversion.
    Unknown,
    /// Waiting for a conversion worker.
    Queued,
    /// Being fetched and converted.
    Converting,
    /// TOC and chunks are published.
    Ready,
    /// Cannot be represented or tripped a bound; stays an ordinary blob. `reason` says why.
    Refused,
    /// The last try failed (upstream, disk); a later request tries again. `reason` says why.
    Failed,
}

/// One layer of [`ImageStatus`]; also the body of a `toc` request that is not ready (202), refused (422) or failed (503).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStatus {
    /// Digest of the original, compressed blob.
    pub digest: BlobDigest,
    pub state: LayerState,
    /// Why `refused` or `failed`, or why `queued` again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<DiffId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain_id: Option<ChainId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Size of the original blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Compressed bytes of the original that the conversion has consumed so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub converted: Option<u64>,
    /// Present when `ready`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub toc: Option<TocSummary>,
}

/// What a ready layer's TOC says in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TocSummary {
    pub digest: TocDigest,
    /// Size of the encoded TOC.
    pub size: u64,
    /// Size of the layer data space.
    pub data_size: u64,
    /// Size of the seekable blob.
    pub blob_size: u64,
    pub chunk_count: u64,
    pub entry_count: u64,
}

/// `GET images/{manifest-digest}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageStatus {
    pub manifest_digest: BlobDigest,
    pub config_digest: BlobDigest,
    /// Bottom layer first.
    pub layers: Vec<LayerStatus>,
    /// What starts of it need first; only when every layer is ready, and something is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

impl ImageStatus {
    /// Whether a node can mount every layer lazily now.
    pub fn is_ready(&self) -> bool {
        self.layers.iter().all(|l| l.state == LayerState::Ready)
    }
}

/// `GET chains/{chain-id}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainStatus {
    pub chain_id: ChainId,
    /// The layer at the top of this chain.
    pub layer_digest: BlobDigest,
    pub diff_id: DiffId,
    /// Manifests this server has served that contain the chain, latest first, at most
    /// [`crate::limits::CHAIN_IMAGES_MAX`].
    pub images: Vec<BlobDigest>,
    /// Of the first of `images`, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageStatus>,
}

/// Body of `POST chunks`; at most [`crate::limits::CHUNK_REQUEST_MAX`] digests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunksRequest {
    /// Answered in this order, one frame a digest, repeated ones too.
    pub chunks: Vec<ChunkDigest>,
    /// Layers that the chunks belong to, at most [`crate::limits::CHUNK_LAYERS_MAX`]. A server where not everybody may
    /// read everything gives chunks of these layers alone; others need not look.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<BlobDigest>,
}
