//! podman and buildah, which share a library and its mirrors: registries.conf with a path below the server's address.

use std::process::Command;

use headstart_loadtest::{corpus::SyntheticImage, playground::tools};

use crate::{
    skopeo::{assert_warm, registries_conf},
    support::{Bench, images, images::MultiArch, stored, upstream::Upstream, with_bench},
};

/// A podman or buildah with storage of its own in `NAME`, and no sign of the machine's.
pub fn with_storage(bench: &Bench, name: &str, mut tool: Command) -> Command {
    tool.arg("--root").arg(bench.dir(&format!("{name}.root")));
    tool.arg("--runroot").arg(bench.dir(&format!("{name}.run")));
    tool.args(["--storage-driver", "vfs"]);
    tool.env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1");
    tool.env("TMPDIR", bench.dir(&format!("{name}.tmp")));
    tool
}

/// One way to pull: name, tool, arguments before the reference.
struct Way<'a> {
    name: &'static str,
    tool: Box<dyn Fn() -> Command + 'a>,
    pull: &'static [&'static str],
}

#[test]
fn podman_and_buildah_pull_one_platform_of_each_kind_cold_and_warm() {
    with_bench(|bench| async move {
        let forky = bench.forky().await;
        let upstream = Upstream::start(&bench, "upstream").await;
        let (single, multi) = (images::image(300, &[500_000, 40_000]), MultiArch::new(400));
        upstream.push("team/app", "single", &single).await;
        upstream.push_multi("team/app", "multi", &multi).await;
        let ways = [
            Way {
                name: "podman",
                tool: Box::new(|| forky.command(&bench.work, "podman")),
                pull: &["pull", "--quiet"],
            },
            Way {
                name: "buildah12",
                tool: Box::new(|| Command::new(tools::find("buildah").unwrap())),
                pull: &["pull", "--quiet"],
            },
            Way {
                name: "buildah",
                tool: Box::new(|| forky.command(&bench.work, "buildah")),
                pull: &["from", "--quiet"],
            },
        ];
        for way in &ways {
            let proxy = bench.proxy(way.name, &[("registry.test", &upstream.url())], "").await;
            let conf = registries_conf("registry.test", &proxy.address().to_string(), "unreachable.test");
            let conf = bench.work.write(format!("{}.conf", way.name), &conf).unwrap();
            let pull = async |round: &str, tag: &str, more: &[&str], image: &SyntheticImage| {
                let name = format!("{}-{round}", way.name);
                let mut pull = with_storage(&bench, &name, (way.tool)());
                pull.env("CONTAINERS_REGISTRIES_CONF", &conf).args(way.pull).args(more);
                pull.arg(format!("docker://registry.test/team/app:{tag}"));
                bench.run(&name, pull).await.unwrap();
                stored::assert_in_storage(&bench.dir(&format!("{name}.root")), image);
            };
            pull("cold1", "single", &[], &single).await;
            pull("cold2", "multi", &[], &multi.amd64).await;
            pull("cold3", "multi", &["--arch", "arm64"], &multi.arm64).await;
            let warm = upstream.traffic();
            pull("warm1", "single", &[], &single).await;
            pull("warm2", "multi", &[], &multi.amd64).await;
            assert_warm(&bench, &upstream, &warm);
        }
    });
}
