//! Manifest confusion (CVE-2021-41190): one document that one client reads as an index and another as a manifest, so
//! that what was checked and signed is not what runs. Clients went by `Content-Type`, by `mediaType`, or by the fields.
//!
//! The defence: what could be read in two ways is not served, whichever way it came: its `mediaType` must be the served
//! `Content-Type`, and it lists either `manifests` or `layers`. Bytes and types of everything else are the upstream's.

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::{Auth, Fault, Origin, Target};
use serde_json::json;

use crate::support::{REPOSITORY, Server};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_can_be_read_in_two_ways_is_not_served() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    let blob = json!({ "mediaType": "application/x", "digest": BlobDigest::of(b"x"), "size": 1 });
    let child = json!({ "mediaType": MANIFEST, "digest": BlobDigest::of(b"y"), "size": 1 });
    let two_faced = json!({ "schemaVersion": 2, "config": blob, "layers": [blob], "manifests": [child] });
    for (tag, served_as, said) in [
        ("both", MANIFEST, None),
        ("both-index", INDEX, None),
        ("both-said", INDEX, Some(INDEX)),
        ("lies", MANIFEST, Some(INDEX)),
        ("unknown-kind", "application/vnd.example+json", None),
    ] {
        let mut document = two_faced.clone();
        if let Some(said) = said {
            document["mediaType"] = said.into();
        }
        document["tag"] = tag.into();
        let digest = origin.add_manifest(REPOSITORY, Some(tag), served_as, document.to_string());
        for reference in [tag.to_owned(), digest.to_string()] {
            let answer = server.error(&server.manifest_url(&reference)).await;
            assert_eq!(answer, (502, "MANIFEST_INVALID".into()), "{reference}");
        }
    }
    // An honest index, once under another type: refused then, and served afterwards under its own.
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [child] }).to_string();
    let digest = origin.add_manifest(REPOSITORY, None, INDEX, index.clone());
    origin.once(Target::Digest(digest), Fault::ContentType(MANIFEST));
    assert_eq!(server.error(&server.manifest_url(digest)).await.0, 502);
    let response = server.get(&server.manifest_url(digest)).await;
    assert_eq!(response.headers()["content-type"], INDEX);
    assert_eq!(response.bytes().await.unwrap(), index);
}
