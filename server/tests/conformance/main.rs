//! The read side of the OCI distribution specification, check by check, as its conformance suite makes them ("pull" and
//! "content discovery"), against a mirror that is cold, warm, and without its upstream.
//!
//! In: an origin with content. Out: the statuses, headers and bodies that the specification promises.
//! Not here: push, and what is ours alone (policies, costs; see `registry.rs`).

#[path = "../support/mod.rs"]
mod support;

mod conditions;
mod encodings;
mod ranges;
mod unusual;

use std::collections::BTreeSet;

use headstart_layer_format::{BlobDigest, digest::hex};
use headstart_loadtest::origin::{Auth, Origin};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};
use support::{REPOSITORY, Server, UPSTREAM, noise};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

struct Setup {
    origin: Origin,
    server: Server,
    _dir: tempfile::TempDir,
}

async fn setup() -> Setup {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    Setup {
        origin,
        server,
        _dir: dir,
    }
}

impl Setup {
    async fn ask(&self, method: Method, path: &str) -> Response {
        let url = self.server.url(&format!("{REPOSITORY}/{path}"));
        let request = self.server.http.request(method, url);
        request.header("accept", OCI_MANIFEST).send().await.unwrap()
    }

    /// An artifact about `subject`, or a plain manifest.
    fn artifact(&self, subject: Option<&BlobDigest>, kind: &str, seed: u32) -> BlobDigest {
        let config = self.origin.add_blob(REPOSITORY, "{}");
        let subject = subject.map(|digest| json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": 1 }));
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind,
            "config": { "mediaType": EMPTY, "digest": config, "size": 2 },
            "layers": [], "annotations": { "seed": seed.to_string() },
        });
        if let Some(subject) = subject {
            manifest["subject"] = subject;
        }
        self.origin
            .add_manifest(REPOSITORY, None, OCI_MANIFEST, manifest.to_string())
    }
}

async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

/// The errors of an answer have the shape of the specification.
async fn assert_errors(response: Response, status: u16, code: &str) {
    assert_eq!(response.status(), status);
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = json_of(response).await;
    let errors = body["errors"].as_array().unwrap();
    assert_eq!(errors[0]["code"], code);
    assert!(errors[0]["message"].is_string() && errors[0].get("detail").is_some());
}

/// Pull: `/v2/`, blobs and manifests by HEAD and GET; twice, the second time from the cache.
#[tokio::test(flavor = "multi_thread")]
async fn pull() {
    let setup = setup().await;
    let Setup { origin, server, .. } = &setup;
    for method in [Method::GET, Method::HEAD] {
        let url = format!("http://{}/v2/?ns={UPSTREAM}", server.address);
        let base = server.http.request(method, url).send().await.unwrap();
        assert_eq!(base.status(), 200);
        assert_eq!(base.headers()["docker-distribution-api-version"], "registry/2.0");
        assert_eq!(base.headers()["oci-namespace"], UPSTREAM);
    }
    let config = br#"{"author":"x"}"#;
    let layer = noise(100_000, 1);
    let config_digest = origin.add_blob(REPOSITORY, config.to_vec());
    let layer_digest = origin.add_blob(REPOSITORY, layer.clone());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": { "mediaType": EMPTY, "digest": config_digest, "size": config.len() },
        "layers": [{ "mediaType": "application/vnd.example", "digest": layer_digest, "size": layer.len() }],
    })
    .to_string();
    let digest = origin.add_manifest(REPOSITORY, Some("tagtest0"), OCI_MANIFEST, manifest.clone());

    for _ in ["cold", "warm"] {
        for reference in ["tagtest0", &digest.to_string()] {
            let path = format!("manifests/{reference}");
            let head = setup.ask(Method::HEAD, &path).await;
            assert_eq!(head.status(), 200);
            assert_eq!(head.headers()["docker-content-digest"], digest.to_string());
            assert_eq!(head.headers()["content-type"], OCI_MANIFEST);
            assert_eq!(head.headers()["content-length"], manifest.len().to_string());
            let get = setup.ask(Method::GET, &path).await;
            assert_eq!(get.status(), 200);
            assert_eq!(get.headers()["docker-content-digest"], digest.to_string());
            assert_eq!(get.bytes().await.unwrap(), manifest);
        }
        for (digest, content) in [(&config_digest, &config[..]), (&layer_digest, &layer[..])] {
            let path = format!("blobs/{digest}");
            let head = setup.ask(Method::HEAD, &path).await;
            assert_eq!(head.status(), 200);
            assert_eq!(head.headers()["docker-content-digest"], digest.to_string());
            assert_eq!(head.headers()["content-length"], content.len().to_string());
            let get = setup.ask(Method::GET, &path).await;
            assert_eq!(get.status(), 200);
            assert_eq!(get.headers()["accept-ranges"], "bytes");
            assert_eq!(get.bytes().await.unwrap(), content);
        }
    }
}

/// Pull: what is not there, and what cannot be asked for.
#[tokio::test(flavor = "multi_thread")]
async fn pull_of_what_is_not_there() {
    let setup = setup().await;
    setup.artifact(None, "a", 1);
    let unknown = BlobDigest::of(b"totallywrong");
    for (path, code) in [
        (format!("blobs/{unknown}"), "BLOB_UNKNOWN"),
        ("manifests/.INVALID_MANIFEST_NAME".into(), "MANIFEST_UNKNOWN"),
        (format!("manifests/{unknown}"), "MANIFEST_UNKNOWN"),
        ("manifests/nowhere".into(), "MANIFEST_UNKNOWN"),
        ("manifests/sha256:totallywrong".into(), "DIGEST_INVALID"),
        ("blobs/sha256:totallywrong".into(), "DIGEST_INVALID"),
        ("blobs/md5:d41d8cd98f00b204e9800998ecf8427e".into(), "DIGEST_INVALID"),
    ] {
        let status = if code.ends_with("UNKNOWN") { 404 } else { 400 };
        let head = setup.ask(Method::HEAD, &path).await;
        assert_eq!(head.status(), status, "{path}");
        assert!(head.bytes().await.unwrap().is_empty());
        assert_errors(setup.ask(Method::GET, &path).await, status, code).await;
    }
    // Nothing can be written, and the answer says what can be done instead.
    let of = |path: &str| format!("/{REPOSITORY}/{path}");
    for path in [
        String::new(),
        "/".into(),
        of("blobs/uploads/"),
        of("blobs/uploads/x"),
        of("manifests/x"),
        of("tags/list"),
        of(&format!("blobs/{unknown}")),
        of(&format!("manifests/{unknown}")),
        of(&format!("referrers/{unknown}")),
    ] {
        for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
            let url = format!("http://{}/v2{path}?ns={UPSTREAM}", setup.server.address);
            let response = setup.server.http.request(method.clone(), url).send().await.unwrap();
            let allow = response.headers().get("allow").map(|v| v.to_str().unwrap());
            assert_eq!(allow, Some("GET, HEAD"), "{method} {path}");
            assert_errors(response, 405, "UNSUPPORTED").await;
        }
    }
}

/// Pull: the ranges of the suite, of a blob that is not here yet and of one that is, by both algorithms.
#[tokio::test(flavor = "multi_thread")]
async fn ranges() {
    let setup = setup().await;
    let content = noise(3000, 2);
    let sha512 = sha512_of(&content);
    setup.origin.add_blob_as(REPOSITORY, sha512, content.clone());
    let sha256 = setup.origin.add_blob(REPOSITORY, content.clone());
    for digest in [sha256, sha512] {
        let ask = |range: &str| {
            let url = setup.server.blob_url(&digest);
            let request = setup.server.http.get(url).header("range", format!("bytes={range}"));
            async { request.send().await.unwrap() }
        };
        for _ in ["cold", "warm"] {
            for (range, want) in [
                ("500-1499", 500..1500),
                ("500-", 500..3000),
                ("-500", 2500..3000),
                ("2000-5000", 2000..3000),
            ] {
                let response = ask(range).await;
                assert_eq!(response.status(), 206, "{range}");
                assert_eq!(
                    response.headers()["content-range"],
                    format!("bytes {}-{}/3000", want.start, want.end - 1)
                );
                assert_eq!(response.headers()["content-length"], want.len().to_string());
                assert_eq!(response.bytes().await.unwrap(), &content[want]);
            }
            for range in ["500-0", "5000-10000"] {
                let response = ask(range).await;
                assert_eq!(response.status(), 416, "{range}");
                assert_eq!(response.headers()["content-range"], "bytes */3000");
                assert_eq!(response.headers()["content-length"], "0");
                assert!(!response.headers().contains_key("cache-control"));
            }
            let whole = setup.server.get(&setup.server.blob_url(&digest)).await;
            assert_eq!(whole.bytes().await.unwrap(), content);
        }
    }
}

/// Ascending, each once, whatever the upstream's order is: clients go on after the last one that they have.
#[tokio::test(flavor = "multi_thread")]
async fn tags_are_sorted_whatever_order_the_upstream_has() {
    for page in [usize::MAX, 3] {
        let setup = setup().await;
        let Setup { origin, server, .. } = &setup;
        origin.list_tags(REPOSITORY, &["v10", "latest", "v2", "a", "v2", "Z", "v1"]);
        origin.page_max(page);
        let want = ["Z", "a", "latest", "v1", "v10", "v2"];
        let url = server.url(&format!("{REPOSITORY}/tags/list"));
        let all = json_of(server.get(&url).await).await;
        assert_eq!(all["tags"], json!(want), "pages of {page}");
        let mut got = Vec::new();
        let mut next = Some(format!("{url}&n=2"));
        while let Some(url) = next.take() {
            let response = server.get(&url).await;
            let link = response.headers().get("link").map(|v| v.to_str().unwrap().to_owned());
            let target = link.map(|l| l[1..].split_once('>').unwrap().0.to_owned());
            next = target.map(|target| format!("http://{}{target}", server.address));
            let part = json_of(response).await;
            got.extend(part["tags"].as_array().unwrap().iter().cloned());
        }
        assert_eq!(json!(got), json!(want), "pages of {page}");
    }
}

/// Content discovery: tags, all, a number of them, after one of them, none of them.
#[tokio::test(flavor = "multi_thread")]
async fn tags() {
    let setup = setup().await;
    let Setup { origin, server, .. } = &setup;
    let want = ["TAG_A", "TagB", "rc_1", "tag-2", "tag-9", "v1.0"];
    for (seed, tag) in want.iter().rev().enumerate() {
        let manifest = json!({ "schemaVersion": 2, "manifests": [], "seed": seed });
        origin.add_manifest(REPOSITORY, Some(tag), OCI_INDEX, manifest.to_string());
    }
    origin.page_max(2);
    let list = async |query: &str| {
        let url = format!("{}{query}", server.url(&format!("{REPOSITORY}/tags/list")));
        let response = server.get(&url).await;
        assert_eq!(response.status(), 200, "{query}");
        let link = response.headers().get("link").map(|v| v.to_str().unwrap().to_owned());
        let body = json_of(response).await;
        assert_eq!(body["name"], REPOSITORY);
        let tags: Vec<String> = serde_json::from_value(body["tags"].clone()).unwrap();
        (tags, link)
    };
    assert_eq!(list("").await, (want.map(String::from).to_vec(), None));
    assert_eq!(origin.calls().len(), 3, "the upstream's pages are followed");
    assert_eq!(list("&n=0").await, (vec![], None));
    assert_eq!(list("&last=tag-2").await.0, ["tag-9", "v1.0"]);
    assert_eq!(
        list("&last=s").await.0,
        ["tag-2", "tag-9", "v1.0"],
        "what is no tag is a place, too"
    );
    assert_eq!(list("&last=zzz").await, (vec![], None));
    // Page by page, as the links lead.
    let (mut got, mut next) = list("&n=4").await;
    while let Some(link) = next.take() {
        let target = link.strip_prefix('<').unwrap().strip_suffix(">; rel=\"next\"").unwrap();
        assert!(target.starts_with("/v2/") && target.contains("n=4") && target.contains(&format!("ns={UPSTREAM}")));
        let response = server.get(&format!("http://{}{target}", server.address)).await;
        next = response.headers().get("link").map(|v| v.to_str().unwrap().to_owned());
        let body = json_of(response).await;
        got.extend(
            body["tags"]
                .as_array()
                .unwrap()
                .iter()
                .map(|t| t.as_str().unwrap().to_owned()),
        );
    }
    assert_eq!(got, want);
    assert_eq!(origin.calls().len(), 3, "one list answers them all");
    for bad in ["-1", "x", "1.5", ""] {
        let url = format!("{}&n={bad}", server.url(&format!("{REPOSITORY}/tags/list")));
        assert_errors(server.get(&url).await, 400, "PAGINATION_NUMBER_INVALID").await;
    }
    // By path, the link keeps the path.
    let url = format!("http://{}/v2/{UPSTREAM}/{REPOSITORY}/tags/list?n=1", server.address);
    let link = server.get(&url).await.headers()["link"].to_str().unwrap().to_owned();
    assert!(
        link.starts_with(&format!("</v2/{UPSTREAM}/{REPOSITORY}/tags/list?")),
        "{link}"
    );
    // Conditions and HEAD as everywhere.
    let url = server.url(&format!("{REPOSITORY}/tags/list"));
    let head = server.http.head(&url).send().await.unwrap();
    let etag = head.headers()["etag"].clone();
    assert!(
        head.headers()["content-length"]
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
            > 0
    );
    let same = server
        .http
        .get(&url)
        .header("if-none-match", etag)
        .send()
        .await
        .unwrap();
    assert_eq!(same.status(), 304);
    let other = server
        .http
        .get(&url)
        .header("if-match", "\"other\"")
        .send()
        .await
        .unwrap();
    assert_errors(other, 412, "UNSUPPORTED").await;
    let unknown = server.get(&server.url("no/such/tags/list")).await;
    assert_errors(unknown, 404, "NAME_UNKNOWN").await;
}

/// Content discovery: referrers, by the API and, without one, by the fallback tag.
#[tokio::test(flavor = "multi_thread")]
async fn referrers() {
    for api in [true, false] {
        let setup = setup().await;
        let Setup { origin, server, .. } = &setup;
        origin.referrers_api(api);
        origin.page_max(2);
        let subject = setup.artifact(None, "image", 1);
        let signatures = [2, 3].map(|seed| setup.artifact(Some(&subject), "application/signature+json", seed));
        let sbom = setup.artifact(Some(&subject), "application/sbom", 4);
        if !api {
            let descriptor = |digest: &BlobDigest, kind: &str| json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": 1, "artifactType": kind });
            let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
                descriptor(&signatures[0], "application/signature+json"),
                descriptor(&signatures[1], "application/signature+json"),
                descriptor(&sbom, "application/sbom"),
            ]});
            let tag = subject.to_string().replace(':', "-");
            origin.add_manifest(REPOSITORY, Some(&tag), OCI_INDEX, index.to_string());
        }
        let list = async |digest: &BlobDigest, query: &str| {
            let url = format!("{}{query}", server.url(&format!("{REPOSITORY}/referrers/{digest}")));
            let response = server.get(&url).await;
            assert_eq!(response.status(), 200);
            assert_eq!(response.headers()["content-type"], OCI_INDEX);
            let filters = response.headers().get("oci-filters-applied").cloned();
            let body = json_of(response).await;
            assert_eq!(
                (&body["schemaVersion"], &body["mediaType"]),
                (&json!(2), &json!(OCI_INDEX))
            );
            let digests: BTreeSet<String> = body["manifests"]
                .as_array()
                .unwrap()
                .iter()
                .map(|m| m["digest"].as_str().unwrap().to_owned())
                .collect();
            (digests, filters)
        };
        let set = |digests: &[BlobDigest]| digests.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let all = set(&[signatures[0], signatures[1], sbom]);
        assert_eq!(list(&subject, "").await, (all, None), "api {api}");
        let (filtered, said) = list(&subject, "&artifactType=application/signature+json").await;
        assert_eq!(
            (filtered, said.unwrap().as_bytes()),
            (set(&signatures), &b"artifactType"[..])
        );
        let encoded = list(&subject, "&artifactType=application%2Fsignature%2Bjson").await;
        assert_eq!(encoded.0, set(&signatures));
        assert!(list(&subject, "&artifactType=none").await.0.is_empty());
        assert!(list(&BlobDigest::of(b"nothing"), "").await.0.is_empty());
        let asked = |c: &headstart_loadtest::origin::Call| c.path.contains(&subject.to_string().replace("sha256:", ""));
        let calls = origin.calls().into_iter().filter(asked).count();
        assert_eq!(
            calls, 2,
            "two pages, or the API and the fallback tag; once for all filters"
        );
        // What is listed can be pulled.
        assert_eq!(server.fetch(&server.manifest_url(sbom)).await.0, 200);
        let bad = server.url(&format!("{REPOSITORY}/referrers/sha256:short"));
        assert_errors(server.get(&bad).await, 400, "DIGEST_INVALID").await;
        // And the list is still there when the upstream is gone.
        origin.stop();
        assert_eq!(list(&subject, "").await.0.len(), 3);
    }
}

/// Pull: the suite's odd data: blobs of no bytes, and an image with a layer that no registry has; with its `Accept`
/// headers, several and narrow.
#[tokio::test(flavor = "multi_thread")]
async fn empty_blobs_and_layers_that_no_registry_has() {
    let setup = setup().await;
    let Setup { origin, server, .. } = &setup;
    let sha512 = sha512_of(b"");
    origin.add_blob_as(REPOSITORY, sha512, Vec::new());
    let sha256 = origin.add_blob(REPOSITORY, Vec::new());
    let config = origin.add_blob(REPOSITORY, "{}");
    let descriptor =
        |kind: &str, digest: &BlobDigest, size: u64| json!({ "mediaType": kind, "digest": digest, "size": size });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config, 2),
        "layers": [
            descriptor("application/vnd.oci.image.layer.nondistributable.v1.tar", &BlobDigest::of(b"elsewhere"), 9),
            descriptor("application/vnd.oci.image.layer.v1.tar", &sha256, 0),
        ],
    })
    .to_string();
    let digest = origin.add_manifest(REPOSITORY, Some("nondist"), OCI_MANIFEST, manifest.clone());
    for _ in ["cold", "warm"] {
        for reference in ["nondist".to_owned(), digest.to_string()] {
            for method in [Method::HEAD, Method::GET] {
                let request = server.http.request(method.clone(), server.manifest_url(&reference));
                let request = request.header("accept", OCI_INDEX).header("accept", OCI_MANIFEST);
                let response = request.send().await.unwrap();
                assert_eq!(response.status(), 200, "{method} {reference}");
                assert_eq!(response.headers()["content-length"], manifest.len().to_string());
                assert_eq!(response.headers()["content-type"], OCI_MANIFEST);
                assert_eq!(response.headers()["docker-content-digest"], digest.to_string());
            }
        }
        for digest in [sha256, sha512] {
            for method in [Method::HEAD, Method::GET] {
                let response = setup.ask(method, &format!("blobs/{digest}")).await;
                assert_eq!(response.status(), 200, "{digest}");
                assert_eq!(response.headers()["content-length"], "0");
                assert_eq!(response.headers()["docker-content-digest"], digest.to_string());
                assert!(response.bytes().await.unwrap().is_empty());
            }
        }
    }
}

fn sha512_of(bytes: impl AsRef<[u8]>) -> BlobDigest {
    format!("sha512:{}", hex(&Sha512::digest(bytes.as_ref())))
        .parse()
        .unwrap()
}
