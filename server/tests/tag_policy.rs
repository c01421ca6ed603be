//! Tags, lists and manifests when the upstream moves, is slow to be asked, says no, or is gone.
//!
//! In: an origin whose calls are counted. Out: what clients get, and what it cost the upstream.
//! Invariant: no test waits for a time to live; those that need one to be over set it to nothing.
//! Not here: the specification's own checks (`conformance/`).

mod support;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Call, Fault, Origin, Target};
use headstart_server::config::{Config, TagPolicy};
use serde_json::json;
use support::{REPOSITORY, Server, config, error_of, noise};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// An index with no children.
fn index(seed: u32) -> Vec<u8> {
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "seed": seed })
        .to_string()
        .into_bytes()
}

struct Setup {
    origin: Origin,
    server: Server,
    dir: tempfile::TempDir,
}

async fn setup(change: impl FnOnce(&mut Config)) -> Setup {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    change(&mut config);
    let server = Server::with(config).await;
    Setup { origin, server, dir }
}

impl Setup {
    /// The same data directory, another configuration.
    async fn again(self, change: impl FnOnce(&mut Config)) -> Self {
        let Self { origin, server, dir } = self;
        server.stop().await;
        let mut config = config(&origin, dir.path());
        change(&mut config);
        let server = Server::with(config).await;
        Self { origin, server, dir }
    }

    fn image(&self, tag: Option<&str>, layers: &[BlobDigest]) -> (BlobDigest, BlobDigest) {
        let config = self.origin.add_blob(REPOSITORY, "{}");
        let layer = |digest: &BlobDigest| json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": 1000 });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2 },
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
        });
        let digest = self
            .origin
            .add_manifest(REPOSITORY, tag, OCI_MANIFEST, manifest.to_string());
        (digest, config)
    }

    /// Methods of the calls that concern manifests.
    fn manifest_calls(&self) -> Vec<String> {
        self.origin
            .calls()
            .into_iter()
            .filter(Call::is_manifest)
            .map(|c| c.method)
            .collect()
    }

    /// Waits until the blob is here as a whole.
    async fn have(&self, digest: &BlobDigest) {
        assert_eq!(self.server.fetch(&self.server.blob_url(digest)).await.0, 200);
        let originals = &self.server.app.originals;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !originals.path(digest).exists() {
            assert!(std::time::Instant::now() < deadline, "the blob is never published");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

fn warning(response: &reqwest::Response) -> Option<&str> {
    response.headers().get("warning").map(|v| v.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_cold_requests_are_one_get_and_a_warm_one_is_one_head_by_tag_and_none_by_digest() {
    let setup = setup(|_| {}).await;
    let Setup { origin, server, .. } = &setup;
    let digest = origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(1));
    origin.always(
        Target::Manifests,
        Fault::DelayHeaders(std::time::Duration::from_millis(300)),
    );
    let url = server.manifest_url("a");
    let all = (0..100).map(|i| {
        let accept = if i % 2 == 0 { "*/*" } else { "application/*, text/x" };
        let request = server.http.get(&url).header("accept", accept);
        async move { request.send().await.unwrap().status().as_u16() }
    });
    let statuses = futures_util::future::join_all(all).await;
    assert!(statuses.iter().all(|s| *s == 200));
    let calls = setup.manifest_calls();
    // Those who come when the answer is already here ask whether it still holds.
    assert_eq!(calls.iter().filter(|m| *m == "GET").count(), 1, "{calls:?}");
    assert_eq!(calls[0], "GET");
    origin.clear_faults();
    origin.clear_calls();
    assert_eq!(server.fetch(&url).await.0, 200);
    assert_eq!(setup.manifest_calls(), ["HEAD"]);
    origin.clear_calls();
    for _ in 0..3 {
        assert_eq!(server.fetch(&server.manifest_url(digest)).await.0, 200);
    }
    assert!(origin.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ttl_costs_one_call_and_a_pinned_tag_none_even_after_a_restart() {
    let ttl = |config: &mut Config| {
        config.upstreams[0].tags.policy = Some(TagPolicy::Ttl);
        config.upstreams[0].tags.ttl_ms = 3_600_000;
    };
    let pinned = |config: &mut Config| config.upstreams[0].tags.policy = Some(TagPolicy::Pinned);
    let setup = setup(ttl).await;
    setup.origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(2));
    for _ in 0..5 {
        assert_eq!(setup.server.fetch(&setup.server.manifest_url("a")).await.0, 200);
    }
    assert_eq!(setup.manifest_calls(), ["GET"]);
    // The tag moves, and nobody is told.
    setup.origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(3));
    let got = setup.server.fetch(&setup.server.manifest_url("a")).await.1.unwrap();
    assert_eq!(got, index(2));
    let setup = setup.again(pinned).await;
    let response = setup.server.get(&setup.server.manifest_url("a")).await;
    assert_eq!(warning(&response), None);
    assert_eq!(response.bytes().await.unwrap(), index(2));
    assert_eq!(setup.manifest_calls(), ["GET"]);
    // With the usual policy it is asked again.
    let setup = setup.again(|_| {}).await;
    let got = setup.server.fetch(&setup.server.manifest_url("a")).await.1.unwrap();
    assert_eq!(got, index(3));
    assert_eq!(setup.manifest_calls(), ["GET", "HEAD", "GET"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_and_deleted_tags_are_served_only_where_the_policy_says_so() {
    for (stale, deleted) in [(true, false), (false, true)] {
        let setup = setup(|config| {
            config.upstreams[0].tags.stale_if_error = stale;
            config.upstreams[0].tags.serve_deleted = deleted;
            config.fetch.negative_ttl_ms = 0;
        })
        .await;
        let url = setup.server.manifest_url("a");
        let digest = setup.origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(4));
        assert_eq!(setup.server.fetch(&url).await.0, 200);
        setup.origin.remove(REPOSITORY, &digest);
        let response = setup.server.get(&url).await;
        if deleted {
            assert_eq!(response.status(), 200);
            assert!(warning(&response).unwrap().starts_with("299 - \"deleted"));
        } else {
            assert_eq!(error_of(response).await, (404, "MANIFEST_UNKNOWN".into()));
        }
        setup.origin.stop();
        let response = setup.server.get(&url).await;
        if stale {
            assert_eq!(response.status(), 200);
            assert!(warning(&response).unwrap().starts_with("299 - \"stale"));
        } else {
            assert_eq!(error_of(response).await.1, "UNAVAILABLE");
        }
    }
}

/// An upstream that keeps a manifest for old clients beside the list for new ones, under one tag. The mirror kept what
/// the first client got, and gave it to everybody.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_gets_what_it_takes_or_what_the_upstream_gives_to_it() {
    let setup = setup(|config| {
        config.upstreams[0].tags.policy = Some(TagPolicy::Pinned);
    })
    .await;
    let Setup { origin, server, .. } = &setup;
    origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(5));
    let url = server.manifest_url("a");
    let ask = |accept: &[&'static str]| {
        let mut request = server.http.get(&url);
        for value in accept {
            request = request.header("accept", *value);
        }
        async { request.send().await.unwrap() }
    };
    let all = ask(&[DOCKER_MANIFEST, "application/vnd.x, */*;q=0.1"]).await;
    assert_eq!(all.headers()["content-type"], OCI_INDEX);
    assert_eq!(all.headers()["vary"], "Accept");
    // Pinned, but not for a client that does not take it: the upstream is asked with its own words.
    let narrow = ask(&["text/x", DOCKER_MANIFEST]).await;
    assert_eq!(
        (narrow.status().as_u16(), &narrow.headers()["content-type"]),
        (200, &OCI_INDEX.parse().unwrap())
    );
    let accepts: Vec<_> = origin.calls().iter().map(|c| c.accept.clone()).collect();
    assert_eq!(accepts.len(), 2);
    assert_eq!(accepts[0][1..], [DOCKER_MANIFEST, "application/vnd.x, */*;q=0.1"]);
    assert!(accepts[0][0].contains(OCI_INDEX), "by name, too: {accepts:?}");
    assert_eq!(accepts[1], ["text/x", DOCKER_MANIFEST]);
    // One that takes the kept type is answered from here.
    assert_eq!(ask(&[OCI_INDEX]).await.status(), 200);
    assert_eq!(origin.calls().len(), 2);
    // What was kept for all is what the next one of all gets, whatever the narrow one was given.
    let other = setup.origin.add_manifest(REPOSITORY, Some("a"), DOCKER_MANIFEST, {
        json!({ "schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "layers": [] }).to_string()
    });
    let narrow = ask(&[DOCKER_MANIFEST, "text/y"]).await;
    assert_eq!(narrow.headers()["docker-content-digest"], other.to_string());
    assert_eq!(ask(&["*/*"]).await.bytes().await.unwrap(), index(5));
    // By digest there is nothing to choose.
    let by_digest = server.http.get(server.manifest_url(BlobDigest::of(&index(5))));
    let by_digest = by_digest.header("accept", DOCKER_MANIFEST).send().await.unwrap();
    assert_eq!(
        (by_digest.status().as_u16(), by_digest.headers().get("vary")),
        (200, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stampede_for_what_is_not_there_is_one_call_and_a_refusal_is_never_kept() {
    let setup = setup(|config| config.fetch.negative_ttl_ms = 60_000).await;
    let Setup { origin, server, .. } = &setup;
    origin.add_manifest(REPOSITORY, Some("other"), OCI_INDEX, index(6));
    let unknown = BlobDigest::of(b"unknown");
    for reference in ["none".to_owned(), unknown.to_string()] {
        let url = server.manifest_url(&reference);
        let all = (0..50).map(|_| server.error(&url));
        let answers = futures_util::future::join_all(all).await;
        assert!(answers.iter().all(|a| *a == (404, "MANIFEST_UNKNOWN".into())));
        assert_eq!(setup.manifest_calls(), ["GET"], "{reference}");
        origin.clear_calls();
    }
    let layer = noise(1000, 9);
    let url = server.blob_url(&BlobDigest::of(&layer));
    let heads = (0..50).map(|_| server.http.head(&url).send());
    for head in futures_util::future::join_all(heads).await {
        assert_eq!(head.unwrap().status(), 404);
    }
    let calls = origin.calls();
    assert_eq!(calls.iter().filter(|c| c.is_blob()).count(), 1, "{calls:#?}");
    // A manifest that came afterwards says that it is there.
    let layer = origin.add_blob(REPOSITORY, layer);
    setup.image(Some("pushed"), &[layer]);
    assert_eq!(server.fetch(&server.manifest_url("pushed")).await.0, 200);
    assert_eq!(server.http.head(&url).send().await.unwrap().status(), 200);
    // What arrives by another way is seen at once.
    let digest = origin.add_manifest(REPOSITORY, Some("late"), OCI_INDEX, index(7));
    assert_eq!(server.fetch(&server.manifest_url("late")).await.0, 200);
    assert_eq!(server.fetch(&server.manifest_url(digest)).await.0, 200);
    for code in [401, 403, 500] {
        origin.always(
            Target::Everything,
            Fault::Status {
                code,
                retry_after_secs: None,
            },
        );
        assert_ne!(server.fetch(&server.manifest_url("fresh")).await.0, 200);
        origin.clear_faults();
    }
    origin.add_manifest(REPOSITORY, Some("fresh"), OCI_INDEX, index(8));
    assert_eq!(server.fetch(&server.manifest_url("fresh")).await.0, 200);
}

/// podman, skopeo and CRI-O choose their mirror by the manifest and fail for good at a blob.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_withheld_when_its_blobs_are_neither_here_nor_to_be_had() {
    let setup = setup(|_| {}).await;
    let Setup { origin, server, .. } = &setup;
    let layers = [1, 2].map(|seed| origin.add_blob(REPOSITORY, noise(1000, seed)));
    let (digest, config) = setup.image(Some("a"), &layers);
    let urls = [server.manifest_url("a"), server.manifest_url(digest)];
    for url in &urls {
        assert_eq!(server.fetch(url).await.0, 200);
    }
    setup.have(&config).await;
    setup.have(&layers[0]).await;
    // The conversion fetches layers on its own; this test is about the one that is gone.
    setup.have(&layers[1]).await;
    server.app.originals.remove(&layers[1]).unwrap();
    origin.stop();
    for url in &urls {
        assert_eq!(server.error(url).await.1, "UNAVAILABLE", "{url}");
    }
    origin.restart();
    assert_eq!(
        server.fetch(&urls[0]).await.0,
        200,
        "by tag it is seen at once that the upstream is back"
    );
    setup.have(&layers[1]).await;
    origin.stop();
    origin.clear_calls();
    for url in &urls {
        assert_eq!(server.fetch(url).await.0, 200, "all blobs are here: {url}");
    }
    for blob in [config, layers[0], layers[1]] {
        assert_eq!(server.fetch(&server.blob_url(&blob)).await.0, 200);
    }
}

/// An upstream that has manifests and does not give blobs (their store is down, or behind a firewall) is found out before a
/// manifest is served, for an index too. Who looks at heads costs one HEAD a repository.
#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_was_just_fetched_is_withheld_when_its_upstream_gives_no_blobs() {
    let setup = setup(|_| {}).await;
    let Setup { origin, .. } = &setup;
    let layer = origin.add_blob(REPOSITORY, noise(1000, 1));
    let (image, _) = setup.image(Some("image"), &[layer]);
    let own = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let of = |digest: &BlobDigest| {
        let child = json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": 1,
                            "platform": { "os": "linux", "architecture": own } });
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child] }).to_string()
    };
    origin.add_manifest(REPOSITORY, Some("multi"), OCI_INDEX, of(&image));
    let lost = of(&BlobDigest::of(b"never pushed"));
    origin.add_manifest(REPOSITORY, Some("child-lost"), OCI_INDEX, lost);
    let fresh = |dir: &tempfile::TempDir| Server::with(config(origin, dir.path()));
    for code in [403, 404, 416, 500] {
        let dir = tempfile::tempdir().unwrap();
        let server = fresh(&dir).await;
        let retry_after_secs = None;
        origin.always(Target::Blobs, Fault::Status { code, retry_after_secs });
        origin.clear_calls();
        for tag in ["multi", "image"] {
            let (status, _) = server.error(&server.manifest_url(tag)).await;
            // At last the upstream is not asked any more.
            assert!(matches!(status, 403 | 404 | 502 | 503), "{code}, {tag}: {status}");
        }
        let (status, _) = server.fetch(&server.manifest_url("multi")).await;
        assert!(matches!(status, 403 | 404 | 502 | 503), "{code}: {status}");
        origin.clear_faults();
        server.stop().await;
    }
    let dir = tempfile::tempdir().unwrap();
    let server = fresh(&dir).await;
    origin.clear_calls();
    for reference in ["child-lost", "multi", "image"] {
        let head = server.http.head(server.manifest_url(reference)).send().await.unwrap();
        assert_eq!(head.status(), 200, "{reference}");
    }
    let calls = origin.calls();
    let heads = calls.iter().filter(|c| c.is_blob() && c.method == "HEAD");
    assert_eq!(heads.count(), 1, "{calls:#?}");
    server.stop().await;
}

/// In an air gap: what was pulled is served, with a warning by tag; the rest is refused where clients can still turn to
/// another mirror.
#[tokio::test(flavor = "multi_thread")]
async fn offline_serves_what_is_here_and_asks_nobody() {
    let setup = setup(|_| {}).await;
    let layers = [3, 4, 5].map(|seed| setup.origin.add_blob(REPOSITORY, noise(1000, seed)));
    let (whole, config) = setup.image(Some("whole"), &layers[..1]);
    let (part, _) = setup.image(Some("part"), &layers[1..]);
    let children = |digests: &[BlobDigest]| {
        let child = |digest: &BlobDigest| json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": 1 });
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": digests.iter().map(child).collect::<Vec<_>>() })
            .to_string()
    };
    let never = BlobDigest::of(b"never pulled");
    setup
        .origin
        .add_manifest(REPOSITORY, Some("multi"), OCI_INDEX, children(&[never, whole]));
    setup
        .origin
        .add_manifest(REPOSITORY, Some("multi-part"), OCI_INDEX, children(&[part, never]));
    for tag in ["whole", "part", "multi", "multi-part"] {
        assert_eq!(setup.server.fetch(&setup.server.manifest_url(tag)).await.0, 200);
    }
    for blob in [config, layers[0], layers[1], layers[2]] {
        setup.have(&blob).await;
    }
    let setup = setup.again(|config| config.upstreams[0].offline = true).await;
    let Setup { origin, server, .. } = &setup;
    server.app.originals.remove(&layers[2]).unwrap();
    origin.clear_calls();
    for tag in ["whole", "multi"] {
        let response = server.get(&server.manifest_url(tag)).await;
        assert_eq!(response.status(), 200, "{tag}");
        assert!(warning(&response).is_some());
    }
    assert_eq!(server.fetch(&server.manifest_url(whole)).await.0, 200);
    for refused in ["part".to_owned(), "multi-part".into(), part.to_string(), "none".into()] {
        let response = server.get(&server.manifest_url(&refused)).await;
        assert!(response.headers().contains_key("retry-after"), "{refused}");
        assert_eq!(error_of(response).await, (503, "UNAVAILABLE".into()), "{refused}");
    }
    assert_eq!(
        server.error(&server.blob_url(&layers[2])).await,
        (503, "UNAVAILABLE".into())
    );
    let tags = server.get(&server.url(&format!("{REPOSITORY}/tags/list"))).await;
    assert!(warning(&tags).unwrap().starts_with("299 - \"partial"));
    let tags: serde_json::Value = serde_json::from_slice(&tags.bytes().await.unwrap()).unwrap();
    assert_eq!(tags["tags"], json!(["multi", "multi-part", "part", "whole"]));
    assert!(origin.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_outlive_the_upstream_but_not_its_no() {
    let setup = setup(|config| {
        config.fetch.listing_ttl_ms = 0;
        config.fetch.negative_ttl_ms = 0;
    })
    .await;
    let Setup { origin, server, .. } = &setup;
    origin.referrers_api(true);
    let digest = origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(9));
    let tags = server.url(&format!("{REPOSITORY}/tags/list"));
    let referrers = server.url(&format!("{REPOSITORY}/referrers/{digest}"));
    let bodies = [
        server.fetch(&tags).await.1.unwrap(),
        server.fetch(&referrers).await.1.unwrap(),
    ];
    origin.stop();
    for (url, body) in [&tags, &referrers].into_iter().zip(&bodies) {
        let response = server.get(url).await;
        assert_eq!(response.status(), 200);
        assert!(warning(&response).unwrap().starts_with("299 - \"stale"));
        assert_eq!(response.bytes().await.unwrap(), body);
    }
    // A list that was never read is not made up.
    let other = server.url("other/app/tags/list");
    assert_eq!(server.error(&other).await.1, "UNAVAILABLE");
    origin.restart();
    assert_eq!(warning(&server.get(&tags).await), None);
    origin.always(
        Target::Path("/tags/list".into()),
        Fault::Status {
            code: 403,
            retry_after_secs: None,
        },
    );
    assert_eq!(server.error(&tags).await, (403, "DENIED".into()));
}

/// A manifest in two repositories, at an upstream whose HEAD gives no digest: every request wrote its fact again.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_is_not_written_again() {
    let setup = setup(|_| {}).await;
    let Setup { origin, server, dir } = &setup;
    origin.always(Target::Manifests, Fault::NoDigestHeader);
    for repository in [REPOSITORY, "other/app"] {
        for tag in ["a", "b"] {
            origin.add_manifest(repository, Some(tag), OCI_INDEX, index(10));
        }
    }
    let round = async || {
        for repository in [REPOSITORY, "other/app"] {
            for tag in ["a", "b"] {
                let url = server.url(&format!("{repository}/manifests/{tag}"));
                assert_eq!(server.fetch(&url).await.0, 200);
            }
        }
    };
    let size = || -> u64 {
        let packs = std::fs::read_dir(dir.path().join("packs")).unwrap();
        packs.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    round().await;
    let before = size();
    assert!(before > 0);
    for _ in 0..5 {
        round().await;
    }
    assert_eq!(size(), before);
}
