//! Lists of tags and referrers: after a restart without an upstream, longer than one answer, and with links that lead
//! away.

use std::collections::BTreeSet;

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Origin};
use headstart_server::config::Config;
use serde_json::{Value, json};

use crate::{
    support::{REPOSITORY, Server, config},
    warning,
};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

async fn json_of(response: reqwest::Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

fn index(origin: &Origin, tag: Option<&str>, seed: u32) -> BlobDigest {
    let text = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [], "seed": seed });
    origin.add_manifest(REPOSITORY, tag, INDEX, text.to_string())
}

fn artifact(origin: &Origin, subject: &BlobDigest, kind: &str, seed: u32) -> BlobDigest {
    let text = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "layers": [],
        "subject": { "mediaType": INDEX, "digest": subject, "size": 1 }, "annotations": { "seed": seed.to_string() },
    });
    origin.add_manifest(REPOSITORY, None, MANIFEST, text.to_string())
}

/// What was listed before is listed after a restart, whether the upstream is down or not to be asked; and the upstream's
/// no ends that.
#[tokio::test(flavor = "multi_thread")]
async fn lists_outlive_the_server() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    origin.referrers_api(true);
    let subject = index(&origin, Some("a"), 1);
    index(&origin, Some("b"), 2);
    let signature = artifact(&origin, &subject, "application/signature", 3);
    let config = |change: fn(&mut Config)| {
        let mut config = config(&origin, dir.path());
        config.fetch.listing_ttl_ms = 0;
        config.fetch.negative_ttl_ms = 0;
        change(&mut config);
        config
    };
    let paths = [
        format!("{REPOSITORY}/tags/list"),
        format!("{REPOSITORY}/referrers/{subject}"),
    ];
    let server = Server::with(config(|_| {})).await;
    let mut before = Vec::new();
    for path in &paths {
        let response = server.get(&server.url(path)).await;
        assert_eq!((response.status().as_u16(), warning(&response)), (200, None));
        before.push(response.bytes().await.unwrap());
    }
    assert!(String::from_utf8_lossy(&before[1]).contains(&signature.to_string()));
    server.stop().await;
    origin.stop();
    for change in [(|_| {}) as fn(&mut Config), |config| config.fetch.offline = true] {
        let server = Server::with(config(change)).await;
        for (path, before) in paths.iter().zip(&before) {
            // Twice: from the disk, and from memory.
            for _ in 0..2 {
                let response = server.get(&server.url(path)).await;
                assert_eq!(response.status(), 200, "{path}");
                assert!(warning(&response).unwrap().starts_with("299 - \"stale"), "{path}");
                assert_eq!(response.bytes().await.unwrap(), before, "{path}");
            }
        }
        server.stop().await;
    }
    // What is damaged on disk is no list.
    let lists = dir.path().join("lists");
    for entry in std::fs::read_dir(&lists).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    let server = Server::with(config(|_| {})).await;
    for path in &paths {
        assert_eq!(server.error(&server.url(path)).await.1, "UNAVAILABLE", "{path}");
    }
    // And a newer answer takes the place of an older one.
    origin.restart();
    index(&origin, Some("c"), 4);
    for path in &paths {
        assert_eq!(server.fetch(&server.url(path)).await.0, 200);
    }
    origin.set_auth(Auth::basic("nobody", "knows"));
    for path in &paths {
        let refused = server.get(&server.url(path)).await.status();
        assert!(matches!(refused.as_u16(), 401 | 403), "{refused}");
    }
    server.stop().await;
    origin.stop();
    let server = Server::with(config(|_| {})).await;
    for path in &paths {
        assert_eq!(
            server.error(&server.url(path)).await.1,
            "UNAVAILABLE",
            "refused at last: {path}"
        );
    }
    server.stop().await;
}

/// What was saved for an outage is not pushed out by whoever asks for what nobody has.
#[tokio::test(flavor = "multi_thread")]
async fn lists_of_nothing_take_no_place_on_disk() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    origin.referrers_api(true);
    let subject = index(&origin, Some("a"), 1);
    artifact(&origin, &subject, "application/signature", 3);
    let bare = index(&origin, Some("b"), 2);
    let config = || {
        let mut config = config(&origin, dir.path());
        config.fetch.listing_ttl_ms = 0;
        config
    };
    let referrers = |digest: &BlobDigest| format!("{REPOSITORY}/referrers/{digest}");
    let held = || std::fs::read_dir(dir.path().join("lists")).unwrap().count();
    let server = Server::with(config()).await;
    for path in [format!("{REPOSITORY}/tags/list"), referrers(&subject)] {
        assert_eq!(server.fetch(&server.url(&path)).await.0, 200);
    }
    assert_eq!(held(), 2);
    for n in 0..10_u8 {
        let made_up = [
            server.url(&referrers(&BlobDigest::of(&[n]))),
            format!("{}&last=from%3D{n}", server.url(&referrers(&subject))),
        ];
        for url in made_up {
            assert_eq!(server.fetch(&url).await.0, 200, "{url}");
        }
    }
    assert_eq!(held(), 2);
    // That nothing refers to an image that is here is worth knowing.
    assert_eq!(server.fetch(&server.manifest_url(bare)).await.0, 200);
    assert_eq!(server.fetch(&server.url(&referrers(&bare))).await.0, 200);
    assert_eq!(held(), 3);
    server.stop().await;
    origin.stop();
    let server = Server::with(config()).await;
    let response = server.get(&server.url(&referrers(&bare))).await;
    assert_eq!(response.status(), 200);
    assert!(warning(&response).unwrap().starts_with("299 - \"stale"));
    let unknown = server.url(&referrers(&BlobDigest::of(&[1])));
    assert_eq!(server.error(&unknown).await.1, "UNAVAILABLE");
    server.stop().await;
}

/// A client can go on from anywhere: of each place there would be a file. A `last` that no tag can be is cut.
#[tokio::test(flavor = "multi_thread")]
async fn places_in_a_list_take_none_on_disk() {
    let asked = std::sync::Arc::new(std::sync::Mutex::new(0));
    let longest = asked.clone();
    // There is always more, elsewhere.
    let answer = move |uri: &axum::http::Uri| {
        let query = uri.query().unwrap_or_default();
        let last = query
            .split('&')
            .find_map(|p| p.strip_prefix("last="))
            .unwrap_or_default();
        let mut longest = longest.lock().unwrap();
        *longest = last.len().max(*longest);
        let tag = if last.is_empty() { "a" } else { "zzz" };
        (Some("/elsewhere".to_owned()), json!({ "tags": [tag] }))
    };
    let (url, running) = upstream(answer).await;
    let dir = tempfile::tempdir().unwrap();
    let server = behind(url, dir.path()).await;
    let list = server.url(&format!("{REPOSITORY}/tags/list"));
    for n in 0..10 {
        let response = server.get(&format!("{list}&last=b{n}{}", "x".repeat(5000))).await;
        assert_eq!(response.status(), 200);
        assert_eq!(json_of(response).await["tags"], json!(["zzz"]));
    }
    assert_eq!(std::fs::read_dir(dir.path().join("lists")).unwrap().count(), 1);
    assert_eq!(*asked.lock().unwrap(), 128);
    server.stop().await;
    running.abort();
}

/// Nobody ever asked for the list: the tags that were pulled are better than none, and are marked as a part.
#[tokio::test(flavor = "multi_thread")]
async fn tags_that_were_pulled_are_listed_in_an_outage() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    for tag in ["a", "b", "never-pulled"] {
        index(&origin, Some(tag), tag.len() as u32);
    }
    let server = Server::start(&origin, dir.path()).await;
    for tag in ["b", "a"] {
        assert_eq!(server.fetch(&server.manifest_url(tag)).await.0, 200);
    }
    origin.stop();
    let list = server.url(&format!("{REPOSITORY}/tags/list"));
    let response = server.get(&list).await;
    assert_eq!(response.status(), 200);
    assert!(warning(&response).unwrap().starts_with("299 - \"partial"));
    assert_eq!(json_of(response).await["tags"], json!(["a", "b"]));
    // Of a repository of which nothing is known there is nothing to list.
    assert_eq!(server.error(&server.url("other/app/tags/list")).await.1, "UNAVAILABLE");
    origin.restart();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let response = server.get(&list).await;
        if response.status() == 200 && warning(&response).is_none() {
            assert_eq!(json_of(response).await["tags"], json!(["a", "b", "never-pulled"]));
            break;
        }
        assert!(std::time::Instant::now() < deadline, "the upstream is back");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    server.stop().await;
}

/// An upstream made of closures: its answer for a path and query.
async fn upstream(
    answer: impl Fn(&axum::http::Uri) -> (Option<String>, Value) + Clone + Send + Sync + 'static,
) -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = move |uri: axum::http::Uri| {
        let (link, body) = answer(&uri);
        let mut headers = axum::http::HeaderMap::new();
        if let Some(link) = link {
            headers.insert("link", format!("<{link}>; rel=\"next\"").parse().unwrap());
        }
        async move { (headers, body.to_string()) }
    };
    let router = axum::Router::new().fallback(answer);
    let running = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, running)
}

async fn behind(url: String, dir: &std::path::Path) -> Server {
    let origin = Origin::start(Auth::Anonymous);
    let mut config = config(&origin, dir);
    config.upstreams[0].url = url;
    Server::with(config).await
}

/// All entries, as a client gets them that follows links; and the warnings it got.
async fn follow(server: &Server, path: &str, entries: &str) -> (Vec<Value>, Vec<String>, usize) {
    let (mut all, mut warnings, mut pages) = (Vec::new(), Vec::new(), 0);
    let mut next = Some(server.url(path));
    while let Some(url) = next.take() {
        let response = server.get(&url).await;
        assert_eq!(response.status(), 200, "{url}");
        pages += 1;
        assert!(pages < 50, "the links never end");
        warnings.extend(warning(&response).map(str::to_owned));
        if let Some(link) = response.headers().get("link") {
            let link = link.to_str().unwrap();
            let target = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
            assert!(target.starts_with("/v2/"), "{target}");
            next = Some(format!("http://{}{target}", server.address));
        }
        all.extend(json_of(response).await[entries].as_array().unwrap().iter().cloned());
    }
    (all, warnings, pages)
}

/// A digest from the query of a page.
fn number(uri: &axum::http::Uri, name: &str) -> usize {
    let query = uri.query().unwrap_or_default();
    let value = query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
    value.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// More referrers than one answer takes are several answers: by their number, and by their size. A filter is applied to
/// all of them.
#[tokio::test(flavor = "multi_thread")]
async fn referrers_that_do_not_fit_into_one_answer_are_linked_to() {
    for (count, page, padding) in [(9000_usize, 1000, 0), (60, 10, 100_000)] {
        let answer = move |uri: &axum::http::Uri| {
            let from = number(uri, "from");
            let to = count.min(from + page);
            let one = |n: usize| {
                json!({
                    "mediaType": MANIFEST, "digest": BlobDigest::of(&n.to_be_bytes()), "size": 1,
                    "artifactType": if n + 1 == count { "application/last" } else { "application/other" },
                    "annotations": { "padding": "x".repeat(padding) },
                })
            };
            let link = (to < count).then(|| format!("{}?from={to}&x=%20y", uri.path()));
            let body =
                json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": (from..to).map(one).collect::<Vec<_>>() });
            (link, body)
        };
        let (url, running) = upstream(answer).await;
        let dir = tempfile::tempdir().unwrap();
        let server = behind(url, dir.path()).await;
        let path = format!("{REPOSITORY}/referrers/{}", BlobDigest::of(b"x"));
        let (all, warnings, pages) = follow(&server, &path, "manifests").await;
        let digests: BTreeSet<_> = all.iter().map(|d| d["digest"].as_str().unwrap().to_owned()).collect();
        assert_eq!((all.len(), digests.len()), (count, count));
        assert_eq!((warnings.len(), pages > 1), (0, true), "{warnings:?}");
        // No answer is larger than what clients take.
        let first = server.fetch(&server.url(&path)).await.1.unwrap();
        assert!(first.len() <= 4 << 20);
        let (last, ..) = follow(&server, &path, "manifests").await;
        assert_eq!(last.len(), count);
        // The filter finds the very last.
        let mut next = Some(format!("{}&artifactType=application/last", server.url(&path)));
        let mut found = Vec::new();
        while let Some(url) = next.take() {
            let response = server.get(&url).await;
            assert_eq!(response.headers()["oci-filters-applied"], "artifactType");
            let link = response.headers().get("link").map(|v| v.to_str().unwrap().to_owned());
            next = link.map(|link| {
                let target = link.strip_prefix('<').unwrap().split_once('>').unwrap().0.to_owned();
                format!("http://{}{target}", server.address)
            });
            found.extend(json_of(response).await["manifests"].as_array().unwrap().clone());
        }
        assert_eq!(found.len(), 1);
        server.stop().await;
        running.abort();
    }
}

/// Registries behind a proxy that ends TLS link to `http://` or to another port of themselves: the page is asked for
/// where we are configured to ask. A link to anything else ends the list, and not the answer.
#[tokio::test(flavor = "multi_thread")]
async fn links_of_another_scheme_or_host_do_not_take_the_list_with_them() {
    let subject = BlobDigest::of(b"x");
    for (base, path) in [
        ("https://registry.example", None),
        ("http://127.0.0.1:1", None),
        ("https://user:password@registry.example:5000", None),
        ("https://registry.example", Some("/v2/other/app/tags/list")),
        ("", Some("/elsewhere")),
    ] {
        let answer = move |uri: &axum::http::Uri| {
            // As any registry: what follows `last`; referrers by a number of their own.
            let query = uri.query().unwrap_or_default();
            let last = query
                .split('&')
                .find_map(|p| p.strip_prefix("last=t"))
                .and_then(|n| n.parse::<usize>().ok());
            let from = if uri.path().contains("/referrers/") {
                number(uri, "from")
            } else {
                last.map_or(0, |n| n + 1)
            };
            let to = (from + 2).min(6);
            let tags: Vec<_> = (from..to).map(|n| format!("t{n}")).collect();
            let one = |n: usize| json!({ "mediaType": MANIFEST, "digest": BlobDigest::of(&[n as u8]), "size": 1 });
            let own = uri.path();
            let link = (to < 6).then(|| {
                let last = to - 1;
                format!("{base}{}?last=t{last}&from={to}", path.unwrap_or(own))
            });
            (
                link,
                json!({ "tags": tags, "manifests": (from..to).map(one).collect::<Vec<_>>() }),
            )
        };
        let (url, running) = upstream(answer).await;
        let dir = tempfile::tempdir().unwrap();
        let server = behind(url, dir.path()).await;
        let (tags, warnings, _) = follow(&server, &format!("{REPOSITORY}/tags/list"), "tags").await;
        let tags: Vec<_> = tags.iter().map(|t| t.as_str().unwrap()).collect();
        assert_eq!(tags, ["t0", "t1", "t2", "t3", "t4", "t5"], "{base} {path:?}");
        assert!(warnings.is_empty());
        let referrers = format!("{REPOSITORY}/referrers/{subject}");
        let (found, warnings, _) = follow(&server, &referrers, "manifests").await;
        match path {
            None => assert_eq!((found.len(), warnings.len()), (6, 0), "{base}"),
            // There is no other way to ask for the rest than the link.
            Some(_) => {
                assert_eq!(found.len(), 2, "{path:?}");
                assert!(warnings[0].starts_with("299 - \"truncated"), "{warnings:?}");
            }
        }
        server.stop().await;
        running.abort();
    }
}
