//! Clients of containerd itself: pulls with unpacking, by the client and by the transfer service; two namespaces, several
//! pulls at once, and removals in whatever order.

use std::os::unix::fs::PermissionsExt as _;

use headstart_loadtest::playground::containerd::Release;

use crate::support::{Bench, Node, ONE, OTHER, Runnable, sum_script, sums, with_bench};

/// The pull of two images in two namespaces at once, each twice; then containers; then one namespace goes before the other.
/// `lazy`: this way of pulling asks for each layer before it fetches it. `ctr` by itself fetches everything first.
async fn two_namespaces(node: &Node, images: &[Runnable; 2], by: &[&str], lazy: bool) {
    let empty = node.mounts();
    let [a, b] = images;
    let pull = |namespace, image: &Runnable| {
        let reference = image.reference.clone();
        async move { node.pull(namespace, &reference, by).await }
    };
    let pulls = tokio::join!(pull(ONE, a), pull(ONE, a), pull(ONE, b), pull(OTHER, a), pull(OTHER, a));
    for done in [pulls.0, pulls.1, pulls.2, pulls.3, pulls.4] {
        done.unwrap();
    }
    for (namespace, image) in [(ONE, a), (ONE, b), (OTHER, a)] {
        if lazy {
            node.assert_lazy(namespace, image).await;
        }
        let id = format!("{namespace}-{}", image.reference.len());
        let output = node
            .run(namespace, &image.reference, &id, &[], &sum_script(image))
            .await;
        assert_eq!(output.unwrap(), sums(image), "{namespace}");
    }
    // The other namespace goes on without the first.
    for image in [a, b] {
        node.ctr(ONE, &["images", "rm", "--sync", &image.reference])
            .await
            .unwrap();
    }
    let output = node.run(OTHER, &a.reference, "still", &[], &sum_script(a)).await;
    assert_eq!(output.unwrap(), sums(a));
    node.ctr(OTHER, &["images", "rm", "--sync", &a.reference])
        .await
        .unwrap();
    node.until_empty(empty).await;
}

/// `shared`: the first layers of both images are the same.
async fn images(bench: &Bench) -> [Runnable; 2] {
    [
        bench.image("team/first", 3).await,
        bench.image("team/the-second", 4).await,
    ]
}

#[test]
fn client_pulls_of_1_6_unpack_into_ordinary_snapshots() {
    with_bench(|bench| async move {
        let images = images(&bench).await;
        let node = bench.node("node", Release::Machine, true, "").await;
        two_namespaces(&node, &images, &[], false).await;
    });
}

#[test]
fn client_pulls_and_the_transfer_service_of_2_1_start_lazily_on_runc_and_crun() {
    with_bench(|bench| async move {
        let images = images(&bench).await;
        let node = bench.node("node", bench.forky(), true, "").await;
        two_namespaces(&node, &images, &["--local"], false).await;
        two_namespaces(&node, &images, &[], true).await;

        // The transfer service asks before it fetches: no layer comes whole.
        let image = &images[1];
        node.pull(ONE, &image.reference, &[]).await.unwrap();
        assert_eq!(node.fetched(ONE, image).await, []);
        // It refuses machines that have both versions of control groups; containerd's mount namespace is its own.
        let script = "#!/bin/sh\numount -l /sys/fs/cgroup/unified 2>/dev/null\n\
                      exec /usr/bin/crun --cgroup-manager=disabled \"$@\"\n";
        let wrapper = bench.work.write("crun", script).unwrap();
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let crun = ["--runc-binary", wrapper.to_str().unwrap()];
        let output = node.run(ONE, &image.reference, "crun", &crun, &sum_script(image)).await;
        assert_eq!(output.unwrap(), sums(image));
    });
}

#[test]
fn views_commits_and_usage_through_containerd_are_those_of_its_own_snapshotter() {
    with_bench(|bench| async move {
        let image = bench.image("team/app", 3).await;
        let releases = [Release::Machine, bench.trixie().await, bench.forky()];
        for (name, release) in ["node-m", "node-t", "node-f"].into_iter().zip(releases) {
            let node = bench.node(name, release, true, "").await;
            let empty = node.mounts();
            node.pull(ONE, &image.reference, &[]).await.unwrap();
            let top = image.image.chain_ids().pop().unwrap().to_string();
            let snapshots = async |args: &[&str]| {
                let args = [&["snapshots", "--snapshotter", "headstart"], args].concat();
                node.ctr(ONE, &args).await
            };
            // 2.x does not keep a view from its collector by itself, which may come before the label.
            let mut tries = 0;
            loop {
                snapshots(&["view", "look", &top]).await.unwrap();
                let kept = snapshots(&["label", "look", "containerd.io/gc.root=here"]).await;
                match kept {
                    Ok(_) => break,
                    Err(error) if tries < 20 && error.contains("not found") => tries += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            let mounts = snapshots(&["mounts", "/nowhere", "look"]).await.unwrap();
            assert!(
                mounts.contains("-t overlay") && !mounts.contains("upperdir"),
                "{mounts}"
            );
            snapshots(&["prepare", "work", &top]).await.unwrap();
            // A snapshot that others stand on stays; the rest goes in any order.
            let refused = snapshots(&["remove", &top]).await.unwrap_err();
            assert!(refused.contains("child"), "{refused}");
            tries = 0;
            loop {
                let committed = snapshots(&["commit", "made", "work"]).await;
                let labels = ["label", "made", "some.label=here", "containerd.io/gc.root=here"];
                match committed.and(snapshots(&labels).await) {
                    Ok(_) => break,
                    Err(error) if tries < 20 && error.contains("not found") => tries += 1,
                    Err(error) => panic!("{error}"),
                }
                let _ = snapshots(&["prepare", "work", &top]).await;
            }
            let info = snapshots(&["info", "made"]).await.unwrap();
            assert!(
                info.contains("\"some.label\": \"here\"") && info.contains("Committed"),
                "{info}"
            );
            let usage = snapshots(&["usage", &top]).await.unwrap();
            let line = usage.lines().nth(1).unwrap_or_default();
            assert!(line.starts_with(&top) && !line.contains(" 0 "), "{usage}");
            snapshots(&["remove", "look"]).await.unwrap();
            snapshots(&["remove", "made"]).await.unwrap();
            node.ctr(ONE, &["images", "rm", "--sync", &image.reference])
                .await
                .unwrap();
            node.until_empty(empty).await;
        }
    });
}
