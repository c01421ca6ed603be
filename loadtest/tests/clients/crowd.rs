//! A cluster that starts at once: the upstream pays for one.

use headstart_loadtest::{
    corpus::OCI_INDEX,
    origin::Origin,
    storm::{self, StormConfig},
};

use crate::support::{images, images::MultiArch, with_bench};

/// As many as a rack has nodes.
const NODES: usize = 100;

#[test]
fn a_hundred_cold_pulls_at_once_cost_the_upstream_each_byte_once() {
    with_bench(|bench| async move {
        // One is many fetch units, and not a whole number of them.
        let multi = MultiArch::of(2000, &[900_000, 5 << 20, 60_000]);
        let origin = Origin::with_image("team/app", "arm64", &multi.arm64);
        multi.amd64.push(&origin, "team/app", "amd64");
        origin.add_manifest("team/app", Some("v1"), OCI_INDEX, multi.index.clone());
        let proxy = bench.proxy("proxy", &[("registry.test", &origin.url())], "").await;
        let report = storm::run(StormConfig {
            server: proxy.url(),
            ns: "registry.test".to_owned(),
            repository: "team/app".to_owned(),
            reference: "v1".to_owned(),
            nodes: NODES,
            rounds: 1,
            ..StormConfig::default()
        })
        .await
        .unwrap();
        // The storm has checked every digest.
        assert_eq!((report.errors, report.image.count()), (0, NODES as u64), "{report}");
        let sizes = multi.amd64.layers.iter().map(|l| (l.digest, l.blob.len()));
        for (digest, size) in sizes.chain([(multi.amd64.config_digest, multi.amd64.config.len())]) {
            let gets = origin.gets(&digest);
            // Before the index was given: that the blob can be had.
            let proofs = gets.iter().filter(|call| call.range.as_deref() == Some("bytes=0-0"));
            let proofs = proofs.count() as u64;
            assert!(proofs <= 1, "{digest}: {gets:#?}");
            assert_eq!(origin.bytes_sent(&digest), size as u64 + proofs, "{digest}: {gets:#?}");
        }
        // A tag that arrives before another one is answered is another question, but the manifest is fetched once.
        for manifest in [multi.index_digest, multi.amd64.manifest_digest] {
            assert_eq!(origin.gets(&manifest).len(), 1, "{:#?}", origin.gets(&manifest));
        }
        assert!(
            images::blobs(&multi.arm64).iter().all(|d| origin.gets(d).is_empty()),
            "nobody asked for arm64"
        );
    });
}
