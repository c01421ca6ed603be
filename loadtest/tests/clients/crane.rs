//! crane: checks every Content-Length against the manifest, and wants the three headers on HEAD.

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

#[test]
fn crane_pulls_lists_digests_and_validates() {
    with_bench(|bench| async move {
        let forky = bench.forky().await;
        assert!(forky.find("crane").is_some(), "{}", forky.packages());
        let upstream = Upstream::start(&bench, "upstream").await;
        let (single, multi) = (images::image(500, &[500_000, 40_000]), MultiArch::new(600));
        upstream.push("team/app", "single", &single).await;
        upstream.push_multi("team/app", "multi", &multi).await;
        let proxy = bench.proxy("proxy", &[("registry.test", &upstream.url())], "").await;
        let image = |tag: &str| format!("{}/registry.test/team/app:{tag}", proxy.address());
        let crane = async |name: &str, args: &[&str]| {
            let mut crane = forky.command(&bench.work, "crane");
            crane.args(["--insecure"]).args(args);
            bench.run(name, crane).await.unwrap()
        };
        let pull = async |name: &str, tag: &str| {
            let dir = bench.work.path().join(name);
            crane(name, &["pull", "--format=oci", &image(tag), &dir.to_string_lossy()]).await;
            stored::layout(&dir)
        };
        // HEAD only, cold.
        assert_eq!(
            crane("digest", &["digest", &image("single")]).await.trim(),
            single.manifest_digest.to_string()
        );
        assert_eq!(pull("cold1", "single").await, contents(&single));
        assert_eq!(pull("cold2", "multi").await, multi.all());
        let warm = upstream.traffic();
        assert_eq!(pull("warm1", "single").await, contents(&single));
        assert_eq!(pull("warm2", "multi").await, multi.all());
        assert_warm(&bench, &upstream, &warm);

        assert_eq!(
            crane("multi", &["digest", &image("multi")]).await.trim(),
            multi.index_digest.to_string()
        );
        let amd64 = crane("amd64", &["digest", "--platform", "linux/amd64", &image("multi")]).await;
        assert_eq!(amd64.trim(), multi.amd64.manifest_digest.to_string());
        let manifest = crane("manifest", &["manifest", &image("single")]).await;
        assert_eq!(manifest.trim_end().as_bytes(), single.manifest.as_ref());
        crane("validate", &["validate", "--remote", &image("multi")]).await;
        let tags = crane("ls", &["ls", &format!("{}/registry.test/team/app", proxy.address())]).await;
        let tags: Vec<&str> = tags.split_whitespace().filter(|t| !t.starts_with("sha256")).collect();
        assert_eq!(tags, ["multi", "single"]);
    });
}
