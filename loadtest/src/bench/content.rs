//! What every server serves: one image with a small and a large layer.
//!
//! In: the layers' sizes. Out: paths, the bytes behind them, and files for nginx.
//! Invariant: the bytes are the same in every run.
//! Not here: who serves it ([`super::peers`]).

use std::{fs, io, path::Path};

use bytes::Bytes;
use serde_json::json;

use crate::corpus::{Compression, Dialect, LayerBuilder, Meta, OCI_MANIFEST, SyntheticImage, SyntheticLayer, big_blob};

pub const REPOSITORY: &str = "bench/app";
pub const TAG: &str = "v1";

/// Bytes of annotations, so that the manifest has the size of a usual one with ten layers.
const PADDING: usize = 2_500;

/// One thing that is asked for over and over.
#[derive(Debug)]
pub struct Asked {
    pub name: &'static str,
    /// As in a URL.
    pub path: String,
    pub body: Bytes,
}

#[derive(Debug)]
pub struct Content {
    pub config: Bytes,
    pub layers: Vec<SyntheticLayer>,
    pub manifest: Bytes,
    asked: Vec<Asked>,
}

impl Content {
    pub fn new(small: u64, large: u64) -> Self {
        let image = SyntheticImage::new(Default::default(), vec![layer(1, small), layer(2, large)]);
        let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).expect("we wrote it");
        manifest["annotations"] = json!({ "test.headstart.padding": "x".repeat(PADDING) });
        let manifest = Bytes::from(manifest.to_string());
        let digest = headstart_layer_format::BlobDigest::of(&manifest);
        let asked = |name, path: String, body: &Bytes| Asked {
            name,
            path: format!("/v2/{REPOSITORY}/{path}"),
            body: body.clone(),
        };
        let blob = |name, layer: &SyntheticLayer| asked(name, format!("blobs/{}", layer.digest), &layer.blob);
        Self {
            asked: vec![
                asked("manifest-digest", format!("manifests/{digest}"), &manifest),
                asked("manifest-tag", format!("manifests/{TAG}"), &manifest),
                blob("blob-small", &image.layers[0]),
                blob("blob-large", &image.layers[1]),
            ],
            config: image.config,
            layers: image.layers,
            manifest,
        }
    }

    pub fn asked(&self) -> &[Asked] {
        &self.asked
    }

    /// The same bytes as files, at the same paths.
    pub fn write_files(&self, root: &Path) -> io::Result<()> {
        for asked in &self.asked {
            let path = root.join(asked.path.trim_start_matches('/'));
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, &asked.body)?;
        }
        Ok(())
    }

    pub fn manifest_type(&self) -> &'static str {
        OCI_MANIFEST
    }
}

/// An uncompressed layer of one file: as a blob it is as good as any, and conversion takes it in its stride.
fn layer(seed: u64, size: u64) -> SyntheticLayer {
    let mut layer = LayerBuilder::new(Dialect::Ustar);
    layer.file(format!("data-{seed}"), Meta::mode(0o644), big_blob(seed, size));
    layer.finish(Compression::Plain)
}
