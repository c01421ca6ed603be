//! Digests as paths (CVE-2024-3727): a library put a digest into a path, a URL and a cache key without looking whether
//! it was one.
//!
//! The defence: a digest is parsed at the edge into a type that holds raw bytes; what does not parse is 400 there,
//! whether a client or a document says it, and nothing on disk or upstream is touched.

use headstart_loadtest::origin::{Auth, Origin};
use serde_json::json;

use crate::support::{REPOSITORY, Server, UPSTREAM};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_digest_reaches_neither_disk_nor_upstream() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("secret"), "secret of the host").unwrap();
    let server = Server::start(&origin, &dir.path().join("data")).await;
    let hex = "a".repeat(64);
    let long = format!("sha256:{}", "a".repeat(1000));
    for bad in [
        "sha256:../../../secret",
        "sha256:..%2f..%2f..%2fsecret",
        "sha256:%2e%2e%2f%2e%2e%2fsecret",
        "..%2f..%2fsecret",
        "sha256:",
        "sha256",
        ":",
        "sha512:aa",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        &long,
        &format!("sha256:{}", hex.to_uppercase()),
        &format!("sha256:{hex}%00"),
        &format!("sha256:{hex}/../../secret"),
        &format!("sha256:{hex}%0d%0ax:y"),
        &format!("SHA256:{hex}"),
        &format!("sha256+b64u:{hex}"),
    ] {
        for path in [
            format!("/v2/{REPOSITORY}/blobs/{bad}"),
            format!("/v2/{REPOSITORY}/manifests/{bad}"),
            format!("/v2/{REPOSITORY}/referrers/{bad}"),
            format!("/headstart/v1/layers/{bad}/toc"),
            format!("/headstart/v1/images/{bad}"),
        ] {
            // By hand: clients tidy paths up.
            let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
            let request = format!("GET {path}?ns={UPSTREAM} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            let answer = String::from_utf8_lossy(&answer);
            let status: u16 = answer[9..12].parse().unwrap();
            // A manifest's reference without a colon is a tag, if it looks like one.
            assert!(status == 400 || status == 404, "{path}: {answer}");
            assert!(!answer.contains("secret of the host"), "{path}");
        }
    }
    let harmless = ["/manifests/sha256"];
    let calls = origin.calls();
    assert!(
        calls.iter().all(|c| harmless.iter().any(|h| c.path.ends_with(h))),
        "{calls:#?}"
    );

    // In a document: such a child is nobody's member, and the document is served as it is.
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [
        { "mediaType": INDEX, "digest": "sha256:../../../secret", "size": 1 },
        { "mediaType": INDEX, "digest": format!("sha256:{hex}"), "size": 1 },
    ]})
    .to_string();
    let digest = origin.add_manifest(REPOSITORY, Some("a"), INDEX, index.clone());
    assert_eq!(server.fetch(&server.manifest_url("a")).await.1.unwrap(), index);
    let fact = server.app.store.manifest(&digest).unwrap().unwrap();
    assert_eq!(fact.members, [format!("sha256:{hex}").parse().unwrap()]);
}
