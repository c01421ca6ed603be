//! Another client: skopeo copies the image through the mirror, by path and by the default upstream.

use std::{path::Path, process::Command};

use headstart_layer_format::BlobDigest;
use headstart_loadtest::playground::{command, tools};

use crate::support::with_lab;

/// Every blob of a `dir:` copy is named by its digest, and is what its name says.
fn assert_copied(dir: &Path, manifest: &BlobDigest, blobs: &[BlobDigest]) {
    let bytes = std::fs::read(dir.join("manifest.json")).unwrap();
    assert_eq!(BlobDigest::of(&bytes), *manifest);
    for digest in blobs {
        let bytes = std::fs::read(dir.join(digest.hex())).unwrap();
        assert_eq!(BlobDigest::of(&bytes), *digest);
    }
}

#[test]
fn skopeo_copies_the_image_by_path_and_by_the_default_upstream() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        tools::require(&["skopeo"]).unwrap();
        let proxy = lab.proxy("proxy").await.unwrap();
        let blobs: Vec<BlobDigest> = lab
            .image
            .layers
            .iter()
            .map(|(d, _)| *d)
            .chain([lab.image.config])
            .collect();
        let policy = lab
            .work
            .write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)
            .unwrap();
        for (name, path) in [
            ("by-path", "demo.test/demo/python-app:v1"),
            ("by-default", "demo/python-app:v1"),
        ] {
            let target = lab.work.path().join(name);
            let mut skopeo = Command::new(tools::find("skopeo").unwrap());
            skopeo
                .arg("--policy")
                .arg(&policy)
                .args(["copy", "--quiet", "--src-tls-verify=false"]);
            skopeo.arg(format!("docker://{}/{path}", proxy.mirror_link.address()));
            skopeo.arg(format!("dir:{}", target.display()));
            command::run("skopeo", skopeo, &lab.work).await.unwrap();
            assert_copied(&target, &lab.image.manifest, &blobs);
        }
        // Both copies and the conversion together cost the upstream one copy.
        let upstream = lab.proxy_link.traffic().down_bytes;
        let compressed = lab.image.compressed_bytes();
        assert!(
            upstream < compressed + compressed / 10,
            "{upstream} bytes from the upstream, the image has {compressed}"
        );
    });
}
