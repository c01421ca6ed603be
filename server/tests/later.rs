//! Upstreams that say when to come back: they are left alone until then, and clients are told.

mod support;

use std::time::{Duration, Instant};

use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use serde_json::json;
use support::{REPOSITORY, Server, noise};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct Setup {
    origin: Origin,
    server: Server,
    _dir: tempfile::TempDir,
}

/// With a manifest that is known, by the tag `known`.
async fn setup(auth: Auth) -> Setup {
    let (origin, dir) = (Origin::start(auth), tempfile::tempdir().unwrap());
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] }).to_string();
    origin.add_manifest(REPOSITORY, Some("known"), OCI_INDEX, index.clone());
    origin.add_manifest(REPOSITORY, Some("unknown"), OCI_INDEX, index.replace('2', "2 "));
    let server = Server::start(&origin, dir.path()).await;
    assert_eq!(server.fetch(&server.manifest_url("known")).await.0, 200);
    origin.clear_calls();
    Setup {
        origin,
        server,
        _dir: dir,
    }
}

fn later(code: u16, secs: u64) -> Fault {
    Fault::Status {
        code,
        retry_after_secs: Some(secs),
    }
}

/// Status, and seconds until the client is to come back.
async fn told(server: &Server, url: &str) -> (u16, u64) {
    let answer = server.get(url).await;
    let secs = answer.headers().get("retry-after");
    let secs = secs.map_or(0, |secs| secs.to_str().unwrap().parse().unwrap());
    (answer.status().as_u16(), secs)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_503_that_says_when_is_told_on_and_is_not_asked_again_until_then() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    let blobs = [1, 2].map(|seed| origin.add_blob(REPOSITORY, noise(1000, seed)));
    origin.always(Target::Everything, later(503, 300));
    for url in [server.blob_url(&blobs[0]), server.manifest_url("unknown")] {
        let (status, secs) = told(&server, &url).await;
        assert!(status == 503 && (290..=301).contains(&secs), "{status} {secs}");
    }
    let calls = origin.calls();
    assert_eq!(calls.len(), 2, "each once: {calls:#?}");
    // Of other blobs and manifests, too.
    for url in [server.blob_url(&blobs[1]), server.manifest_url("other")] {
        let (status, secs) = told(&server, &url).await;
        assert!(status == 503 && (290..=301).contains(&secs), "{status} {secs}");
    }
    assert_eq!(origin.calls().len(), 2);
    // What is known is served without it.
    for _ in 0..2 {
        let answer = server.get(&server.manifest_url("known")).await;
        assert_eq!(answer.status(), 200);
        assert!(answer.headers().contains_key("warning"));
    }
    assert_eq!(origin.calls().len(), 3, "one HEAD");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_is_waited_for() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    let content = noise(1000, 3);
    let blob = origin.add_blob(REPOSITORY, content.clone());
    for url in [server.blob_url(&blob), server.manifest_url("unknown")] {
        origin.once(Target::Everything, later(503, 1));
        let began = Instant::now();
        assert_eq!(server.fetch(&url).await.0, 200);
        assert!(began.elapsed() >= Duration::from_secs(1));
    }
    server.stop().await;
}

/// The usual policy asks for a known tag by HEAD.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_a_head_meets_holds_heads() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    origin.always(Target::ManifestHeads, later(429, 300));
    for _ in 0..3 {
        let answer = server.get(&server.manifest_url("known")).await;
        assert_eq!(answer.status(), 200);
        assert!(answer.headers().contains_key("warning"));
    }
    assert_eq!(origin.calls().len(), 1);
    // And nothing else.
    assert_eq!(server.fetch(&server.manifest_url("unknown")).await.0, 200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_realm_that_says_later_is_left_alone() {
    for code in [429, 503] {
        let Setup { origin, server, _dir } = setup(Auth::bearer()).await;
        origin.expire_tokens();
        origin.always(Target::Token, later(code, 300));
        for tag in ["unknown", "other", "unknown"] {
            let (status, secs) = told(&server, &server.manifest_url(tag)).await;
            assert!(status == code && (290..=301).contains(&secs), "{status} {secs}");
        }
        let asked = origin.calls().iter().filter(|call| call.is_token()).count();
        assert_eq!(asked, 1, "{code}");
        server.stop().await;
    }
}
