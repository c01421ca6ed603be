//! Foreign layers (CVE-2020-15157): a descriptor may carry `urls`, and a client that fetched the layer from there with
//! the registry's credentials gave them to whoever wrote the manifest.
//!
//! The defence: `urls` are nobody's business here. They are never asked, with or without credentials; the bytes of the
//! manifest are served as they are, and a client that wants the layer goes there by itself.

use headstart_loadtest::origin::{Auth, Origin};
use headstart_server::config::{AuthConfig, UpstreamConfig};
use serde_json::json;

use crate::support::{REPOSITORY, Server, config};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test(flavor = "multi_thread")]
async fn urls_in_descriptors_are_never_asked() {
    let elsewhere = Origin::start(Auth::Anonymous);
    let layer = crate::support::noise(1000, 1);
    let foreign = elsewhere.add_blob(REPOSITORY, layer);
    let (origin, dir) = (
        Origin::start(Auth::basic("mirror", "s3cret")),
        tempfile::tempdir().unwrap(),
    );
    let mut config = config(&origin, dir.path());
    let password_file = dir.path().join("password");
    std::fs::write(&password_file, "s3cret").unwrap();
    config.upstreams[0] = UpstreamConfig {
        auth: Some(AuthConfig {
            username: "mirror".into(),
            password_file: Some(password_file),
            ..AuthConfig::default()
        }),
        ..config.upstreams[0].clone()
    };
    let server = Server::with(config).await;
    let image_config = origin.add_blob(REPOSITORY, "{\"rootfs\":{\"diff_ids\":[]}}");
    // A liar does not say that the layer is foreign.
    let liars = elsewhere.add_blob(REPOSITORY, crate::support::noise(1000, 2));
    for (kind, foreign) in [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", foreign),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", foreign),
        ("application/vnd.oci.image.layer.v1.tar+gzip", liars),
    ] {
        let urls = [format!("{}/v2/{REPOSITORY}/blobs/{foreign}", elsewhere.url())];
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json", "digest": image_config, "size": 27, "urls": urls,
            },
            "layers": [{ "mediaType": kind, "digest": foreign, "size": 1000, "urls": urls }],
        })
        .to_string();
        let digest = origin.add_manifest(REPOSITORY, Some("a"), MANIFEST, manifest.clone());
        assert_eq!(server.fetch(&server.manifest_url("a")).await.1.unwrap(), manifest);
        assert_eq!(server.error(&server.blob_url(&foreign)).await.0, 404, "{kind}");
        // The conversion has the layer on its list now; it asks the upstream at most.
        let image = format!("http://{}/headstart/v1/images/{digest}?wait_ms=300", server.address);
        server.get(&image).await;
    }
    assert!(elsewhere.calls().is_empty(), "{:#?}", elsewhere.calls());
    assert!(!origin.calls().is_empty());
}
