//! skopeo, of Debian 12 and of forky: by path, and as a mirror of registries.conf; one platform and all.

use std::{collections::BTreeSet, process::Command};

use headstart_loadtest::playground::tools;

use crate::support::{
    Bench, images,
    images::{MultiArch, contents},
    stored,
    upstream::Upstream,
    with_bench,
};

/// Makes a fresh skopeo command.
type Tool<'a> = Box<dyn Fn() -> Command + 'a>;

/// A mirror by path, as podman, skopeo and CRI-O have it. The registry itself cannot be reached.
pub fn registries_conf(registry: &str, mirror: &str, then: &str) -> String {
    format!(
        "unqualified-search-registries = []\n[[registry]]\nprefix = \"{registry}\"\nlocation = \"{then}\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{mirror}/{registry}\"\ninsecure = true\n"
    )
}

#[test]
fn skopeo_copies_one_platform_and_all_cold_and_warm() {
    with_bench(|bench| async move {
        let forky = bench.forky().await;
        let upstream = Upstream::start(&bench, "upstream").await;
        let policy = bench
            .work
            .write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)
            .unwrap();
        let (single, multi) = (images::image(100, &[500_000, 40_000]), MultiArch::new(200));
        upstream.push("team/app", "single", &single).await;
        upstream.push_multi("team/app", "multi", &multi).await;
        let of_amd64 = contents(&multi.amd64);

        let releases: [(&str, Tool<'_>); 2] = [
            ("debian12", Box::new(|| Command::new(tools::find("skopeo").unwrap()))),
            ("forky", Box::new(|| forky.command(&bench.work, "skopeo"))),
        ];
        for (release, skopeo) in &releases {
            let proxy = bench.proxy(release, &[("registry.test", &upstream.url())], "").await;
            let address = proxy.address();
            let conf = registries_conf("registry.test", &address.to_string(), "unreachable.test");
            let conf = bench.work.write(format!("{release}.conf"), &conf).unwrap();
            let copy = async |to: &str, from: &str, all: bool| -> BTreeSet<String> {
                let dir = bench.work.path().join(format!("{release}-{to}"));
                let mut copy = skopeo();
                copy.arg("--registries-conf").arg(&conf).arg("--policy").arg(&policy);
                copy.args(["copy", "--quiet", "--src-tls-verify=false"]);
                copy.args(all.then_some("--all"));
                copy.arg(format!("docker://{from}"))
                    .arg(format!("dir:{}", dir.display()));
                bench.run(&format!("{release}-{to}"), copy).await.unwrap();
                stored::skopeo_dir(&dir)
            };
            let by_path = format!("{address}/registry.test/team/app");
            let image_bytes = single.layers_size() + multi.amd64.layers_size() + multi.arm64.layers_size();
            let cold = upstream.traffic();
            assert_eq!(
                copy("single", &format!("{by_path}:single"), false).await,
                contents(&single)
            );
            assert_eq!(copy("amd64", &format!("{by_path}:multi"), false).await, of_amd64);
            assert_eq!(copy("all", "registry.test/team/app:multi", true).await, multi.all());
            let warm = upstream.traffic();
            let fetched = warm.since(&cold).down_bytes;
            assert!(
                fetched < image_bytes + image_bytes / 20,
                "{fetched} bytes from upstream for {image_bytes}"
            );

            assert_eq!(
                copy("warm", &format!("{by_path}:single"), false).await,
                contents(&single)
            );
            assert_eq!(
                copy("warm-all", "registry.test/team/app:multi", true).await,
                multi.all()
            );
            assert_warm(&bench, &upstream, &warm);
        }
    });
}

/// Since `warm` the upstream was asked for tags, and sent no content.
pub fn assert_warm(_: &Bench, upstream: &Upstream, warm: &headstart_loadtest::relay::Traffic) {
    let sent = upstream.traffic().since(warm).down_bytes;
    assert!(sent < 10_000, "{sent} bytes from the upstream for a warm pull");
}
