//! The registry API through a running server: manifests, tags, headers, credentials, and every way to be wrong.

mod support;

use headstart_layer_format::{BlobDigest, digest::hex};
use headstart_loadtest::origin::{Auth, Fault, Origin, Target, basic_header};
use headstart_server::config::{AccessRule, AuthConfig};
use serde_json::json;
use sha2::{Digest as _, Sha512};
use support::{REPOSITORY, Server, UPSTREAM, config, error_of, noise};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An index with no children and some white space: valid, and not what a serializer would write.
fn index(seed: u32) -> Vec<u8> {
    format!("{{ \"schemaVersion\":2,\n\t\"mediaType\":\"{OCI_INDEX}\", \"manifests\" : [], \"x\":{seed} }}\n")
        .into_bytes()
}

struct Setup {
    origin: Origin,
    server: Server,
    _dir: tempfile::TempDir,
}

async fn setup(auth: Auth) -> Setup {
    let (origin, dir) = (Origin::start(auth), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    Setup {
        origin,
        server,
        _dir: dir,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_of_any_type_come_byte_for_byte_with_the_headers_that_clients_expect() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    for (tag, media_type, bytes) in [
        ("index", OCI_INDEX, index(1)),
        ("json", "application/vnd.example.thing+json", b"{\"a\":1}".to_vec()),
        ("raw", "application/vnd.example.raw", noise(300_000, 1)),
    ] {
        let digest = origin.add_manifest(REPOSITORY, Some(tag), media_type, bytes.clone());
        for reference in [tag.to_owned(), digest.to_string()] {
            let url = server.manifest_url(&reference);
            let head = server.http.head(&url).send().await.unwrap();
            let get = server.get(&url).await;
            for response in [&head, &get] {
                let header = |name: &str| response.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
                assert_eq!(response.status(), 200);
                assert_eq!(header("content-type").unwrap(), media_type);
                assert_eq!(header("content-length").unwrap(), bytes.len().to_string());
                assert_eq!(header("docker-content-digest").unwrap(), digest.to_string());
                assert_eq!(header("etag").unwrap(), format!("\"{digest}\""));
                assert_eq!(header("docker-distribution-api-version").unwrap(), "registry/2.0");
                assert_eq!(header("oci-namespace").unwrap(), UPSTREAM);
                assert_eq!(header("content-encoding"), None);
            }
            assert!(get.bytes().await.unwrap() == bytes);
        }
        assert_eq!(origin.gets(&digest).len(), 1, "{tag} is fetched once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sha512_manifest_and_blob_are_verified_by_their_own_algorithm() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    let bytes = index(2);
    let digest: BlobDigest = format!("sha512:{}", hex(&Sha512::digest(&bytes))).parse().unwrap();
    origin.add_manifest_as(REPOSITORY, None, OCI_INDEX, digest, bytes.clone());
    origin.add_blob_as(REPOSITORY, digest, bytes.clone());
    assert_eq!(server.fetch(&server.manifest_url(digest)).await.1.unwrap(), bytes);
    assert_eq!(server.fetch(&server.blob_url(&digest)).await.1.unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_follows_the_upstream_and_outlives_it() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    let (old, new) = (index(3), index(4));
    let old_digest = origin.add_manifest(REPOSITORY, Some("latest"), OCI_INDEX, old.clone());
    let url = server.manifest_url("latest");
    assert_eq!(server.fetch(&url).await.1.unwrap(), old);
    origin.add_manifest(REPOSITORY, Some("latest"), OCI_INDEX, new.clone());
    assert_eq!(server.fetch(&url).await.1.unwrap(), new);

    for code in [500, 503, 429] {
        origin.always(
            Target::Everything,
            Fault::Status {
                code,
                retry_after_secs: None,
            },
        );
        let response = server.get(&url).await;
        assert_eq!(response.status(), 200, "upstream says {code}");
        assert!(response.headers()["warning"].to_str().unwrap().starts_with("299 "));
        origin.clear_faults();
    }
    origin.stop();
    let response = server.get(&url).await;
    assert!(response.headers().contains_key("warning"));
    assert_eq!(response.bytes().await.unwrap(), new);
    // By digest nothing can be stale.
    let response = server.get(&server.manifest_url(old_digest)).await;
    assert!(response.status() == 200 && !response.headers().contains_key("warning"));
    // What was never here cannot be served.
    assert_eq!(
        server.error(&server.manifest_url("other")).await,
        (502, "UNAVAILABLE".into())
    );

    origin.restart();
    assert!(!server.get(&url).await.headers().contains_key("warning"));
    // A tag that is gone is gone: a "no" is not trouble.
    origin.remove(REPOSITORY, &BlobDigest::of(&new));
    assert_eq!(server.error(&url).await, (404, "MANIFEST_UNKNOWN".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_outlives_upstream_and_server() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    origin.add_manifest(REPOSITORY, Some("latest"), OCI_INDEX, index(5));
    let server = Server::start(&origin, dir.path()).await;
    let url = |server: &Server| server.manifest_url("latest");
    assert_eq!(server.fetch(&url(&server)).await.0, 200);
    server.stop().await;
    origin.stop();
    let server = Server::start(&origin, dir.path()).await;
    let response = server.get(&url(&server)).await;
    assert_eq!(response.status(), 200);
    assert!(response.headers().contains_key("warning"));
    for probe in ["healthz", "readyz"] {
        let response = server.get(&format!("http://{}/{probe}", server.address)).await;
        assert_eq!(response.status(), 200, "{probe} does not depend on upstreams");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_and_ambiguous_manifests_are_refused_and_not_kept() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    let digest = origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(6));
    origin.once(Target::Digest(digest), Fault::NoDigestHeader);
    origin.always(Target::Digest(digest), Fault::WrongByte { at: 3 });
    assert_eq!(server.error(&server.manifest_url(digest)).await.0, 502);
    origin.clear_faults();
    assert_eq!(server.fetch(&server.manifest_url(digest)).await.0, 200);

    let both = json!({ "schemaVersion": 2, "manifests": [], "layers": [] }).to_string();
    origin.add_manifest(REPOSITORY, Some("both"), OCI_MANIFEST, both);
    origin.add_manifest(REPOSITORY, Some("lying"), OCI_MANIFEST, index(7));
    origin.add_manifest(REPOSITORY, Some("large"), OCI_MANIFEST, vec![b' '; (4 << 20) + 1]);
    for tag in ["both", "lying"] {
        assert_eq!(
            server.error(&server.manifest_url(tag)).await,
            (502, "MANIFEST_INVALID".into()),
            "{tag}"
        );
    }
    assert_eq!(server.error(&server.manifest_url("large")).await.0, 502);
}

#[tokio::test(flavor = "multi_thread")]
async fn accept_headers_reach_the_upstream_all_of_them() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(8));
    let request = server.http.get(server.manifest_url("a"));
    request
        .header("accept", "text/x")
        .header("accept", "text/y, text/z")
        .send()
        .await
        .unwrap();
    let calls = origin.calls();
    assert!(
        calls
            .iter()
            .all(|c| c.accept.join(",").replace(' ', "") == "text/x,text/y,text/z"),
        "{calls:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_unknown_or_malformed_has_its_code() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(9));
    let unknown = BlobDigest::of(b"unknown");
    for (path, status, code) in [
        (format!("{REPOSITORY}/manifests/none"), 404, "MANIFEST_UNKNOWN"),
        (format!("{REPOSITORY}/manifests/{unknown}"), 404, "MANIFEST_UNKNOWN"),
        (format!("{REPOSITORY}/blobs/{unknown}"), 404, "BLOB_UNKNOWN"),
        ("no/such/manifests/a".into(), 404, "MANIFEST_UNKNOWN"),
        (format!("{REPOSITORY}/blobs/sha256:zz"), 400, "DIGEST_INVALID"),
        (format!("{REPOSITORY}/blobs/..%2f..%2fetc%2fpasswd"), 404, "UNSUPPORTED"),
        (format!("{REPOSITORY}/manifests/sha256:12"), 400, "DIGEST_INVALID"),
        (format!("{REPOSITORY}/manifests/.x"), 404, "MANIFEST_UNKNOWN"),
        ("UPPER/manifests/a".into(), 400, "NAME_INVALID"),
        ("a/b/referrers/x".into(), 400, "DIGEST_INVALID"),
        ("_catalog".into(), 404, "UNSUPPORTED"),
        ("a%FFb/manifests/a".into(), 400, "NAME_INVALID"),
        ("a/../b/manifests/a".into(), 404, "MANIFEST_UNKNOWN"), // the client's own doing: it asks for b
        ("a/%2e%2e%2fb/manifests/a".into(), 400, "NAME_INVALID"),
        ("a//b/manifests/a".into(), 400, "NAME_INVALID"),
        (format!("{}/manifests/a", "n".repeat(256)), 400, "NAME_INVALID"),
        (format!("{}/manifests/a", "n".repeat(255)), 404, "MANIFEST_UNKNOWN"),
        (
            format!("{REPOSITORY}/manifests/{}", "t".repeat(129)),
            404,
            "MANIFEST_UNKNOWN",
        ),
        (
            format!("{REPOSITORY}/manifests/{}", "t".repeat(128)),
            404,
            "MANIFEST_UNKNOWN",
        ),
    ] {
        assert_eq!(server.error(&server.url(&path)).await, (status, code.into()), "{path}");
    }
    for ns in ["elsewhere.example", "127.0.0.1", "http://127.0.0.1:1"] {
        let url = format!("http://{}/v2/{REPOSITORY}/manifests/a?ns={ns}", server.address);
        assert_eq!(server.error(&url).await, (404, "NAME_UNKNOWN".into()), "{ns}");
    }
    // A query that does not parse has an error of ours as well; it had the framework's plain text.
    for url in [
        format!("http://{}/v2/{REPOSITORY}/manifests/a?ns=a&ns=b", server.address),
        format!(
            "http://{}/headstart/v1/layers/{unknown}/toc?wait_ms=soon",
            server.address
        ),
    ] {
        assert_eq!(server.error(&url).await, (400, "UNSUPPORTED".into()), "{url}");
    }
    let without = format!("http://{}/v2/{REPOSITORY}/manifests/a", server.address);
    assert_eq!(server.error(&without).await, (404, "NAME_UNKNOWN".into()));
    // Escaped or not, a path means the same.
    let escaped = server.url(&format!("{}/manifests/%61", REPOSITORY.replace('/', "%2F")));
    assert_eq!(server.get(&escaped).await.status(), 200);
    // Path-based mirrors name the upstream in the path.
    let by_path = format!("http://{}/v2/{UPSTREAM}/{REPOSITORY}/manifests/a", server.address);
    assert_eq!(server.get(&by_path).await.status(), 200);

    let blob = server.blob_url(&unknown);
    for response in [
        server
            .http
            .post(server.url(&format!("{REPOSITORY}/blobs/uploads/")))
            .send()
            .await
            .unwrap(),
        server.http.put(server.manifest_url("a")).send().await.unwrap(),
        server.http.delete(&blob).send().await.unwrap(),
    ] {
        assert_eq!(error_of(response).await, (405, "UNSUPPORTED".into()));
    }
    let base = server.get(&format!("http://{}/v2/", server.address)).await;
    assert_eq!(base.status(), 200);
    assert_eq!(base.headers()["docker-distribution-api-version"], "registry/2.0");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_conditions() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    let content = noise(3000, 10);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let url = server.blob_url(&digest);
    let etag = format!("\"{digest}\"");
    let ask = |headers: &[(&str, &str)]| {
        let mut request = server.http.get(&url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        async { request.send().await.unwrap() }
    };
    let whole = ask(&[]).await;
    for (name, value) in [
        ("accept-ranges", "bytes"),
        ("etag", etag.as_str()),
        ("content-length", "3000"),
    ] {
        assert_eq!(whole.headers()[name], value);
    }
    assert!(
        whole.headers()["cache-control"]
            .to_str()
            .unwrap()
            .contains("max-age=31536000")
    );

    for (range, from, to) in [
        ("500-1499", 500, 1500),
        ("500-", 500, 3000),
        ("-500", 2500, 3000),
        ("2000-5000", 2000, 3000),
    ] {
        let response = ask(&[("range", &format!("bytes={range}"))]).await;
        assert_eq!(response.status(), 206, "{range}");
        assert_eq!(
            response.headers()["content-range"],
            format!("bytes {from}-{}/3000", to - 1)
        );
        assert_eq!(response.bytes().await.unwrap(), &content[from..to]);
    }
    for range in ["500-0", "5000-10000"] {
        let response = ask(&[("range", &format!("bytes={range}"))]).await;
        assert_eq!(response.status(), 416, "{range}");
        assert_eq!(response.headers()["content-range"], "bytes */3000");
        assert_eq!(response.headers()["content-length"], "0");
    }
    for range in ["bytes=x-y", "lines=1-2", "bytes="] {
        let response = ask(&[("range", range)]).await;
        assert_eq!(
            (response.status().as_u16(), response.bytes().await.unwrap().len()),
            (200, 3000),
            "{range}"
        );
    }

    let several = ask(&[("range", "bytes=0-9,100-109")]).await;
    assert_eq!(several.status(), 206);
    let content_type = several.headers()["content-type"].to_str().unwrap().to_owned();
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let part = |from: usize| {
        let head = format!(
            "--{boundary}\r\ncontent-type: application/octet-stream\r\ncontent-range: bytes {from}-{}/3000\r\n\r\n",
            from + 9
        );
        [head.as_bytes(), &content[from..from + 10], b"\r\n"].concat()
    };
    let want = [part(0), part(100), format!("--{boundary}--\r\n").into_bytes()].concat();
    let length = several.content_length();
    let got = several.bytes().await.unwrap();
    assert_eq!(length, Some(got.len() as u64));
    assert_eq!(got, want);

    assert_eq!(ask(&[("if-none-match", &etag)]).await.status(), 304);
    assert_eq!(ask(&[("if-none-match", "\"other\"")]).await.status(), 200);
    assert_eq!(ask(&[("range", "bytes=0-9"), ("if-range", &etag)]).await.status(), 206);
    assert_eq!(
        ask(&[("range", "bytes=0-9"), ("if-range", "\"other\"")]).await.status(),
        200
    );
    assert!(
        server
            .app
            .metrics
            .render()
            .contains("headstart_served_bytes_total{route=\"blobs\"}")
    );
}

/// Distribution says MANIFEST_UNKNOWN for an unknown repository; other registries are more exact, and so are we then.
/// `public` lets a cache between us and the clients give to anybody what one client was allowed.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_for_everybody_is_not_for_shared_caches() {
    for restricted in [false, true] {
        let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
        let mut config = config(&origin, dir.path());
        if restricted {
            config.access.rules.push(AccessRule {
                who: vec!["anonymous".into()],
                upstreams: Vec::new(),
                repositories: vec![REPOSITORY.into()],
            });
        }
        let server = Server::with(config).await;
        let blob = origin.add_blob(REPOSITORY, noise(1000, 1));
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": { "mediaType": "application/vnd.example", "digest": blob, "size": 1000 }, "layers": [],
        });
        let digest = origin.add_manifest(REPOSITORY, None, OCI_MANIFEST, manifest.to_string());
        for url in [server.manifest_url(digest), server.blob_url(&blob)] {
            for method in [reqwest::Method::HEAD, reqwest::Method::GET] {
                let response = server.http.request(method, &url).send().await.unwrap();
                assert_eq!(response.status(), 200);
                let cache = response.headers()["cache-control"].to_str().unwrap();
                let who = if restricted { "private" } else { "public" };
                assert_eq!(cache, format!("{who}, max-age=31536000, immutable"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_repository_is_named_so_when_the_upstream_does() {
    let body = json!({ "errors": [{ "code": "NAME_UNKNOWN", "message": "repository not found" }] }).to_string();
    let answer = move || {
        let body = body.clone();
        async move { (axum::http::StatusCode::NOT_FOUND, body) }
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let upstream = tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    config.upstreams[0].url = url;
    let server = Server::with(config).await;
    for path in ["manifests/a", &format!("blobs/{}", BlobDigest::of(b"x"))] {
        let url = server.url(&format!("{REPOSITORY}/{path}"));
        assert_eq!(server.error(&url).await, (404, "NAME_UNKNOWN".into()), "{path}");
    }
    upstream.abort();
}

/// A server with credentials for an origin that wants them.
async fn with_credentials(origin: &Origin, dir: &std::path::Path) -> Server {
    let mut config = config(origin, dir);
    let password_file = dir.join("password");
    std::fs::write(&password_file, "s3cret\n").unwrap();
    config.upstreams[0].auth = Some(AuthConfig {
        username: "mirror".into(),
        password_file: Some(password_file),
        ..AuthConfig::default()
    });
    Server::with(config).await
}

#[tokio::test(flavor = "multi_thread")]
async fn basic_and_bearer_upstreams_are_met_with_the_servers_credentials() {
    for auth in [Auth::basic("mirror", "s3cret"), Auth::bearer_for("mirror", "s3cret")] {
        let (origin, dir) = (Origin::start(auth.clone()), tempfile::tempdir().unwrap());
        let digest = origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(11));
        let blob = origin.add_blob(REPOSITORY, noise(1000, 11));
        let server = with_credentials(&origin, dir.path()).await;
        assert_eq!(server.fetch(&server.manifest_url("a")).await.0, 200, "{auth:?}");
        assert_eq!(server.fetch(&server.blob_url(&blob)).await.0, 200, "{auth:?}");
        let tokens = origin.calls().iter().filter(|c| c.is_token()).count();
        assert!(tokens <= 1, "tokens are kept");
        origin.expire_tokens();
        let other = origin.add_blob(REPOSITORY, noise(1000, 12));
        assert_eq!(
            server.fetch(&server.blob_url(&other)).await.0,
            200,
            "a new token is fetched: {auth:?}"
        );
        // Without credentials it is a "no", and never a challenge to the client.
        let dir = tempfile::tempdir().unwrap();
        let anonymous = Server::start(&origin, dir.path()).await;
        let response = anonymous.get(&anonymous.manifest_url(digest)).await;
        assert!(!response.headers().contains_key("www-authenticate"));
        assert_eq!(error_of(response).await, (403, "DENIED".into()), "{auth:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_tokens_are_fetched_and_the_clients_credentials_go_nowhere() {
    let Setup { origin, server, _dir } = setup(Auth::bearer()).await;
    origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(13));
    let request = server.http.get(server.manifest_url("a"));
    let response = request
        .header("authorization", basic_header("user", "of the client"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let calls = origin.calls();
    assert!(
        calls
            .iter()
            .flat_map(|c| &c.authorization)
            .all(|a| a.starts_with("Bearer token-")),
        "{calls:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_realm_on_a_foreign_host_is_not_even_asked() {
    let foreign = Origin::start(Auth::Anonymous);
    let auth = Auth::Bearer {
        realm: Some(format!("{}/token", foreign.url())),
        service: "s".into(),
        user: None,
    };
    let (origin, dir) = (Origin::start(auth), tempfile::tempdir().unwrap());
    origin.add_manifest(REPOSITORY, Some("a"), OCI_INDEX, index(14));
    let server = with_credentials(&origin, dir.path()).await;
    assert_eq!(server.error(&server.manifest_url("a")).await, (403, "DENIED".into()));
    assert!(foreign.calls().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_lose_the_credentials() {
    let (origin, dir) = (
        Origin::start(Auth::basic("mirror", "s3cret")),
        tempfile::tempdir().unwrap(),
    );
    let content = noise(1000, 15);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    origin.redirect_blobs(true);
    let server = with_credentials(&origin, dir.path()).await;
    assert_eq!(server.fetch(&server.blob_url(&digest)).await.1.unwrap(), content);
    let calls = origin.calls();
    let cdn: Vec<_> = calls
        .iter()
        .filter(|c| c.host.as_deref() == Some(&origin.cdn_address().to_string()))
        .collect();
    assert!(
        !cdn.is_empty() && cdn.iter().all(|c| c.authorization.is_none()),
        "{calls:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_says_when_to_come_back() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    let digest = origin.add_blob(REPOSITORY, noise(1000, 16));
    origin.once(
        Target::Digest(digest),
        Fault::Status {
            code: 429,
            retry_after_secs: Some(7),
        },
    );
    let response = server.get(&server.blob_url(&digest)).await;
    assert_eq!(response.headers()["retry-after"], "7");
    assert_eq!(error_of(response).await, (429, "TOOMANYREQUESTS".into()));
    // Until then the upstream is left alone.
    let calls = origin.calls().len();
    assert_eq!(server.fetch(&server.blob_url(&digest)).await.0, 429);
    assert_eq!(origin.calls().len(), calls);
}

/// Not every registry says it; who is not told comes back at once, or never.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests_says_so_also_when_the_upstream_does_not() {
    let Setup { origin, server, _dir } = setup(Auth::Anonymous).await;
    let blob = origin.add_blob(REPOSITORY, noise(1000, 16));
    let limit = Fault::Status {
        code: 429,
        retry_after_secs: None,
    };
    origin.always(Target::Everything, limit);
    for url in [server.blob_url(&blob), server.manifest_url("a")] {
        let response = server.get(&url).await;
        assert_eq!(response.status(), 429);
        let secs: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&secs), "{secs}");
    }
}

/// Only the *head* of a request had a time. A client that promised a body and never sent it held one of the permits for
/// requests; as many such clients as there are permits shut everybody out.
#[tokio::test]
async fn a_request_body_that_never_comes_is_given_up() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = support::config(&origin, dir.path());
    config.http.requests_max = 1;
    config.http.header_timeout_ms = 500;
    let server = Server::with(config).await;
    let mut slow = tokio::net::TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"POST /headstart/v1/chunks HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        .await
        .unwrap();
    let mut head = [0; 12];
    let answer = tokio::time::timeout(std::time::Duration::from_secs(20), slow.read_exact(&mut head));
    answer.await.expect("an answer comes").unwrap();
    assert_eq!(&head, b"HTTP/1.1 408");
    assert_eq!(server.get(&server.url("")).await.status(), 200);
}
