//! The upstreams: Debian's docker-registry with images in it, behind a relay that counts; and its pusher.
//!
//! In: images. Out: an address. Invariant: pushed by the distribution API, so that the registry has verified everything.
//! Not here: the scripted origin, which the library has.

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use headstart_loadtest::{
    corpus::{OCI_INDEX, SyntheticImage},
    playground::registry::Registry,
    relay::{LinkShape, Relay, Traffic},
};

use super::{Bench, images::MultiArch};

/// A registry behind a relay.
pub struct Upstream {
    pub registry: Registry,
    pub link: Relay,
    http: reqwest::Client,
}

impl Upstream {
    pub async fn start(bench: &Bench, name: &str) -> Upstream {
        let storage = bench.dir(&format!("{name}.storage"));
        let registry = Registry::start(&bench.work, name, &storage, false).await.unwrap();
        let link = Relay::start(registry.address, LinkShape::default()).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Upstream { registry, link, http }
    }

    /// What the server is told.
    pub fn url(&self) -> String {
        self.link.url()
    }

    pub fn traffic(&self) -> Traffic {
        self.link.traffic()
    }

    pub async fn push(&self, repository: &str, tag: &str, image: &SyntheticImage) {
        for layer in &image.layers {
            self.push_blob(repository, &layer.blob).await;
        }
        self.push_blob(repository, &image.config).await;
        self.push_manifest(repository, tag, image.manifest_media_type, &image.manifest)
            .await;
    }

    /// Each platform by its digest, and the index by `tag`.
    pub async fn push_multi(&self, repository: &str, tag: &str, multi: &MultiArch) {
        for image in [&multi.amd64, &multi.arm64] {
            self.push(repository, &image.manifest_digest.to_string(), image).await;
        }
        self.push_manifest(repository, tag, OCI_INDEX, &multi.index).await;
    }

    pub async fn push_blob(&self, repository: &str, blob: &Bytes) {
        let base = self.registry.url();
        let begun = self
            .http
            .post(format!("{base}/v2/{repository}/blobs/uploads/"))
            .send()
            .await
            .unwrap();
        assert_eq!(begun.status(), 202);
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let location = if location.starts_with('/') {
            format!("{base}{location}")
        } else {
            location
        };
        let joint = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{joint}digest={}", BlobDigest::of(blob));
        let done = self.http.put(url).body(blob.clone()).send().await.unwrap();
        assert_eq!(done.status(), 201);
    }

    pub async fn push_manifest(&self, repository: &str, reference: &str, media_type: &str, manifest: &Bytes) {
        let url = format!("{}/v2/{repository}/manifests/{reference}", self.registry.url());
        let request = self
            .http
            .put(url)
            .header("content-type", media_type)
            .body(manifest.clone());
        let answer = request.send().await.unwrap();
        let status = answer.status();
        assert_eq!(status, 201, "{}", answer.text().await.unwrap_or_default());
    }
}
