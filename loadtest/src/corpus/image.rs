//! A synthetic image: layers, config and manifest, all digests right.
//!
//! In: layers. Out: [`SyntheticImage`], ready for an origin.
//! Invariant: what a conforming client would verify (digests, sizes, DiffIDs) holds.
//! Not here: the layers' content ([`super::zoo`]).

use bytes::Bytes;
use headstart_layer_format::{BlobDigest, ChainId, DiffId};
use serde_json::{Value, json};

use super::layer::SyntheticLayer;
use crate::origin::Origin;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Which media types the manifest speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavor {
    #[default]
    Oci,
    /// Docker schema 2; layers must be gzip.
    Docker,
}

#[derive(Clone, Debug)]
pub struct SyntheticImage {
    pub manifest: Bytes,
    pub manifest_digest: BlobDigest,
    pub manifest_media_type: &'static str,
    pub config: Bytes,
    pub config_digest: BlobDigest,
    /// Bottom first.
    pub layers: Vec<SyntheticLayer>,
}

impl SyntheticImage {
    pub fn new(flavor: Flavor, mut layers: Vec<SyntheticLayer>) -> Self {
        let (manifest_type, config_type) = match flavor {
            Flavor::Oci => (OCI_MANIFEST, OCI_CONFIG),
            Flavor::Docker => (DOCKER_MANIFEST, DOCKER_CONFIG),
        };
        if flavor == Flavor::Docker {
            for layer in &mut layers {
                layer.media_type = DOCKER_LAYER.to_owned();
            }
        }
        let config = Bytes::from(config(&layers).to_string());
        let config_digest = BlobDigest::of(&config);
        let described: Vec<Value> = layers
            .iter()
            .map(|l| descriptor(&l.media_type, &l.digest, l.blob.len()))
            .collect();
        let manifest = Bytes::from(
            json!({
                "schemaVersion": 2,
                "mediaType": manifest_type,
                "config": descriptor(config_type, &config_digest, config.len()),
                "layers": described,
            })
            .to_string(),
        );
        Self {
            manifest_digest: BlobDigest::of(&manifest),
            manifest,
            manifest_media_type: manifest_type,
            config,
            config_digest,
            layers,
        }
    }

    pub fn diff_ids(&self) -> Vec<DiffId> {
        self.layers.iter().map(|l| l.diff_id).collect()
    }

    pub fn chain_ids(&self) -> Vec<ChainId> {
        ChainId::chain(&self.diff_ids())
    }

    /// Compressed bytes of all layers.
    pub fn layers_size(&self) -> u64 {
        self.layers.iter().map(|l| l.blob.len() as u64).sum()
    }

    /// Puts blobs, config and manifest into `repository` of an origin, and points `tag` at the manifest.
    pub fn push(&self, origin: &Origin, repository: &str, tag: &str) {
        for layer in &self.layers {
            origin.add_blob(repository, layer.blob.clone());
        }
        origin.add_blob(repository, self.config.clone());
        origin.add_manifest(repository, Some(tag), self.manifest_media_type, self.manifest.clone());
    }
}

/// An OCI descriptor.
pub fn descriptor(media_type: &str, digest: &BlobDigest, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

/// An index of images for amd64 and, with the same content, arm64: enough for clients that select a platform.
pub fn index_of(images: &[(&str, &SyntheticImage)]) -> Bytes {
    let manifests: Vec<Value> = images
        .iter()
        .map(|(architecture, image)| {
            let mut d = descriptor(image.manifest_media_type, &image.manifest_digest, image.manifest.len());
            d["platform"] = json!({ "architecture": architecture, "os": "linux" });
            d
        })
        .collect();
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests })
        .to_string()
        .into()
}

fn config(layers: &[SyntheticLayer]) -> Value {
    let diff_ids: Vec<DiffId> = layers.iter().map(|l| l.diff_id).collect();
    let history: Vec<Value> = (0..layers.len())
        .map(|i| json!({ "created": "2024-01-01T00:00:00Z", "created_by": format!("synthetic layer {i}") }))
        .collect();
    json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "2024-01-01T00:00:00Z",
        "config": { "Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/bin/true"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    })
}
