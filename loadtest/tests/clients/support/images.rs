//! The images that are pulled.
//!
//! In: a seed. Out: images any client can unpack, an index of two, and the digests a client must end up with.
//! Invariant: no two seeds share a blob, so that a client that keeps blobs cannot take one image's for another's.
//! Not here: the zoo of odd layers; clients unpack what they like, we compare what they store.

use std::collections::BTreeSet;

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, Rng, SyntheticImage, index_of};
use serde_json::Value;

/// One layer a size, of noise that does not compress; gzip.
pub fn image(seed: u64, layer_bytes: &[usize]) -> SyntheticImage {
    let layers = layer_bytes.iter().enumerate().map(|(i, size)| {
        let mut rng = Rng::new(seed.wrapping_mul(1000).wrapping_add(i as u64));
        let mut b = LayerBuilder::new(Dialect::Pax);
        b.dir("srv", Meta::mode(0o755));
        b.file(format!("srv/noise-{i}"), Meta::default(), rng.bytes(*size));
        b.file(format!("srv/text-{i}"), Meta::mode(0o755), rng.text(3000));
        b.symlink(format!("srv/link-{i}"), Meta::default(), "noise-0");
        b.finish(Compression::Gzip)
    });
    SyntheticImage::new(Flavor::Oci, layers.collect())
}

/// The same layers for another architecture: config and manifest say so.
fn for_architecture(image: SyntheticImage, architecture: &str) -> SyntheticImage {
    let mut config: Value = serde_json::from_slice(&image.config).unwrap();
    config["architecture"] = architecture.into();
    let config = Bytes::from(config.to_string());
    let config_digest = BlobDigest::of(&config);
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["config"]["digest"] = config_digest.to_string().into();
    manifest["config"]["size"] = config.len().into();
    let manifest = Bytes::from(manifest.to_string());
    SyntheticImage {
        manifest_digest: BlobDigest::of(&manifest),
        manifest,
        config,
        config_digest,
        ..image
    }
}

/// Two platforms below one index.
pub struct MultiArch {
    pub amd64: SyntheticImage,
    pub arm64: SyntheticImage,
    pub index: Bytes,
    pub index_digest: BlobDigest,
}

impl MultiArch {
    pub fn new(seed: u64) -> MultiArch {
        MultiArch::of(seed, &[900_000, 60_000, 400_000])
    }

    /// With layers of these sizes for amd64.
    pub fn of(seed: u64, layers: &[usize]) -> MultiArch {
        let amd64 = image(seed, layers);
        let arm64 = for_architecture(image(seed + 1, &[700_000, 50_000]), "arm64");
        let index = index_of(&[("arm64", &arm64), ("amd64", &amd64)]);
        let index_digest = BlobDigest::of(&index);
        MultiArch {
            amd64,
            arm64,
            index,
            index_digest,
        }
    }

    /// Everything there is below the index, and itself.
    pub fn all(&self) -> BTreeSet<String> {
        let mut all = contents(&self.amd64);
        all.append(&mut contents(&self.arm64));
        all.insert(self.index_digest.to_string());
        all
    }
}

/// Manifest, config and layers.
pub fn contents(image: &SyntheticImage) -> BTreeSet<String> {
    let layers = image.layers.iter().map(|l| l.digest);
    let all = layers.chain([image.manifest_digest, image.config_digest]);
    all.map(|d| d.to_string()).collect()
}

/// Config and layers.
pub fn blobs(image: &SyntheticImage) -> Vec<BlobDigest> {
    let layers = image.layers.iter().map(|l| l.digest);
    layers.chain([image.config_digest]).collect()
}
