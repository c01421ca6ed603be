//! Manifests that are withheld because a blob of theirs could not be had: what that must not touch.
//!
//! In: an upstream with one thing that is wrong. Out: everything else is served as before.
//! Not here: that the broken image itself is withheld (`tag_policy.rs`, `blobs.rs`).

mod support;

use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use headstart_server::{store::facts::Source, upstream::Caller};
use serde_json::{Value, json};
use support::{REPOSITORY, Server, UPSTREAM, config, noise, until};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";

struct Setup {
    origin: Origin,
    server: Server,
    _dir: tempfile::TempDir,
}

async fn setup() -> Setup {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    // What is learned must be learned from these requests, not from the breaker.
    config.upstreams[0].breaker.failures_max = 1000;
    let server = Server::with(config).await;
    Setup {
        origin,
        server,
        _dir: dir,
    }
}

impl Setup {
    fn image(&self, layers: &[(&str, BlobDigest)]) -> (BlobDigest, BlobDigest) {
        let text = json!({ "layers": layers.iter().map(|l| l.1).collect::<Vec<_>>() }).to_string();
        let config = self.origin.add_blob(REPOSITORY, text.clone());
        let layer = |(kind, digest): &(&str, BlobDigest)| json!({ "mediaType": kind, "digest": digest, "size": 1000 });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": text.len() },
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        let digest = self
            .origin
            .add_manifest(REPOSITORY, None, OCI_MANIFEST, manifest.to_string());
        (digest, config)
    }

    fn index(&self, tag: &str, children: &[BlobDigest]) -> BlobDigest {
        let child = |digest: &BlobDigest| json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": 1 });
        let children: Vec<Value> = children.iter().map(child).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children });
        self.origin
            .add_manifest(REPOSITORY, Some(tag), OCI_INDEX, index.to_string())
    }

    async fn status(&self, reference: impl std::fmt::Display) -> u16 {
        self.server.fetch(&self.server.manifest_url(reference)).await.0
    }

    /// Pulls the manifest and its blobs, and waits until all of them are here.
    async fn have(&self, manifest: BlobDigest, blobs: &[BlobDigest]) {
        assert_eq!(self.status(manifest).await, 200);
        for digest in blobs {
            assert_eq!(self.server.fetch(&self.server.blob_url(digest)).await.0, 200);
            let deadline = Instant::now() + Duration::from_secs(30);
            while !self.server.app.originals.path(digest).exists() {
                assert!(Instant::now() < deadline, "the blob is never published");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

/// Layers with URLs of their own are at no registry: clients that ask for them all the same are told so, and that says
/// nothing about the image.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_layer_that_is_not_there_withholds_nothing() {
    let setup = setup().await;
    let layer = setup.origin.add_blob(REPOSITORY, noise(1000, 1));
    let foreign = BlobDigest::of(b"elsewhere");
    let (image, config) = setup.image(&[(FOREIGN, foreign), (LAYER, layer)]);
    setup.index("a", &[image]);
    setup.have(image, &[config, layer]).await;
    assert_eq!(setup.server.error(&setup.server.blob_url(&foreign)).await.0, 404);
    for _ in 0..2 {
        assert_eq!(setup.status(image).await, 200);
        assert_eq!(setup.status("a").await, 200);
    }
}

/// So it is with an artifact, whose config says nothing of layers, and with what only its URLs tell to be elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_artifact_has_elsewhere_withholds_nothing() {
    let setup = setup().await;
    let Setup { origin, server, .. } = &setup;
    let [config, blob] = [2, 3].map(|seed| origin.add_blob(REPOSITORY, noise(1000, seed)));
    let by_type = json!({ "mediaType": FOREIGN, "digest": BlobDigest::of(b"by type"), "size": 1 });
    let by_urls = json!({ "mediaType": "application/vnd.example", "digest": BlobDigest::of(b"by urls"), "size": 1,
                          "urls": ["https://example.test/blob"] });
    let artifact = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example",
        "config": { "mediaType": "application/vnd.example.config", "digest": config, "size": 1000 },
        "layers": [by_type, { "mediaType": "application/vnd.example", "digest": blob, "size": 1000 }, by_urls],
    });
    let artifact = origin.add_manifest(REPOSITORY, Some("artifact"), OCI_MANIFEST, artifact.to_string());
    // Its other blobs are here before it is: then the foreign one was what the upstream was asked for.
    for digest in [config, blob] {
        assert_eq!(server.fetch(&server.blob_url(&digest)).await.0, 200);
    }
    assert_eq!(setup.status("artifact").await, 200);
    setup.have(artifact, &[config, blob]).await;
    origin.stop();
    for reference in ["artifact".to_owned(), artifact.to_string()] {
        assert_eq!(setup.status(reference).await, 200, "all that is to be had here is here");
    }
}

/// An image that is here as a whole can be had, whatever is the matter with another platform's.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_platform_does_not_take_the_others_with_it() {
    let setup = setup().await;
    let layers = [1, 2].map(|seed| setup.origin.add_blob(REPOSITORY, noise(1000, seed)));
    let (whole, whole_config) = setup.image(&[(LAYER, layers[0])]);
    let (broken, _) = setup.image(&[(LAYER, layers[1])]);
    let index = setup.index("a", &[broken, whole]);
    assert_eq!(setup.status("a").await, 200);
    setup.origin.remove(REPOSITORY, &layers[1]);
    assert_eq!(setup.status(broken).await, 404, "it is withheld");
    assert_eq!(setup.server.error(&setup.server.blob_url(&layers[1])).await.0, 404);
    assert_eq!(setup.status("a").await, 404, "and so is the index: no platform is here");
    setup.have(whole, &[whole_config, layers[0]]).await;
    assert_eq!(setup.status(broken).await, 404, "still withheld");
    for reference in ["a".to_owned(), index.to_string()] {
        assert_eq!(setup.status(&reference).await, 200, "one platform is here: {reference}");
    }
}

/// Whoever was given the image, and not its layer, comes again with the index: it was refused no sooner than at the image, which
/// podman cannot have from elsewhere by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_breaks_off_withholds_the_index_above_it() {
    let setup = setup().await;
    let size = 3 << 20;
    let layer = setup.origin.add_blob(REPOSITORY, noise(size, 9));
    let (image, _) = setup.image(&[(LAYER, layer)]);
    let index = setup.index("multi", &[image]);
    setup
        .origin
        .always(Target::Digest(layer), Fault::WrongByte { at: size as u64 - 1 });
    assert_eq!(setup.status("multi").await, 200);
    assert_eq!(setup.status(image).await, 200, "it begins well");
    let (_, body) = setup.server.fetch(&setup.server.blob_url(&layer)).await;
    assert!(body.is_err() || body.is_ok_and(|body| body.len() < size));
    let source = Source {
        upstream: UPSTREAM.into(),
        repository: REPOSITORY.into(),
    };
    let blobs = &setup.server.app.blobs;
    let is_known = || blobs.setback(&source, &Caller::Server, &layer).is_some();
    until("it is known", is_known).await;
    for reference in ["multi".to_owned(), index.to_string()] {
        assert_eq!(setup.status(reference).await, 502);
    }
    // Others are not touched by it.
    let fine = setup.origin.add_blob(REPOSITORY, noise(1000, 10));
    let (fine, _) = setup.image(&[(LAYER, fine)]);
    setup.index("fine", &[fine]);
    assert_eq!(setup.status("fine").await, 200);
}

/// Anybody can ask for a manifest as if it were a blob, and is told by the upstream that there is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_is_asked_for_as_a_blob_withholds_no_index() {
    let setup = setup().await;
    let layer = setup.origin.add_blob(REPOSITORY, noise(1000, 7));
    let (image, _) = setup.image(&[(LAYER, layer)]);
    let index = setup.index("multi", &[image]);
    for round in 0..3 {
        let blob = setup.server.fetch(&setup.server.blob_url(&image)).await.0;
        // Once it is here as a manifest, its bytes are the repository's.
        assert_eq!(blob, if round == 0 { 404 } else { 200 });
        assert_eq!(setup.status("multi").await, 200);
        assert_eq!(setup.status(index).await, 200);
        assert_eq!(setup.status(image).await, 200);
    }
}

/// A cluster of other machines than the server's pulls what is here with one HEAD, as any other.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_with_an_image_that_is_here_costs_one_head() {
    let setup = setup().await;
    let layers = [1, 2].map(|seed| setup.origin.add_blob(REPOSITORY, noise(1000, seed)));
    let (here, here_config) = setup.image(&[(LAYER, layers[0])]);
    let (servers_own, _) = setup.image(&[(LAYER, layers[1])]);
    let own = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let child = |digest: &BlobDigest, architecture: &str| json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "platform": { "os": "linux", "architecture": architecture } });
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [child(&servers_own, own), child(&here, "riscv64")],
    });
    setup
        .origin
        .add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index.to_string());
    assert_eq!(setup.status("a").await, 200);
    setup.have(here, &[here_config, layers[0]]).await;
    let Setup { origin, server, _dir } = setup;
    server.stop().await;
    let server = Server::with(config(&origin, _dir.path())).await;
    origin.clear_calls();
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200);
    let calls: Vec<_> = origin.calls().into_iter().map(|c| (c.method, c.path)).collect();
    assert_eq!(calls.len(), 1, "{calls:#?}");
    assert_eq!(calls[0].0, "HEAD");
}

/// One blob of which the upstream makes a mess is not an outage of the upstream.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_about_one_blob_is_not_held_against_others() {
    let setup = setup().await;
    let layers = [1, 2].map(|seed| setup.origin.add_blob(REPOSITORY, noise(1000, seed)));
    let (one, _) = setup.image(&[(LAYER, layers[0])]);
    let (other, _) = setup.image(&[(LAYER, layers[1])]);
    for image in [one, other] {
        assert_eq!(setup.status(image).await, 200);
    }
    // Wait until the conversions are through with them, then lose the layers.
    for layer in layers {
        setup.have(one, &[layer]).await;
        setup.server.app.originals.remove(&layer).unwrap();
    }
    setup.origin.always(
        Target::Digest(layers[0]),
        Fault::Status {
            code: 500,
            retry_after_secs: None,
        },
    );
    // The last good answer of the upstream is too old by then to speak for it.
    tokio::time::sleep(Duration::from_millis(5_200)).await;
    assert_eq!(setup.status(one).await, 502);
    assert_eq!(setup.status(other).await, 200);
}
