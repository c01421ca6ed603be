//! Images larger than the server's disk: the disk fills up under a pull, and the next pull finds it full.
//!
//! In: a small disk, an upstream, containerd 1.6 and 2.1 (also in parts), podman. Out: every client has its image, whole.
//! Invariant: the server is the only host that a client is told of, so that what a client has came through it.
//! Not here: one request at a time, wrong bytes, the disk that has space again (`server/tests/disk_full.rs`).

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use headstart_loadtest::{
    corpus::SyntheticImage,
    origin::Origin,
    playground::{
        containerd::{Containerd, Release, Snapshotter},
        proxy::Proxy,
    },
};

use crate::{
    containerd::hosts,
    podman::with_storage,
    skopeo::registries_conf,
    support::{
        Bench,
        images::{self, contents},
        stored, with_bench,
    },
};

/// Less than either image.
const DISK: &str = "size=16m";
const LAYERS: &[usize] = &[11 << 20, 9 << 20, 50_000];
const PART_BYTES: u64 = 2 << 20;

/// A disk mounted where a server is going to keep its data.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn below(bench: &Bench, server: &str) -> SmallDisk {
        let dir = bench.dir(&format!("{server}.data"));
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", DISK, "headstart-test"]).arg(&dir);
        assert!(mount.status().unwrap().success(), "a tmpfs can be mounted");
        SmallDisk(dir)
    }

    /// Takes every free byte for good.
    fn fill(&self) {
        let zeroes = std::fs::File::open("/dev/zero").unwrap();
        let filler = &mut std::fs::File::create(self.0.join("filler")).unwrap();
        let error = std::io::copy(&mut &zeroes, filler).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: of a test that failed, something may run.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

async fn passed_through(proxy: &Proxy) -> f64 {
    proxy.counters().await.unwrap().sum("headstart_pass_through_total", &[])
}

/// Pulls one image while the disk fills up and one when it is full; `pull` gets a name for it and what to pull.
async fn pulls_past_a_full_disk(
    bench: &Bench,
    client: &str,
    seed: u64,
    pull: impl AsyncFn(&str, &Proxy, &str, &SyntheticImage),
) {
    let disk = SmallDisk::below(bench, client);
    let [fills, finds] = [seed, seed + 1].map(|seed| images::image(seed, LAYERS));
    let origin = Origin::with_image("team/app", "fills", &fills);
    finds.push(&origin, "team/app", "finds");
    let proxy = bench.proxy(client, &[("registry.test", &origin.url())], "").await;
    pull(&format!("{client}-fills"), &proxy, "fills", &fills).await;
    let first = passed_through(&proxy).await;
    assert!(first >= 1.0, "{client}: the disk was too large for this test");
    disk.fill();
    pull(&format!("{client}-finds"), &proxy, "finds", &finds).await;
    let second = passed_through(&proxy).await;
    // Both layers that are larger than what the server still holds in memory.
    assert!(second >= first + 2.0, "{client}: {first}, then {second}");
}

fn assert_stored(dir: &Path, image: &SyntheticImage) {
    let found = stored::containerd(dir);
    let missing: Vec<_> = contents(image).difference(&found).cloned().collect();
    assert!(missing.is_empty(), "{missing:?} were never stored");
}

async fn containerd_pulls(bench: &Bench, client: &str, seed: u64, release: Release) {
    pulls_past_a_full_disk(bench, client, seed, async |name, proxy, tag, image| {
        hosts(bench, name, "registry.test", &[&proxy.url()]);
        let (node, hosts) = (format!("node-{name}"), bench.dir(name));
        let started = Containerd::start_release(&bench.work, &node, release.clone(), &Snapshotter::Overlayfs, &hosts);
        let containerd = started.await.unwrap();
        let reference = format!("registry.test/team/app:{tag}");
        let config = containerd.cri.pull(&reference).await.unwrap();
        assert_eq!(config, image.config_digest.to_string());
        assert_stored(&containerd.dir, image);
    })
    .await;
}

#[test]
fn containerd_has_images_that_the_servers_disk_has_no_room_for() {
    with_bench(|bench| async move {
        containerd_pulls(&bench, "old", 2100, Release::Machine).await;
        let forky = bench.forky().await;
        let whole = Release::Forky {
            forky: forky.clone(),
            part_bytes: 0,
        };
        containerd_pulls(&bench, "new", 2110, whole).await;
        let in_parts = Release::Forky {
            forky,
            part_bytes: PART_BYTES,
        };
        containerd_pulls(&bench, "parts", 2120, in_parts).await;
    });
}

#[test]
fn podman_has_images_that_the_servers_disk_has_no_room_for() {
    with_bench(|bench| async move {
        let forky = bench.forky().await;
        pulls_past_a_full_disk(&bench, "podman", 2200, async |name, proxy, tag, image| {
            let conf = registries_conf("registry.test", &proxy.address().to_string(), "unreachable.test");
            let conf = bench.work.write(format!("{name}.conf"), &conf).unwrap();
            let mut pull = with_storage(&bench, name, forky.command(&bench.work, "podman"));
            pull.env("CONTAINERS_REGISTRIES_CONF", conf);
            pull.args(["pull", "--quiet"])
                .arg(format!("docker://registry.test/team/app:{tag}"));
            bench.run(name, pull).await.unwrap();
            stored::assert_in_storage(&bench.dir(&format!("{name}.root")), image);
        })
        .await;
    });
}
