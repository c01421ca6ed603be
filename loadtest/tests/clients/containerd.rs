//! containerd 1.6 (Debian 12) and 2.1 (forky): `_default`, a directory for one registry, `ctr`, CRI, and 2.1's parts.

use std::collections::BTreeSet;

use headstart_loadtest::{
    corpus::{OCI_INDEX, SyntheticImage},
    origin::{Call, Origin},
    playground::containerd::{Containerd, Release, Snapshotter},
};

use crate::support::{
    Bench, images,
    images::{MultiArch, contents},
    stored,
    upstream::Upstream,
    with_bench,
};

/// Bytes of a part where 2.1 fetches in parts.
const PART_BYTES: u64 = 2 << 20;

/// Writes hosts.toml for `registry` (or `_default`) with these hosts in order.
pub fn hosts(bench: &Bench, dir: &str, registry: &str, urls: &[&str]) {
    bench.dir(&format!("{dir}/{registry}"));
    let host = |url: &&str| format!("[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n\n");
    // Our own names are nowhere: without it containerd would ask for them last.
    let text: String = std::iter::once(String::new()).chain(urls.iter().map(host)).collect();
    bench.work.write(format!("{dir}/{registry}/hosts.toml"), &text).unwrap();
}

async fn start(bench: &Bench, name: &str, release: Release, hosts: &str) -> Containerd {
    let hosts = bench.dir(hosts);
    match Containerd::start_release(&bench.work, name, release, &Snapshotter::Overlayfs, &hosts).await {
        Ok(containerd) => containerd,
        Err(error) => panic!("failed to {error}"),
    }
}

/// Single- and multi-arch images of two registries, which only `ns` tells apart, cold and warm, by ctr and by CRI.
async fn pulls_everything(bench: Bench, release: Release) {
    let upstream = Upstream::start(&bench, "upstream").await;
    let (single, multi) = (images::image(1100, &[500_000, 40_000]), MultiArch::new(1200));
    upstream.push("team/app", "single", &single).await;
    upstream.push_multi("team/app", "multi", &multi).await;
    // The same name in another registry is another image.
    let other = images::image(1300, &[300_000]);
    let origin = Origin::with_image("team/app", "single", &other);
    let proxy = bench
        .proxy(
            "proxy",
            &[("registry.test", &upstream.url()), ("other.test", &origin.url())],
            "",
        )
        .await;
    hosts(&bench, "default", "_default", &[&proxy.url()]);
    hosts(&bench, "named", "registry.test", &[&proxy.url()]);
    hosts(&bench, "named", "other.test", &[&proxy.url()]);

    let mut warm = None;
    for (round, by_ctr, hosts) in [
        ("cold", true, "default"),
        ("warm-ctr", true, "named"),
        ("warm-cri", false, "named"),
    ] {
        let containerd = start(&bench, &format!("node-{round}"), release.clone(), hosts).await;
        let mut expected = contents(&single);
        for (reference, more) in [
            ("registry.test/team/app:single", &[] as &[&str]),
            ("other.test/team/app:single", &[]),
            ("registry.test/team/app:multi", &["--platform", "linux/amd64"]),
        ] {
            if by_ctr {
                let mut ctr = containerd.ctr();
                ctr.args(["images", "pull", "--hosts-dir"])
                    .arg(bench.dir(hosts))
                    .args(more)
                    .arg(reference);
                bench.run(&format!("{round}-ctr"), ctr).await.unwrap();
            } else {
                containerd.cri.pull(reference).await.unwrap();
            }
        }
        expected.append(&mut contents(&other));
        expected.append(&mut contents(&multi.amd64));
        expected.insert(multi.index_digest.to_string());
        let found = stored::containerd(&containerd.dir);
        // Some versions also keep the index's other manifest, which is small and right; hashes were checked.
        let missing: Vec<_> = expected.difference(&found).collect();
        assert!(missing.is_empty(), "{round}: {missing:?} not in {found:#?}");
        if !by_ctr {
            let image = containerd
                .cri
                .image("registry.test/team/app:multi")
                .await
                .unwrap()
                .unwrap();
            assert_eq!(image.id, multi.amd64.config_digest.to_string());
        }
        match &warm {
            None => {
                // Whoever was shown the index's other manifest may have its layers converted, sooner or later.
                let http = reqwest::Client::builder().no_proxy().build().unwrap();
                for digest in images::blobs(&multi.arm64) {
                    let url = format!("{}/v2/team/app/blobs/{digest}?ns=registry.test", proxy.url());
                    let body = http.get(url).send().await.unwrap().error_for_status().unwrap();
                    body.bytes().await.unwrap();
                }
                warm = Some(upstream.traffic());
            }
            Some(warm) => crate::skopeo::assert_warm(&bench, &upstream, warm),
        }
    }
}

#[test]
fn containerd_1_6_pulls_by_default_and_named_hosts_with_ctr_and_cri() {
    with_bench(|bench| pulls_everything(bench, Release::Machine));
}

#[test]
fn containerd_2_1_pulls_by_default_and_named_hosts_with_ctr_and_cri() {
    with_bench(|bench| async move {
        let forky = bench.forky().await;
        pulls_everything(bench, Release::Forky { forky, part_bytes: 0 }).await;
    });
}

fn parts(calls: &[Call]) -> usize {
    calls.iter().filter(|c| c.range.is_some()).count()
}

/// 2.1 asks for a large layer in parts at once: `bytes=0-` must get 206, later ones are open-ended and hang up early.
/// The upstream pays for each byte once all the same. `all` is what the node has then.
async fn fetches_in_parts(bench: Bench, origin: Origin, image: SyntheticImage, all: BTreeSet<String>) {
    let forky = bench.forky().await;
    let release = Release::Forky {
        forky,
        part_bytes: PART_BYTES,
    };
    let proxy = bench.proxy("proxy", &[("registry.test", &origin.url())], "").await;
    let large = image.layers[0].digest;

    // That this configuration means parts shows without us in between.
    hosts(&bench, "direct", "_default", &[&origin.url()]);
    let direct = start(&bench, "node-direct", release.clone(), "direct").await;
    direct.cri.pull("registry.test/team/app:v1").await.unwrap();
    let asked = parts(&origin.gets(&large));
    assert!(
        asked >= 4,
        "the layer was asked for in {asked} parts: {:#?}",
        origin.gets(&large)
    );
    drop(direct);

    hosts(&bench, "proxied", "_default", &[&proxy.url()]);
    for round in ["cold", "warm"] {
        origin.clear_calls();
        let containerd = start(&bench, &format!("node-{round}"), release.clone(), "proxied").await;
        containerd.cri.pull("registry.test/team/app:v1").await.unwrap();
        let found = stored::containerd(&containerd.dir);
        assert!(all.is_subset(&found), "{round}: {found:#?}");
        let sent = origin.bytes_sent(&large) as f64 / image.layers[0].blob.len() as f64;
        let wanted = if round == "cold" { 1.0..=1.05 } else { 0.0..=0.0 };
        assert!(
            wanted.contains(&sent),
            "{round}: {sent} of the layer's bytes left the upstream"
        );
        drop(containerd);
    }
}

#[test]
fn containerd_2_1_fetches_in_parallel_parts_and_the_upstream_pays_once() {
    with_bench(|bench| async move {
        let image = images::image(1400, &[16 << 20, 200_000]);
        let origin = Origin::with_image("team/app", "v1", &image);
        let all = contents(&image);
        fetches_in_parts(bench, origin, image, all).await;
    });
}

#[test]
fn containerd_2_1_fetches_one_platform_of_an_index_in_parallel_parts() {
    with_bench(|bench| async move {
        let multi = MultiArch::of(1500, &[16 << 20, 200_000]);
        let origin = Origin::with_image("team/app", "arm64", &multi.arm64);
        multi.amd64.push(&origin, "team/app", "amd64");
        origin.add_manifest("team/app", Some("v1"), OCI_INDEX, multi.index.clone());
        let mut all = contents(&multi.amd64);
        all.insert(multi.index_digest.to_string());
        fetches_in_parts(bench, origin, multi.amd64, all).await;
    });
}
