//! What an image costs its upstream: looking at it, a mirror that does not convert, and an image that is here.

use std::time::Duration;

use headstart_layer_format::{BlobDigest, routes};
use headstart_loadtest::{
    corpus::SyntheticImage,
    origin::{Auth, Origin},
};
use headstart_server::{
    config::{AccessRule, Config},
    store::units::UNIT,
};
use reqwest::Method;
use serde_json::json;

use crate::support::{REPOSITORY, Server, config, error_of, noise, until};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Longer than anything takes to begin that would begin by itself.
const A_MOMENT: Duration = Duration::from_millis(1500);

/// An image with one layer, which is no tar.
fn image(origin: &Origin, layer: &BlobDigest, size: usize) -> (BlobDigest, BlobDigest) {
    let text = r#"{"rootfs":{"diff_ids":[]}}"#;
    let config = origin.add_blob(REPOSITORY, text);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": text.len() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": size }],
    });
    (
        origin.add_manifest(REPOSITORY, Some("a"), MANIFEST, manifest.to_string()),
        config,
    )
}

/// A client that looks whether a tag has moved made the server fetch the image: every layer was queued for conversion.
#[tokio::test(flavor = "multi_thread")]
async fn the_head_of_a_manifest_brings_no_blob() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    let layer = origin.add_blob(REPOSITORY, noise(3 << 20, 1));
    let (manifest, config) = image(&origin, &layer, 3 << 20);
    for reference in ["a".to_owned(), manifest.to_string(), "a".into()] {
        let head = server.http.head(server.manifest_url(reference)).send().await.unwrap();
        assert_eq!(head.status(), 200);
    }
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(
        (origin.bytes_sent(&layer), origin.bytes_sent(&config)),
        (0, 0),
        "{:#?}",
        origin.calls()
    );
    // Who is given it pulls the rest, too.
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200);
    until("a conversion", || origin.bytes_sent(&layer) > 0).await;
    server.stop().await;
}

/// `[ingest] enabled = false`.
fn plain(origin: &Origin, dir: &std::path::Path) -> Config {
    let mut config = config(origin, dir);
    config.ingest.enabled = false;
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_does_not_convert_brings_what_is_asked_for() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = noise(64 << 20, 2);
    let layer = origin.add_blob(REPOSITORY, content.clone());
    let (manifest, config) = image(&origin, &layer, content.len());
    let server = Server::with(plain(&origin, dir.path())).await;
    for reference in ["a".to_owned(), manifest.to_string()] {
        assert_eq!(server.fetch(&server.manifest_url(reference)).await.0, 200);
    }
    let request = server
        .http
        .get(server.blob_url(&layer))
        .header("range", "bytes=50000000-50000999");
    let part = request.send().await.unwrap();
    assert_eq!(part.status(), 206);
    assert_eq!(part.bytes().await.unwrap(), content[50_000_000..50_001_000]);
    // Nodes are told to pull it as any other image, and at once.
    let own = server.anybody();
    let asked = std::time::Instant::now();
    let status = own.own(&format!("{}?wait_ms=20000", routes::image(&manifest))).await;
    assert_eq!(error_of(status).await, (404, "MANIFEST_UNKNOWN".into()));
    let toc = own.own(&format!("{}?wait_ms=20000", routes::layer_toc(&layer))).await;
    assert_eq!(error_of(toc).await, (404, "BLOB_UNKNOWN".into()));
    assert!(
        asked.elapsed() < Duration::from_secs(20),
        "there is nothing to wait for"
    );
    tokio::time::sleep(A_MOMENT).await;
    assert_eq!(
        (origin.bytes_sent(&layer), origin.bytes_sent(&config)),
        // One byte of each tells that it can be had.
        (UNIT + 1, 1),
        "{:#?}",
        origin.calls()
    );
    server.stop().await;
}

/// Nodes have layers mounted: what was converted is not lost to them when conversions are switched off.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_converted_is_served_on_without_conversions() {
    let (image, dir) = (SyntheticImage::tiny(3), tempfile::tempdir().unwrap());
    let origin = Origin::with_image(REPOSITORY, "a", &image);
    let other = SyntheticImage::tiny(4);
    other.push(&origin, REPOSITORY, "other");
    let server = Server::start(&origin, dir.path()).await;
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200);
    for layer in &image.layers {
        server.anybody().ready(&layer.digest).await;
    }
    server.stop().await;
    let server = Server::with(plain(&origin, dir.path())).await;
    for tag in ["a", "other"] {
        assert_eq!(server.fetch(&server.manifest_url(tag)).await.0, 200);
    }
    let own = server.anybody();
    assert_eq!(own.own_status(&routes::image(&image.manifest_digest)).await, 200);
    for layer in &image.layers {
        assert_eq!(own.own_status(&routes::layer_toc(&layer.digest)).await, 200);
    }
    assert_eq!(own.own_status(&routes::image(&other.manifest_digest)).await, 404);
    server.stop().await;
}

/// Longer than an upstream that answered is taken to be up, and than what is remembered of a manifest's blobs.
const NOT_REMEMBERED: Duration = Duration::from_secs(6);

/// Also by another process, and long after the upstream was last heard of; of an index, with the image that was pulled and
/// others that were not.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_here_costs_nothing_by_digest() {
    for restricted in [false, true] {
        let (image, dir) = (SyntheticImage::tiny(5), tempfile::tempdir().unwrap());
        let origin = Origin::with_image(REPOSITORY, "image", &image);
        let never = BlobDigest::of(b"another platform's");
        let child = |digest: &BlobDigest, architecture: &str| {
            json!({ "mediaType": MANIFEST, "digest": digest, "size": 1,
                    "platform": { "os": "linux", "architecture": architecture } })
        };
        let children = [
            child(&never, "s390x"),
            child(&image.manifest_digest, "amd64"),
            child(&never, "unknown"),
        ];
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": children });
        let index = origin.add_manifest(REPOSITORY, Some("multi"), INDEX, index.to_string());
        let start = async || {
            let mut config = config(&origin, dir.path());
            if restricted {
                // Then what a manifest names is not believed to be the repository's.
                config.access.rules = vec![AccessRule {
                    who: vec!["*".into()],
                    upstreams: vec![],
                    repositories: vec![],
                }];
            }
            Server::with(config).await
        };
        let pull = async |server: &Server, first: String| {
            let manifests = [first, image.manifest_digest.to_string()].map(|reference| server.manifest_url(reference));
            let blobs = image
                .layers
                .iter()
                .map(|layer| layer.digest)
                .chain([image.config_digest]);
            let blobs: Vec<_> = blobs.map(|digest| server.blob_url(&digest)).collect();
            for url in manifests.iter().chain(&blobs) {
                for method in [Method::HEAD, Method::GET] {
                    let answer = server.http.request(method, url).send().await.unwrap();
                    assert_eq!(answer.status(), 200, "{url}");
                    answer.bytes().await.unwrap();
                }
            }
        };
        let server = start().await;
        pull(&server, "multi".into()).await;
        for layer in &image.layers {
            server.anybody().ready(&layer.digest).await;
        }
        let blobs = image
            .layers
            .iter()
            .map(|layer| layer.digest)
            .chain([image.config_digest]);
        let paths: Vec<_> = blobs.map(|digest| server.app.originals.path(&digest)).collect();
        until("all of it", || paths.iter().all(|path| path.exists())).await;
        server.stop().await;

        let server = start().await;
        origin.clear_calls();
        for _ in 0..2 {
            pull(&server, index.to_string()).await;
            tokio::time::sleep(NOT_REMEMBERED).await;
        }
        pull(&server, index.to_string()).await;
        assert!(
            origin.calls().is_empty(),
            "restricted: {restricted}, {:#?}",
            origin.calls()
        );
        server.stop().await;
    }
}
