//! Containers in user namespaces: the image's files belong to whom the image says, on idmapped mounts where containerd
//! makes them, and by containerd's own copy where it does not.

use headstart_loadtest::playground::containerd::Release;

use crate::support::{Bench, Runnable, with_bench};

const MAP: [&str; 4] = ["--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536"];

/// Owners inside, and that a file written there can be.
const SCRIPT: &str = "cat /proc/self/uid_map; stat -c '%n %u %g' / /bin/sh /srv/data-1; echo x > /mine && \
                      stat -c '%n %u %g' /mine; sha256sum /srv/data-1";

async fn runs(bench: &Bench, image: &Runnable, name: &str, release: Release, more: &[&str], presentation: &str) {
    let config = format!("[lazy]\npresentation = \"{presentation}\"\n");
    let node = bench.node(name, release, true, &config).await;
    node.containerd.cri.pull(&image.reference).await.unwrap();
    node.assert_lazy("k8s.io", image).await;
    let args = [&MAP, more].concat();
    let output = node
        .run("k8s.io", &image.reference, "userns", &args, SCRIPT)
        .await
        .unwrap();
    let lines: Vec<Vec<&str>> = output.lines().map(|l| l.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["0", "100000", "65536"], "{output}");
    let owners = [
        ["/", "0", "0"],
        ["/bin/sh", "0", "0"],
        ["/srv/data-1", "1000", "2000"],
        ["/mine", "0", "0"],
    ];
    for (line, wanted) in lines[1..].iter().zip(owners) {
        assert_eq!(*line, wanted, "{name}: {output}");
    }
    assert_eq!(lines[5][0], image.sums["/srv/data-1"].hex(), "{output}");
    // Without one, the same snapshots as ever.
    let output = node
        .run("k8s.io", &image.reference, "plain", &[], "stat -c %u:%g /srv/data-1")
        .await;
    assert_eq!(output.unwrap(), "1000:2000\n");
}

#[test]
fn containerd_2_1_mounts_layers_idmapped_under_both_presentations() {
    with_bench(|bench| async move {
        let image = bench.image("team/app", 3).await;
        for presentation in ["fuse", "erofs"] {
            let name = format!("node-{presentation}");
            runs(&bench, &image, &name, bench.forky(), &["--remap-labels"], presentation).await;
        }
    });
}

#[test]
fn containerd_1_6_copies_the_image_with_other_owners() {
    with_bench(|bench| async move {
        let image = bench.image("team/app", 3).await;
        runs(&bench, &image, "node", Release::Machine, &[], "fuse").await;
    });
}
