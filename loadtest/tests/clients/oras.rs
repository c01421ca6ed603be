//! oras: artifacts with a subject, their referrers (by the fallback tag, which docker-registry 2.8 needs), and copies of
//! single images and of whole indexes.

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use headstart_loadtest::corpus::{OCI_INDEX, OCI_MANIFEST, descriptor};
use serde_json::json;

use crate::{
    skopeo::assert_warm,
    support::{
        images,
        images::{MultiArch, contents},
        stored,
        upstream::Upstream,
        with_bench,
    },
};

const ARTIFACT: &str = "application/vnd.example.sbom.v1";

#[test]
fn oras_copies_pulls_artifacts_and_discovers_referrers() {
    with_bench(|bench| async move {
        let forky = bench.forky().await;
        assert!(forky.find("oras").is_some(), "{}", forky.packages());
        let upstream = Upstream::start(&bench, "upstream").await;
        let (single, multi) = (images::image(700, &[500_000, 40_000]), MultiArch::new(800));
        upstream.push("team/app", "single", &single).await;
        upstream.push_multi("team/app", "multi", &multi).await;

        let file = Bytes::from_static(b"{\"packages\": []}\n");
        let empty = Bytes::from_static(b"{}");
        upstream.push_blob("team/app", &file).await;
        upstream.push_blob("team/app", &empty).await;
        let mut layer = descriptor("text/spdx+json", &BlobDigest::of(&file), file.len());
        layer["annotations"] = json!({ "org.opencontainers.image.title": "sbom.json" });
        let artifact = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": ARTIFACT,
            "config": descriptor("application/vnd.oci.empty.v1+json", &BlobDigest::of(&empty), empty.len()),
            "layers": [layer],
            "subject": descriptor(OCI_MANIFEST, &single.manifest_digest, single.manifest.len()),
        });
        let artifact = Bytes::from(artifact.to_string());
        let digest = BlobDigest::of(&artifact);
        upstream
            .push_manifest("team/app", "sbom", OCI_MANIFEST, &artifact)
            .await;
        let mut listed = descriptor(OCI_MANIFEST, &digest, artifact.len());
        listed["artifactType"] = ARTIFACT.into();
        let referrers = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed] });
        let fallback = format!("sha256-{}", single.manifest_digest.hex());
        upstream
            .push_manifest("team/app", &fallback, OCI_INDEX, &Bytes::from(referrers.to_string()))
            .await;

        let proxy = bench.proxy("proxy", &[("registry.test", &upstream.url())], "").await;
        let image = |tag: &str| format!("{}/registry.test/team/app:{tag}", proxy.address());
        let oras = async |name: &str, args: &[&str]| {
            let mut oras = forky.command(&bench.work, "oras");
            oras.args(args);
            bench.run(name, oras).await.unwrap()
        };
        let copy = async |name: &str, tag: &str| {
            let dir = bench.work.path().join(name);
            let to = format!("{}:{tag}", dir.display());
            oras(name, &["cp", "--from-plain-http", "--to-oci-layout", &image(tag), &to]).await;
            stored::layout(&dir)
        };
        let of_single = contents(&single);
        assert_eq!(copy("cold", "multi").await, multi.all());
        assert_eq!(copy("cold-single", "single").await, of_single);
        let warm = upstream.traffic();
        assert_eq!(copy("warm", "multi").await, multi.all());
        assert_eq!(copy("warm-single", "single").await, of_single);
        assert_warm(&bench, &upstream, &warm);

        let out = bench.dir("pulled");
        oras(
            "pull",
            &[
                "pull",
                "--plain-http",
                "--output",
                &out.to_string_lossy(),
                &image("sbom"),
            ],
        )
        .await;
        assert_eq!(std::fs::read(out.join("sbom.json")).unwrap(), file);
        let found = oras(
            "discover",
            &["discover", "--plain-http", "--format", "json", &image("single")],
        )
        .await;
        assert!(
            found.contains(&digest.to_string()) && found.contains(ARTIFACT),
            "{found}"
        );
        let tags = oras(
            "tags",
            &["repo", "tags", "--plain-http", image("x").trim_end_matches(":x")],
        )
        .await;
        assert!(tags.contains("sbom") && tags.contains("multi"), "{tags}");
    });
}
