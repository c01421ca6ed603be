//! Pods in user namespaces, as the kubelet makes them for `hostUsers: false`: sandbox and container have their layers on idmapped
//! mounts, nothing is copied, and all of it goes with the pod.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use headstart_loadtest::{
    corpus::{Compression, Dialect, LayerBuilder, Meta, SyntheticLayer},
    cri::pods::Users,
    playground::mounts,
};

use crate::support::{Bench, Runnable, programs, sum_script, sums, with_bench};

const USERS: Users = Users {
    uid: 100_000,
    gid: 200_000,
    length: 65_536,
};
/// `cap_dac_override=ep`, as the version of attributes that image builders write.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// Of files that a container writes, and of what overlayfs needs: far less than the image has.
const WRITTEN_BYTES_MAX: u64 = 256 << 10;

/// Programs that are run as somebody, or may do something.
fn powers() -> SyntheticLayer {
    let read = |path: &str| std::fs::read(path).unwrap();
    let (id, cat) = (read("/usr/bin/id"), read("/bin/cat"));
    let mut b = LayerBuilder::new(Dialect::Pax);
    programs(&mut b, &["/usr/bin/setpriv"]);
    b.dir("srv", Meta::mode(0o755));
    b.file("srv/as-user", Meta::mode(0o4755).owner(1000, 2000), id.clone());
    b.file("srv/as-group", Meta::mode(0o2755).owner(1000, 2000), id.clone());
    b.file("srv/as-root", Meta::mode(0o4755), id);
    b.file("srv/plain", Meta::mode(0o755), cat.clone());
    let may = Meta::mode(0o755).xattr("security.capability", CAPABILITY);
    b.file("srv/capable", may, cat);
    b.file("srv/secret", Meta::mode(0o600), "secret\n");
    b.finish(Compression::Gzip)
}

/// Network plugins that say what a network plugin says, and do nothing.
fn network(bench: &Bench, node: &str) {
    const PLUGIN: &str = r#"#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"'"$CNI_IFNAME"'","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"192.0.2.7/24","interface":0}]}' ;;
esac
"#;
    bench.work.dir(format!("{node}/cni")).unwrap();
    for name in ["loopback", "nothing"] {
        let path = bench.work.write(format!("{node}/cni/{name}"), PLUGIN).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let list = r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"nothing"}]}"#;
    bench.work.write(format!("{node}/cni/1.conflist"), list).unwrap();
}

/// What snapshots have on disk of their own, mounts not entered.
fn written(dir: &Path) -> u64 {
    let device = std::fs::symlink_metadata(dir).unwrap().dev();
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let Ok(meta) = std::fs::symlink_metadata(entry.path()) else {
            continue;
        };
        if meta.is_dir() && meta.dev() == device {
            bytes += written(&entry.path());
        } else if meta.dev() == device {
            bytes += meta.blocks() * 512;
        }
    }
    bytes
}

/// Owners on the node of every file of that name among the snapshots' own.
fn owners(dir: &Path, name: &str) -> Vec<(u32, u32)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let Ok(meta) = std::fs::symlink_metadata(entry.path().join("fs").join(name)) else {
            continue;
        };
        out.push((meta.uid(), meta.gid()));
    }
    out
}

async fn life(bench: &Bench, image: &Runnable, presentation: &str) {
    let name = format!("node-{presentation}");
    network(bench, &name);
    let config = format!("[lazy]\npresentation = \"{presentation}\"\n");
    let node = bench.node(&name, bench.forky(), true, &config).await;
    let empty = node.mounts();
    let cri = &node.containerd.cri;
    cri.pull(&image.reference).await.unwrap();
    node.assert_lazy("k8s.io", image).await;

    let logs = bench.work.dir(format!("{name}.logs")).unwrap();
    let sleep = ["/bin/sleep", "1000000"];
    let pod = cri
        .run_pod_as("pod", &image.reference, &sleep, &logs, Some(USERS))
        .await
        .unwrap_or_else(|e| panic!("failed to {e}"));
    let sh = async |script: &str| {
        let (output, code) = cri.exec(&pod, &["/bin/sh", "-c", script]).await.unwrap();
        assert_eq!(code, 0, "{presentation}: {script}: {output}");
        output
    };

    let maps = sh("cat /proc/self/uid_map /proc/self/gid_map").await;
    let maps: Vec<&str> = maps.split_whitespace().collect();
    assert_eq!(maps, ["0", "100000", "65536", "0", "200000", "65536"]);
    let owned = "stat -c '%n %u %g %a' / /bin/sh /srv/data-1 /srv/as-user /srv/secret";
    let wanted =
        "/ 0 0 755\n/bin/sh 0 0 755\n/srv/data-1 1000 2000 644\n/srv/as-user 1000 2000 4755\n/srv/secret 0 0 600\n";
    assert_eq!(sh(owned).await, wanted, "{presentation}");
    assert_eq!(sh(&sum_script(image)).await, sums(image), "{presentation}");

    // Who a program is run as, and what it may do.
    assert_eq!(sh("/srv/as-user -u; /srv/as-group -g").await, "1000\n2000\n");
    let nobody = "setpriv --reuid 1234 --regid 1234 --clear-groups";
    assert_eq!(sh(&format!("{nobody} /srv/as-root -u")).await, "0\n");
    assert_eq!(sh(&format!("{nobody} /srv/capable /srv/secret")).await, "secret\n");
    let (output, code) = cri
        .exec(&pod, &["/bin/sh", "-c", &format!("{nobody} /srv/plain /srv/secret")])
        .await
        .unwrap();
    assert!(code != 0 && output.contains("Permission denied"), "{output}");

    // What is written there belongs outside to whom the mapping says; also what is copied up from a layer.
    let write = "echo more >> /srv/data-1 && echo new > /mine && stat -c '%u %g' /srv/data-1 /mine";
    assert_eq!(sh(write).await, "1000 2000\n0 0\n");
    let snapshots = node.shim.root.join("snapshots");
    assert_eq!(owners(&snapshots, "mine"), [(100_000, 200_000)], "{presentation}");
    assert_eq!(owners(&snapshots, "srv/data-1"), [(101_000, 202_000)], "{presentation}");

    // Idmapped mounts of the sandbox's one layer and of all of the image's, and no copies: every layer is lazy still.
    let layers = image.image.layers.len();
    let mapped = mounts::below(&node.shim.root.join("ids")).len();
    assert_eq!(mapped, layers + 1, "{presentation}");
    let bytes = written(&snapshots);
    assert!(bytes < WRITTEN_BYTES_MAX, "{presentation}: {bytes} bytes of snapshots");
    node.assert_lazy("k8s.io", image).await;
    assert_eq!(node.fetched("k8s.io", image).await, [], "{presentation}");

    // A pod of the node's users beside it has the same snapshots, with the image's owners.
    let other = cri.run_pod("other", &image.reference, &sleep, &logs).await.unwrap();
    let of_other = cri.exec(&other, &["/usr/bin/stat", "-c", "%u %g", "/srv/data-1"]).await;
    assert_eq!(of_other.unwrap().0, "1000 2000\n");

    cri.remove_pod(&pod).await.unwrap();
    // The snapshots go with containerd's next collection, and their mounts with them.
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let mapped = mounts::below(&node.shim.root.join("ids"));
        if mapped.is_empty() {
            break;
        }
        let left = format!("{presentation}: {mapped:?} is left of the pod");
        assert!(Instant::now() < deadline, "{left}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    cri.remove_pod(&other).await.unwrap();
    for image in cri.images().await.unwrap() {
        cri.remove(&image.id).await.unwrap();
    }
    node.until_empty(empty).await;
    assert_eq!(node.snapshots("k8s.io").await, [""; 0]);
}

#[test]
fn a_pod_with_users_of_its_own_has_idmapped_layers_under_both_presentations() {
    with_bench(|bench| async move {
        bench.pause().await;
        let image = bench.image_with("team/app", 3, Some(powers())).await;
        for presentation in ["erofs", "fuse"] {
            life(&bench, &image, presentation).await;
        }
    });
}
