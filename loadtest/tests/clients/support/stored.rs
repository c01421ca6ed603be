//! What a client has stored, by digest.
//!
//! In: a client's storage directory. Out: digests of the files in it, hashed here.
//! Invariant: a file that is not what its name says fails the test, wherever it came from.
//! Not here: what should be there ([`super::images`]).

use std::{collections::BTreeSet, fs, path::Path};

use headstart_layer_format::BlobDigest;
use headstart_loadtest::corpus::SyntheticImage;

/// Every file of a directory whose files are named by the hex of their SHA-256.
pub fn named_by_hex(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let digest = BlobDigest::of(&fs::read(entry.path()).unwrap()).to_string();
        let name = entry.file_name().to_string_lossy().into_owned();
        assert_eq!(
            digest,
            format!("sha256:{name}"),
            "{} is not what its name says",
            entry.path().display()
        );
        found.insert(digest);
    }
    found
}

/// An OCI layout's blobs.
pub fn layout(dir: &Path) -> BTreeSet<String> {
    named_by_hex(&dir.join("blobs/sha256"))
}

/// A containerd's content store, of all namespaces.
pub fn containerd(dir: &Path) -> BTreeSet<String> {
    named_by_hex(&dir.join("root/io.containerd.content.v1.content/blobs/sha256"))
}

/// A `dir:` copy: blobs by hex, the manifest as `manifest.json`, those of an index as `HEX.manifest.json`.
pub fn skopeo_dir(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "version" {
            continue;
        }
        let digest = BlobDigest::of(&fs::read(entry.path()).unwrap());
        let hex = name.strip_suffix(".manifest.json").unwrap_or(&name);
        assert!(
            hex == "manifest.json" || hex == digest.hex(),
            "{name} is not what its name says"
        );
        found.insert(digest.to_string());
    }
    found
}

/// Podman's and buildah's storage (driver vfs): the image's record, its manifest and config as files, and the layers'
/// compressed digests as the storage recorded them when it verified and unpacked them.
pub fn assert_in_storage(root: &Path, image: &SyntheticImage) {
    let read =
        |path: &str| fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("failed to read {path}: {e}"));
    let images: serde_json::Value = serde_json::from_str(&read("vfs-images/images.json")).unwrap();
    let id = image.config_digest.hex();
    let record = images.as_array().unwrap().iter().find(|i| i["id"] == id);
    assert!(record.is_some(), "{id} is not in {images:#}");
    let mut files = BTreeSet::new();
    for file in fs::read_dir(root.join("vfs-images").join(&id)).unwrap().flatten() {
        files.insert(BlobDigest::of(&fs::read(file.path()).unwrap()));
    }
    assert!(
        files.contains(&image.manifest_digest) && files.contains(&image.config_digest),
        "{files:?}"
    );

    let layers: serde_json::Value = serde_json::from_str(&read("vfs-layers/layers.json")).unwrap();
    for layer in &image.layers {
        let known = layers.as_array().unwrap().iter().any(|l| {
            l["compressed-diff-digest"] == layer.digest.to_string() && l["diff-digest"] == layer.diff_id.to_string()
        });
        assert!(known, "{} is not in {layers:#}", layer.digest);
    }
}
