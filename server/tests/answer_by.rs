//! The head of an answer is there in time, whatever it waits for; what was begun goes on.
//!
//! In: an upstream that is silent at one step. Out: 504, or what is older; and one call for who asks again.
//! Not here: the single time-outs, which are longer here than the test.

mod support;

use std::{path::Path, time::Duration};

use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use headstart_server::config::Config;
use serde_json::json;
use support::{REPOSITORY, Server, config, error_of, noise};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// No time-out of a single step is shorter than this.
const LONG: Duration = Duration::from_secs(120);

fn patient(origin: &Origin, dir: &Path) -> Config {
    let mut config = config(origin, dir);
    let long = LONG.as_millis() as u64;
    config.http.answer_timeout_ms = 700;
    config.fetch.header_timeout_ms = long;
    config.fetch.idle_timeout_ms = long;
    config.fetch.turn_wait_ms = long;
    config.fetch.negative_ttl_ms = 0;
    config.fetch.listing_ttl_ms = 0;
    config.upstreams[0].queue_timeout_ms = long;
    config
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG / 2, work).await.expect("it ends in time")
}

async fn ask(server: &Server, url: &str) -> (u16, Option<String>) {
    let response = soon(server.get(url)).await;
    let warning = response
        .headers()
        .get("warning")
        .map(|w| w.to_str().unwrap().to_owned());
    (response.status().as_u16(), warning)
}

fn silent(origin: &Origin, target: Target) {
    origin.always(target, Fault::DelayHeaders(LONG));
}

fn add_image(origin: &Origin, seed: u64) -> Vec<headstart_layer_format::BlobDigest> {
    let layer = origin.add_blob(REPOSITORY, noise(2000, seed));
    let config = origin.add_blob(REPOSITORY, format!("{{\"seed\":{seed}}}"));
    let of = |kind: &str, digest| json!({ "mediaType": kind, "digest": digest, "size": 1 });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": of("application/vnd.oci.image.config.v1+json", config),
        "layers": [of("application/vnd.oci.image.layer.v1.tar+gzip", layer)],
    });
    let manifest = origin.add_manifest(REPOSITORY, Some("a"), OCI_MANIFEST, manifest.to_string());
    vec![manifest, config, layer]
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_step_is_silent_the_client_is_told_in_time() {
    type Change = fn(&mut Config, &Origin);
    type Step = (&'static str, fn(&Origin), Change);
    let nothing: Change = |_, _| {};
    let further: Change = |config, other| {
        // One URL after the other, each of which has its time.
        config.fetch.header_timeout_ms = 400;
        config.upstreams[0].fallback_urls = (0..8).map(|n| format!("{}/{n}", other.url())).collect();
    };
    let steps: Vec<Step> = vec![
        ("answers", |o| silent(o, Target::Everything), nothing),
        (
            "tokens",
            |o| {
                o.set_auth(Auth::bearer());
                silent(o, Target::Token)
            },
            nothing,
        ),
        (
            "redirects",
            |o| {
                o.redirect_blobs(true);
                silent(o, Target::Cdn)
            },
            nothing,
        ),
        ("blobs", |o| silent(o, Target::Blobs), nothing),
        (
            "bodies of blobs",
            |o| {
                o.hold(Target::Blobs, 0);
            },
            nothing,
        ),
        (
            "tries",
            |o| o.always(Target::Everything, Fault::DelayHeaders(Duration::from_millis(500))),
            |config, _| config.upstreams[0].requests_max = 1,
        ),
        ("further URLs", |o| silent(o, Target::Everything), further),
    ];
    for (step, fault, change) in steps {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let digests = add_image(&origin, 1);
        let other = Origin::start(Auth::Anonymous);
        silent(&other, Target::Everything);
        let mut config = patient(&origin, dir.path());
        change(&mut config, &other);
        let server = Server::with(config).await;
        fault(&origin);
        let of_blobs_only = matches!(step, "redirects" | "blobs" | "bodies of blobs");
        let mut urls = vec![server.manifest_url(digests[0]), server.blob_url(&digests[2])];
        if !of_blobs_only && step != "tries" {
            urls.push(server.url(&format!("{REPOSITORY}/tags/list")));
            urls.push(server.url(&format!("{REPOSITORY}/referrers/{}", digests[0])));
        }
        urls.push(server.manifest_url("a"));
        if step == "tries" {
            // Each of these waits for the one place that there is.
            let all = urls.iter().cycle().take(12).map(|url| server.get(url));
            let all = soon(futures_util::future::join_all(all)).await;
            assert!(all.iter().any(|r| r.status() == 504), "{step}");
            continue;
        }
        for url in &urls {
            let (status, code) = error_of(soon(server.get(url)).await).await;
            assert_eq!((status, code.as_str()), (504, "UNAVAILABLE"), "{step}: {url}");
        }
    }
}

/// A turn to fetch is a wait as any other.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_turn_is_told_in_time() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let [one, other] = [1, 2].map(|seed| origin.add_blob(REPOSITORY, noise(300_000, seed)));
    let mut config = patient(&origin, dir.path());
    config.fetch.blobs_max = 1;
    let server = Server::with(config).await;
    let gate = origin.hold(Target::Digest(one), 100_000);
    let first = soon(server.get(&server.blob_url(&one))).await;
    assert_eq!(first.status(), 200);
    assert_eq!(ask(&server, &server.blob_url(&other)).await.0, 504);
    gate.open();
    assert_eq!(soon(first.bytes()).await.unwrap().len(), 300_000);
    assert_eq!(ask(&server, &server.blob_url(&other)).await.0, 200);
}

/// What the upstream did not say in time may be said by what is here, where the policy allows it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_older_is_served_when_the_time_is_over() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let digests = add_image(&origin, 3);
    let server = Server::with(patient(&origin, dir.path())).await;
    let tags = server.url(&format!("{REPOSITORY}/tags/list"));
    let referrers = server.url(&format!("{REPOSITORY}/referrers/{}", digests[0]));
    for url in [&server.manifest_url("a"), &tags, &referrers] {
        assert_eq!(ask(&server, url).await, (200, None));
    }
    for blob in &digests[1..] {
        assert_eq!(server.fetch(&server.blob_url(blob)).await.0, 200);
        let path = server.app.originals.path(blob);
        support::until("the blob is here", || path.exists()).await;
    }
    silent(&origin, Target::Everything);
    for url in [&server.manifest_url("a"), &tags, &referrers] {
        let (status, warning) = ask(&server, url).await;
        assert_eq!(status, 200, "{url}");
        assert!(warning.is_some_and(|w| w.starts_with("299")), "{url}");
    }
    let by_digest = ask(&server, &server.manifest_url(digests[0])).await;
    assert_eq!(by_digest, (200, None), "nobody is asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_older_is_not_served_where_the_policy_says_no() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    add_image(&origin, 5);
    let mut config = patient(&origin, dir.path());
    config.upstreams[0].tags.stale_if_error = false;
    let server = Server::with(config).await;
    assert_eq!(ask(&server, &server.manifest_url("a")).await, (200, None));
    silent(&origin, Target::Everything);
    assert_eq!(ask(&server, &server.manifest_url("a")).await.0, 504);
}

/// Whoever asks again joins what was begun.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_begun_goes_on_for_who_asks_next() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let manifest = add_image(&origin, 4)[0];
    let blob = origin.add_blob(REPOSITORY, noise(5000, 40));
    let server = Server::with(patient(&origin, dir.path())).await;
    let late = Fault::DelayHeaders(Duration::from_millis(2500));
    let list = format!("{REPOSITORY}/tags/list");
    for (path, url) in [
        (manifest.to_string(), server.manifest_url(manifest)),
        (blob.to_string(), server.blob_url(&blob)),
        ("tags/list".to_owned(), server.url(&list)),
    ] {
        origin.clear_calls();
        origin.once(Target::Path(path.clone()), late.clone());
        let mut tries = 1;
        while ask(&server, &url).await.0 == 504 {
            tries += 1;
            assert!(tries < 100, "{url}");
        }
        assert!(tries > 1, "{url} was not late");
        let calls = origin.calls();
        let asked = calls.iter().filter(|c| c.method == "GET" && c.path.contains(&path));
        assert_eq!(asked.count(), 1, "{url}");
    }
}
