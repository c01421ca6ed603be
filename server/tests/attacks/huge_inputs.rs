//! Inputs without a bound: `n=` of the tag list, for which a registry allocated at once (CVE-2023-2253); manifests and
//! configs that a client reads into memory whatever their size (CVE-2020-1702).
//!
//! The defence: a bound on each: `n` is a wish, a manifest ends at `fetch.manifest_size_max`, whatever its
//! `Content-Length` says or does not say, a list at some pages, a config at 8 MiB, and a range header at 1,024 ranges, whose
//! answer is never longer than the whole (many small or overlapping ranges were an attack on web servers: RFC 9110, 14.2).

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use serde_json::json;

use crate::support::{REPOSITORY, Server, config, noise};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test(flavor = "multi_thread")]
async fn numbers_and_headers_are_wishes() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    let index = json!({ "schemaVersion": 2, "manifests": [] }).to_string();
    let digest = origin.add_manifest(REPOSITORY, Some("t00000"), INDEX, index);
    for number in 1..12_000 {
        origin.tag(REPOSITORY, &format!("t{number:05}"), digest);
    }
    origin.page_max(5000);
    let list = server.url(&format!("{REPOSITORY}/tags/list"));
    for n in [
        "10001",
        "2147483647",
        "9223372036854775807",
        "18446744073709551616",
        &"9".repeat(4000),
    ] {
        let response = server.get(&format!("{list}&n={n}")).await;
        assert_eq!(response.status(), 200, "{n}");
        assert!(response.headers().contains_key("link"));
        let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        assert_eq!(body["tags"].as_array().unwrap().len(), 10_000);
    }
    let asked: Vec<_> = origin.calls().iter().filter_map(|c| c.query.clone()).collect();
    assert!(
        asked.iter().all(|q| q.contains("n=1000") || q.contains("n=5000")),
        "{asked:?}"
    );

    let blob = origin.add_blob(REPOSITORY, noise(100_000, 1));
    let ask = async |set: &[String]| {
        let request = server.http.get(server.blob_url(&blob));
        let response = request
            .header("range", format!("bytes={}", set.join(",")))
            .send()
            .await
            .unwrap();
        (response.status().as_u16(), response.bytes().await.unwrap().len())
    };
    let single = |count: usize| (0..count).map(|i| format!("{0}-{0}", i * 2)).collect::<Vec<_>>();
    // Each part has a head of some 150 bytes; as many as 500 are shorter than the blob.
    let (status, len) = ask(&single(500)).await;
    assert!(status == 206 && len <= 100_000, "{status}: {len}");
    assert_eq!(ask(&single(1024)).await, (200, 100_000));
    assert_eq!(ask(&single(1025)).await.0, 400);
    let overlapping = |count: usize| (0..count).map(|i| format!("{i}-")).collect::<Vec<_>>();
    assert_eq!(ask(&overlapping(1024)).await, (206, 100_000));
}

/// An upstream whose pages never end, each with a link to the next.
#[tokio::test(flavor = "multi_thread")]
async fn a_list_without_an_end_has_one_here() {
    let counter = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let answer = {
        let counter = counter.clone();
        move |uri: axum::http::Uri| {
            let number = counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let link = format!("<{}?last=t{number}>; rel=\"next\"", uri.path());
            async move {
                (
                    [("link", link)],
                    json!({ "tags": [format!("t{number}")], "manifests": [] }).to_string(),
                )
            }
        }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let upstream = tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    config.upstreams[0].url = url;
    let server = Server::with(config).await;
    for path in ["tags/list".to_owned(), format!("referrers/{}", BlobDigest::of(b"x"))] {
        let response = server.get(&server.url(&format!("{REPOSITORY}/{path}"))).await;
        assert_eq!(response.status(), 200);
        assert!(response.headers().contains_key("link"), "that is not all: {path}");
        let asked = counter.swap(0, std::sync::atomic::Ordering::SeqCst);
        assert!((2..=64).contains(&asked), "{path}: {asked}");
    }
    upstream.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_and_configs_end() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    // As large as the specification asks a registry to take, and a byte more; with and without a length.
    let padded = |len: usize| {
        let mut bytes = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] })
            .to_string()
            .into_bytes();
        bytes.resize(len, b' ');
        bytes
    };
    let largest = origin.add_manifest(REPOSITORY, None, INDEX, padded(4 << 20));
    assert_eq!(
        server.fetch(&server.manifest_url(largest)).await.1.unwrap().len(),
        4 << 20
    );
    let large = origin.add_manifest(REPOSITORY, None, INDEX, padded((4 << 20) + 1));
    assert_eq!(server.error(&server.manifest_url(large)).await.0, 502);
    origin.always(Target::Digest(large), Fault::NoLength);
    assert_eq!(server.error(&server.manifest_url(large)).await.0, 502);
    assert!(!server.app.originals.path(&large).exists());

    // A config is read for its DiffIDs: one that is too large is an ordinary blob, and its image an ordinary image.
    let image_config = origin.add_blob(REPOSITORY, noise((8 << 20) + 1, 2));
    let layer = origin.add_blob(REPOSITORY, noise(1000, 3));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": image_config, "size": 5 },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": 1000 }],
    });
    let digest = origin.add_manifest(REPOSITORY, Some("a"), MANIFEST, manifest.to_string());
    assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200);
    assert_eq!(
        server.fetch(&server.blob_url(&image_config)).await.1.unwrap().len(),
        (8 << 20) + 1
    );
    assert_eq!(server.app.store.diff_ids(&digest).unwrap(), None);
}
