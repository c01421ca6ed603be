//! What the suite's newer data has: indexes in indexes, the other algorithm all the way down, subjects that are not there,
//! and fields that nobody asked for.

use headstart_layer_format::BlobDigest;
use headstart_loadtest::origin::Origin;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    EMPTY, OCI_INDEX, OCI_MANIFEST, Setup, json_of, setup, sha512_of,
    support::{REPOSITORY, noise, until},
};

impl Setup {
    /// By each of the names, by HEAD and GET, cold and from the cache: byte for byte, as this digest or as that of the name.
    async fn pulls(&self, names: &[&str], kind: &str, bytes: &str) {
        for round in ["cold", "warm"] {
            for name in names {
                for method in [Method::HEAD, Method::GET] {
                    let url = self.server.manifest_url(name);
                    let request = self.server.http.request(method.clone(), url);
                    let request = request.header("accept", OCI_INDEX).header("accept", OCI_MANIFEST);
                    let response = request.send().await.unwrap();
                    assert_eq!(response.status(), 200, "{round} {method} {name}");
                    assert_eq!(response.headers()["content-type"], kind);
                    assert_eq!(response.headers()["content-length"], bytes.len().to_string());
                    let said = response.headers()["docker-content-digest"].to_str().unwrap().to_owned();
                    if name.contains(':') {
                        assert_eq!(said, *name);
                    } else {
                        assert!(
                            said == sha512_of(bytes).to_string()
                                || said == BlobDigest::of(bytes.as_bytes()).to_string()
                        );
                    }
                    let body = response.bytes().await.unwrap();
                    assert!(method == Method::HEAD || body == bytes, "{round} {name}");
                }
            }
        }
    }
}

/// Pull: an index in an index, and one whose digests are all by the other algorithm, down to the blobs.
#[tokio::test(flavor = "multi_thread")]
async fn nested_indexes_of_either_algorithm() {
    type Put = fn(&Origin, Option<&str>, &str, &str) -> BlobDigest;
    let by_sha256: Put = |origin, tag, kind, bytes| origin.add_manifest(REPOSITORY, tag, kind, bytes.to_owned());
    let by_sha512: Put = |origin, tag, kind, bytes| {
        let digest = sha512_of(bytes);
        origin.add_manifest_as(REPOSITORY, tag, kind, digest, bytes.to_owned());
        digest
    };
    for (algorithm, put) in [("sha256", by_sha256), ("sha512", by_sha512)] {
        let setup = setup().await;
        let Setup { origin, server, .. } = &setup;
        let blob = |bytes: Vec<u8>| {
            let digest = match algorithm {
                "sha512" => sha512_of(&bytes),
                _ => BlobDigest::of(&bytes),
            };
            origin.add_blob_as(REPOSITORY, digest, bytes.clone());
            (digest, bytes)
        };
        let blobs = [blob(b"{}".to_vec()), blob(noise(50_000, 3))];
        let [config, layer] = &blobs;
        let image = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": 2 },
            "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.0, "size": 50_000 }],
        })
        .to_string();
        let image_digest = put(origin, None, OCI_MANIFEST, &image);
        let index = |children: &[(&str, &BlobDigest, usize)]| {
            let child = |(kind, digest, size): &(&str, &BlobDigest, usize)| json!({ "mediaType": kind, "digest": digest, "size": size });
            let children: Vec<Value> = children.iter().map(child).collect();
            json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children }).to_string()
        };
        let inner = index(&[(OCI_MANIFEST, &image_digest, image.len())]);
        let inner_digest = put(origin, None, OCI_INDEX, &inner);
        let outer = index(&[
            (OCI_INDEX, &inner_digest, inner.len()),
            (OCI_MANIFEST, &image_digest, image.len()),
        ]);
        let outer_digest = put(origin, Some("nested"), OCI_INDEX, &outer);
        setup
            .pulls(&["nested", &outer_digest.to_string()], OCI_INDEX, &outer)
            .await;
        setup.pulls(&[&inner_digest.to_string()], OCI_INDEX, &inner).await;
        setup.pulls(&[&image_digest.to_string()], OCI_MANIFEST, &image).await;
        for (digest, bytes) in &blobs {
            let response = setup.ask(Method::GET, &format!("blobs/{digest}")).await;
            assert_eq!(response.headers()["docker-content-digest"], digest.to_string());
            assert_eq!(response.bytes().await.unwrap(), bytes);
        }
        // All of it is here by now, and is found to be.
        let paths = blobs.clone().map(|(digest, _)| server.app.originals.path(&digest));
        until("the blobs", || paths.iter().all(|path| path.exists())).await;
        origin.stop();
        setup.pulls(&[&outer_digest.to_string()], OCI_INDEX, &outer).await;
    }
}

/// Content discovery: subjects by the other algorithm and subjects that were never pushed, and an index that refers to one;
/// by the API and by the fallback tag, which has room for a part of such a digest.
#[tokio::test(flavor = "multi_thread")]
async fn referrers_of_any_subject() {
    for api in [true, false] {
        let setup = setup().await;
        let Setup { origin, server, .. } = &setup;
        origin.referrers_api(api);
        let subject = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": { "mediaType": EMPTY, "digest": origin.add_blob(REPOSITORY, "{}"), "size": 2 }, "layers": [],
        })
        .to_string();
        let by_sha512 = sha512_of(&subject);
        origin.add_manifest_as(REPOSITORY, Some("image"), OCI_MANIFEST, by_sha512, subject);
        let missing = BlobDigest::of(b"never pushed");
        for (seed, subject) in [(1, by_sha512), (2, missing)] {
            let artifact = setup.artifact(Some(&subject), "application/signature+json", seed);
            let index = json!({
                "schemaVersion": 2, "mediaType": OCI_INDEX, "artifactType": "application/bundle",
                "manifests": [{ "mediaType": OCI_MANIFEST, "digest": artifact, "size": 1 }],
                "subject": { "mediaType": OCI_MANIFEST, "digest": subject, "size": 1 },
                "annotations": { "org.example.key": "value" },
            })
            .to_string();
            let index_digest = origin.add_manifest(REPOSITORY, None, OCI_INDEX, index.clone());
            let mut want = [
                json!({ "mediaType": OCI_MANIFEST, "digest": artifact, "artifactType": "application/signature+json",
                        "annotations": { "seed": seed.to_string() } }),
                json!({ "mediaType": OCI_INDEX, "digest": index_digest, "artifactType": "application/bundle",
                        "annotations": { "org.example.key": "value" } }),
            ];
            want.sort_by_key(|descriptor| descriptor["digest"].to_string());
            if !api {
                let list = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": want });
                let (algorithm, encoded) = subject
                    .to_string()
                    .split_once(':')
                    .map(|(a, e)| (a.to_owned(), e[..64].to_owned()))
                    .unwrap();
                origin.add_manifest(
                    REPOSITORY,
                    Some(&format!("{algorithm}-{encoded}")),
                    OCI_INDEX,
                    list.to_string(),
                );
            }
            let list = async |query: &str| {
                let url = format!("{}{query}", server.url(&format!("{REPOSITORY}/referrers/{subject}")));
                let response = server.get(&url).await;
                assert_eq!(response.status(), 200, "{subject}");
                assert_eq!(response.headers()["content-type"], OCI_INDEX);
                json_of(response).await["manifests"].as_array().unwrap().clone()
            };
            let got = list("").await;
            assert_eq!(got.len(), 2, "api {api}, {subject}: {got:?}");
            for (got, want) in got.iter().zip(&want) {
                for field in ["mediaType", "digest", "artifactType", "annotations"] {
                    assert_eq!(got[field], want[field], "{subject}");
                }
            }
            let bundles = list("&artifactType=application/bundle").await;
            assert_eq!(bundles.len(), 1);
            assert_eq!(bundles[0]["digest"], index_digest.to_string());
            // What is listed can be pulled, whether its subject can or not.
            setup.pulls(&[&index_digest.to_string()], OCI_INDEX, &index).await;
            assert_eq!(server.fetch(&server.manifest_url(artifact)).await.0, 200);
        }
        let answer = server.error(&server.manifest_url(missing)).await;
        assert_eq!(answer, (404, "MANIFEST_UNKNOWN".into()));
    }
}

/// Pull: what a descriptor carries besides (its content in `data`, annotations, fields that no specification has) comes as it
/// is, in a manifest and in an index.
#[tokio::test(flavor = "multi_thread")]
async fn fields_of_descriptors_that_a_mirror_has_no_use_for() {
    let setup = setup().await;
    let config = setup.origin.add_blob(REPOSITORY, "{}");
    let layer = setup.origin.add_blob(REPOSITORY, noise(1000, 4));
    let odd = json!({ "data": "e30=", "annotations": { "org.example": "\u{fc}" }, "org.example.custom": [1, { "a": null }],
                      "platform": { "os": "linux", "architecture": "amd64", "os.features": ["x"] } });
    let descriptor = |kind: &str, digest: &BlobDigest, size: usize| {
        let mut descriptor = json!({ "mediaType": kind, "digest": digest, "size": size });
        descriptor
            .as_object_mut()
            .unwrap()
            .extend(odd.as_object().unwrap().clone());
        descriptor
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example", "newField": { "b": [] },
        "config": descriptor(EMPTY, &config, 2), "layers": [descriptor("application/vnd.example", &layer, 1000)],
    });
    // Not as a serializer of ours would write it.
    let manifest = format!("\n{manifest:#}\n\n");
    let digest = setup
        .origin
        .add_manifest(REPOSITORY, Some("data"), OCI_MANIFEST, manifest.clone());
    let index = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX, "newField": "c",
        "manifests": [descriptor(OCI_MANIFEST, &digest, manifest.len())],
    });
    let index = format!("{index:#}\n");
    let index_digest = setup
        .origin
        .add_manifest(REPOSITORY, Some("data-index"), OCI_INDEX, index.clone());
    setup
        .pulls(&["data", &digest.to_string()], OCI_MANIFEST, &manifest)
        .await;
    setup
        .pulls(&["data-index", &index_digest.to_string()], OCI_INDEX, &index)
        .await;
}
