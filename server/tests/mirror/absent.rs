//! What an upstream has just said it does not have, and what a client already has, is not fetched.

use std::time::Duration;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Origin};

use crate::support::{REPOSITORY, Server, config, noise};

/// GET, ranged GET and HEAD believe the same "no", and it ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_blob_costs_one_call_however_it_is_asked_for() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    config.fetch.negative_ttl_ms = 60_000;
    let server = Server::with(config).await;
    // The repository is there, other blobs of it are.
    let there = origin.add_blob(REPOSITORY, noise(3 << 20, 1));
    let ask = async |way: &str, digest: &BlobDigest| {
        let url = server.blob_url(digest);
        let request = match way {
            "head" => server.http.head(&url),
            "range" => server.http.get(&url).header("range", "bytes=5-9"),
            "suffix" => server.http.get(&url).header("range", "bytes=-9"),
            _ => server.http.get(&url),
        };
        request.send().await.unwrap().status().as_u16()
    };
    for (seed, first) in ["get", "range", "suffix", "head"].into_iter().enumerate() {
        let missing = BlobDigest::of(&[seed as u8]);
        origin.clear_calls();
        for way in [first, "get", "range", "head", "suffix", "get"] {
            assert_eq!(ask(way, &missing).await, 404, "{first}, then {way}");
        }
        let calls = origin.calls();
        assert_eq!(calls.len(), 1, "{first} first: {calls:#?}");
    }
    // A stampede is one call, too.
    let missing = BlobDigest::of(b"stampede");
    origin.clear_calls();
    let all = (0..50).map(|n| ask(if n % 2 == 0 { "get" } else { "range" }, &missing));
    assert!(futures_util::future::join_all(all).await.iter().all(|s| *s == 404));
    assert_eq!(origin.calls().len(), 1);
    // Nothing of this is about another blob.
    assert_eq!(ask("range", &there).await, 206);
    assert_eq!(ask("get", &there).await, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_no_to_a_blob_is_forgotten_in_time_and_not_kept_where_that_is_off() {
    for ttl_ms in [0, 300] {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let mut config = config(&origin, dir.path());
        config.fetch.negative_ttl_ms = ttl_ms;
        let server = Server::with(config).await;
        let late = noise(1000, 2);
        let url = server.blob_url(&BlobDigest::of(&late));
        assert_eq!(server.fetch(&url).await.0, 404);
        origin.add_blob(REPOSITORY, late);
        // The manifest that would say so never comes.
        tokio::time::sleep(Duration::from_millis(ttl_ms * 2)).await;
        assert_eq!(server.fetch(&url).await.0, 200, "{ttl_ms}");
        server.stop().await;
    }
}

/// A client that has the blob asks whether it is still the same: that is no reason to fetch it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cold_blob_that_the_client_has_costs_a_head() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    let digest = origin.add_blob(REPOSITORY, noise(3 << 20, 3));
    let url = server.blob_url(&digest);
    for (tag, range) in [
        (format!("\"{digest}\""), None),
        (format!("\"x\", W/\"{digest}\""), None),
        ("*".to_owned(), None),
        (format!("\"{digest}\""), Some("bytes=0-9")),
    ] {
        let mut request = server.http.get(&url).header("if-none-match", &tag);
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 304, "{tag}");
        assert_eq!(response.headers()["docker-content-digest"], digest.to_string());
        assert_eq!(response.headers()["etag"], format!("\"{digest}\""));
    }
    assert_eq!(origin.bytes_sent(&digest), 0, "{:#?}", origin.calls());
    assert!(origin.calls().iter().all(|c| c.method == "HEAD"));
    // Nor is what the upstream does not have "not modified".
    let other = BlobDigest::of(b"never");
    let missing = server
        .http
        .get(server.blob_url(&other))
        .header("if-none-match", format!("\"{other}\""));
    assert_eq!(missing.send().await.unwrap().status(), 404);
    // Of another version it is a GET like any.
    let changed = server.http.get(&url).header("if-none-match", "\"another\"");
    let response = changed.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.bytes().await.unwrap(), noise(3 << 20, 3));
    server.stop().await;
}
