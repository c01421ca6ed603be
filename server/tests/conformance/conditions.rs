//! Conditional requests, and HEAD of lists.
//!
//! In: manifests by tag and by digest, cold, warm and answered from memory; lists of referrers. Out: what RFC 9110, section 13,
//! says of `If-Match` and `If-None-Match`, with this registry's headers on every answer.

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Origin};
use reqwest::Method;
use serde_json::json;

use crate::{
    OCI_INDEX, Setup, assert_errors,
    support::{self, REPOSITORY, Server, UPSTREAM},
};

/// Asks until a pull is answered from memory.
pub async fn is_at_hand(server: &Server, url: &str, reference: &str) {
    use headstart_server::{read::accept::Accept, store::facts::Source, upstream::Caller};
    let source = Source {
        upstream: UPSTREAM.into(),
        repository: REPOSITORY.into(),
    };
    let accept = Accept::new(&[reqwest::header::HeaderValue::from_static("*/*")]);
    let reference = reference.parse().unwrap();
    for _ in 0..1500 {
        let request = server.http.get(url).header("accept", "*/*");
        assert_eq!(request.send().await.unwrap().status(), 200);
        let manifests = &server.app.manifests;
        if manifests
            .at_hand(&source, &Caller::Server, &reference, &accept)
            .is_some()
        {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{url} is never at hand");
}

/// What is asked for under a condition: manifests by tag and by digest, from the upstream, from the disk and from memory;
/// and lists of referrers.
#[tokio::test(flavor = "multi_thread")]
async fn conditions() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = support::config(&origin, dir.path());
    // Or a tag would be asked for each time.
    config.fetch.tag_fresh_ms = 3_600_000;
    let server = Server::with(config).await;
    let setup = Setup {
        origin,
        server,
        _dir: dir,
    };
    let Setup { origin, server, .. } = &setup;
    origin.referrers_api(true);
    let image = headstart_loadtest::corpus::SyntheticImage::tiny(1);
    image.push(origin, REPOSITORY, "latest");
    let subject = image.manifest_digest;
    setup.artifact(Some(&subject), "application/signature+json", 1);
    let referrers = server.url(&format!("{REPOSITORY}/referrers/{subject}"));
    let ask = async |method: &Method, url: &str, condition: Option<(&str, &str)>| {
        let mut request = server.http.request(method.clone(), url).header("accept", "*/*");
        if let Some((name, value)) = condition {
            request = request.header(name, value);
        }
        request.send().await.unwrap()
    };
    let other = format!("\"{}\"", BlobDigest::of(b"other"));
    for url in [
        server.manifest_url("latest"),
        server.manifest_url(subject),
        referrers.clone(),
    ] {
        let mut etag = None;
        for round in ["cold", "warm", "at hand"] {
            if round == "at hand" && url != referrers {
                let reference = url.split('?').next().and_then(|path| path.rsplit('/').next()).unwrap();
                is_at_hand(server, &url, reference).await;
            }
            for method in [Method::GET, Method::HEAD] {
                let plain = ask(&method, &url, None).await;
                assert_eq!(plain.status(), 200, "{round} {method} {url}");
                let head = plain.headers().clone();
                let own = head["etag"].to_str().unwrap().to_owned();
                assert_eq!(*etag.get_or_insert(own.clone()), own, "{round} {method} {url}");
                if url != referrers {
                    assert_eq!(own, format!("\"{subject}\""));
                }
                let (weak, both) = (format!("W/{own}"), format!("{other}, {own}"));
                let whole = plain.bytes().await.unwrap();
                let length = head["content-length"].to_str().unwrap().to_owned();
                assert_eq!(
                    whole.len(),
                    match method {
                        Method::HEAD => 0,
                        _ => length.parse().unwrap(),
                    }
                );
                for (name, value, want) in [
                    ("if-none-match", own.as_str(), 304),
                    ("if-none-match", &weak, 304),
                    ("if-none-match", &both, 304),
                    ("if-none-match", "*", 304),
                    ("if-none-match", &other, 200),
                    ("if-match", &own, 200),
                    ("if-match", &both, 200),
                    ("if-match", "*", 200),
                    ("if-match", &other, 412),
                    // Strong comparison.
                    ("if-match", &weak, 412),
                ] {
                    let what = format!("{round} {method} {url} {name}: {value}");
                    let answer = ask(&method, &url, Some((name, value))).await;
                    assert_eq!(answer.status(), want, "{what}");
                    let said = answer.headers().clone();
                    assert_eq!(said["etag"], own, "{what}");
                    assert_eq!(said["docker-distribution-api-version"], "registry/2.0", "{what}");
                    assert_eq!(said["oci-namespace"], UPSTREAM, "{what}");
                    assert_eq!(
                        said.get("docker-content-digest"),
                        head.get("docker-content-digest"),
                        "{what}"
                    );
                    match want {
                        200 => assert_eq!(answer.bytes().await.unwrap(), whole, "{what}"),
                        304 => {
                            assert_eq!(said.get("cache-control"), head.get("cache-control"), "{what}");
                            assert!(answer.bytes().await.unwrap().is_empty(), "{what}");
                        }
                        _ if method == Method::HEAD => assert!(answer.bytes().await.unwrap().is_empty()),
                        _ => {
                            assert!(!said.contains_key("cache-control"), "{what}");
                            assert_errors(answer, 412, "UNSUPPORTED").await;
                        }
                    }
                }
            }
        }
    }
    // HEAD of referrers is GET without the body, and a filtered list is another.
    let filtered = format!("{referrers}&artifactType=none");
    for url in [&referrers, &filtered] {
        let (get, head) = (ask(&Method::GET, url, None).await, ask(&Method::HEAD, url, None).await);
        for name in ["etag", "content-type", "content-length", "cache-control"] {
            assert_eq!(get.headers()[name], head.headers()[name], "{name}");
        }
        assert_eq!(
            get.headers().get("oci-filters-applied"),
            head.headers().get("oci-filters-applied")
        );
        assert!(head.bytes().await.unwrap().is_empty());
    }
    assert_ne!(
        ask(&Method::HEAD, &referrers, None).await.headers()["etag"],
        ask(&Method::HEAD, &filtered, None).await.headers()["etag"]
    );
    // Also while a tag's list of conditions is asked of what has moved on.
    let moved = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "moved": true });
    let moved = origin.add_manifest(REPOSITORY, Some("latest"), OCI_INDEX, moved.to_string());
    let old = format!("\"{subject}\"");
    let answer = ask(&Method::GET, &server.manifest_url(moved), Some(("if-none-match", &old))).await;
    assert_eq!(answer.status(), 200);
}
