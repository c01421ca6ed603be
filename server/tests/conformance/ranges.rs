//! Ranges of what is no blob: manifests by tag and by digest, lists of tags and of referrers.
//!
//! In: each of them cold, warm and, where it may be, from memory. Out: what RFC 9110, sections 13.1.5 and 14, says of
//! `Range` and `If-Range`.
//! Not here: blobs (the test of that name in `main.rs`, `cold_range.rs`), conditions without a range ([`super::conditions`]).

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use headstart_loadtest::{
    corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, SyntheticImage},
    origin::{Auth, Origin},
};
use reqwest::{Method, Response};

use crate::{
    Setup,
    conditions::is_at_hand,
    support::{self, REPOSITORY, Server},
};

async fn ask(server: &Server, method: &Method, url: &str, headers: &[(&str, &str)]) -> Response {
    let mut request = server.http.request(method.clone(), url).header("accept", "*/*");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.send().await.unwrap()
}

/// The parts of a `multipart/byteranges` body: `Content-Type`, `Content-Range`, and the bytes.
fn parts(content_type: &str, body: &[u8]) -> Vec<(String, String, Vec<u8>)> {
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let (lead, end) = (format!("--{boundary}\r\n"), format!("\r\n--{boundary}--\r\n"));
    let text = text.strip_prefix(&lead).unwrap().strip_suffix(&end).unwrap();
    let part = |part: &str| {
        let (head, bytes) = part.split_once("\r\n\r\n").unwrap();
        let field = |name: &str| {
            let mut lines = head.lines();
            let value = lines.find_map(|line| line.split_once(": ").filter(|(n, _)| n.eq_ignore_ascii_case(name)));
            value.unwrap().1.to_owned()
        };
        (field("content-type"), field("content-range"), bytes.as_bytes().to_vec())
    };
    text.split(&format!("\r\n{lead}")).map(part).collect()
}

/// Every kind of range, of what is `whole` and has this tag.
async fn check(server: &Server, url: &str, what: &str, whole: &Bytes, etag: &str, kind: &str) {
    let (size, get) = (whole.len(), Method::GET);
    for (range, want) in [
        ("10-19", 10..20),
        ("10-", 10..size),
        ("-7", size - 7..size),
        ("20-999999", 20..size),
        ("-999999", 0..size),
        // What cannot be is passed over where something else can.
        ("999999-,3-5", 3..6),
    ] {
        let what = format!("{what} {range}");
        let answer = ask(server, &get, url, &[("range", &format!("bytes={range}"))]).await;
        assert_eq!(answer.status(), 206, "{what}");
        let head = answer.headers().clone();
        let says = format!("bytes {}-{}/{size}", want.start, want.end - 1);
        assert_eq!(head["content-range"], says, "{what}");
        assert_eq!(head["content-length"], want.len().to_string(), "{what}");
        assert_eq!(head["etag"], etag, "{what}");
        assert_eq!(head["content-type"], kind, "{what}");
        assert_eq!(answer.bytes().await.unwrap(), whole[want], "{what}");
    }
    let answer = ask(server, &get, url, &[("range", "bytes=30-39,0-4,-3")]).await;
    assert_eq!(answer.status(), 206, "{what}");
    let head = answer.headers().clone();
    assert!(!head.contains_key("content-range"), "{what}");
    let body = answer.bytes().await.unwrap();
    assert_eq!(head["content-length"], body.len().to_string(), "{what}");
    let wants = [30..40, 0..5, size - 3..size].map(|want| {
        let says = format!("bytes {}-{}/{size}", want.start, want.end - 1);
        (kind.to_owned(), says, whole[want].to_vec())
    });
    assert_eq!(parts(head["content-type"].to_str().unwrap(), &body), wants, "{what}");

    for range in [format!("{size}-"), "5-4".into(), "-0".into(), "999999-,5-4".into()] {
        let what = format!("{what} {range}");
        let answer = ask(server, &get, url, &[("range", &format!("bytes={range}"))]).await;
        assert_eq!(answer.status(), 416, "{what}");
        let head = answer.headers().clone();
        assert_eq!(head["content-range"], format!("bytes */{size}"), "{what}");
        assert_eq!(head["content-length"], "0", "{what}");
        assert!(!head.contains_key("cache-control"), "{what}");
    }
    let (weak, other) = (format!("W/{etag}"), format!("\"{}\"", BlobDigest::of(b"other")));
    let date = "Wed, 21 Oct 2015 07:28:00 GMT";
    for (if_range, want) in [(etag, 206), (&weak, 200), (&other, 200), (date, 200)] {
        let what = format!("{what} if-range: {if_range}");
        let asked = [("range", "bytes=10-19"), ("if-range", if_range)];
        let answer = ask(server, &get, url, &asked).await;
        assert_eq!(answer.status(), want, "{what}");
        let body = answer.bytes().await.unwrap();
        assert!(
            if want == 206 {
                body == whole[10..20]
            } else {
                body == *whole
            },
            "{what}"
        );
        // Nor is what cannot be an error of what was not asked for.
        let asked = [("range", "bytes=999999-"), ("if-range", if_range)];
        let answer = ask(server, &get, url, &asked).await;
        assert_eq!(answer.status(), if want == 206 { 416 } else { 200 }, "{what}");
    }
    // Malformed ones, other units, and those of a HEAD are none.
    for (method, range) in [
        (&get, "bytes=a-b"),
        (&get, "lines=1-2"),
        (&get, "bytes 1-2"),
        (&Method::HEAD, "bytes=10-19"),
        (&Method::HEAD, "bytes=999999-"),
    ] {
        let what = format!("{what} {method} {range}");
        let answer = ask(server, method, url, &[("range", range)]).await;
        assert_eq!(answer.status(), 200, "{what}");
        assert_eq!(answer.headers()["accept-ranges"], "bytes", "{what}");
        assert_eq!(answer.headers()["content-length"], size.to_string(), "{what}");
    }
    // A condition goes first.
    let asked = [("range", "bytes=10-19"), ("if-none-match", etag)];
    assert_eq!(ask(server, &get, url, &asked).await.status(), 304, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_manifests_and_lists() {
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
    // All of them are much longer than what stands between parts: or the whole would be sent.
    let layer = |n: u8| {
        let mut layer = LayerBuilder::new(Dialect::Pax);
        layer.file("f", Meta::default(), vec![n; 100]);
        layer.finish(Compression::Gzip)
    };
    let image = SyntheticImage::new(Flavor::Oci, (0..12).map(layer).collect());
    image.push(origin, REPOSITORY, "latest");
    for n in 0..200 {
        origin.tag(REPOSITORY, &format!("release-{n}"), image.manifest_digest);
    }
    for seed in 0..8 {
        setup.artifact(Some(&image.manifest_digest), "application/signature+json", seed);
    }
    let digest = image.manifest_digest.to_string();
    for (url, reference) in [
        // The first request for each is one for a range.
        (server.manifest_url("latest"), Some("latest")),
        (server.manifest_url(&digest), Some(digest.as_str())),
        (server.url(&format!("{REPOSITORY}/tags/list")), None),
        (server.url(&format!("{REPOSITORY}/referrers/{digest}")), None),
    ] {
        let cold = ask(server, &Method::GET, &url, &[("range", "bytes=10-19")]).await;
        assert_eq!(cold.status(), 206, "{url}");
        let cold = cold.bytes().await.unwrap();
        for round in ["warm", "at hand"] {
            match reference {
                Some(reference) if round == "at hand" => is_at_hand(server, &url, reference).await,
                _ => {}
            }
            let whole = ask(server, &Method::GET, &url, &[]).await;
            let text = |name: &str| whole.headers()[name].to_str().unwrap().to_owned();
            let (etag, kind) = (text("etag"), text("content-type"));
            let whole = whole.bytes().await.unwrap();
            assert_eq!(whole[10..20], cold);
            if reference.is_some() {
                assert_eq!(whole, image.manifest);
            }
            let what = format!("{round} {url}");
            check(server, &url, &what, &whole, &etag, &kind).await;
        }
    }
}
