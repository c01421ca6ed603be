//! What the kubelet does: pull, sandbox, container, exec, removal; and what is left of it on disk.

use headstart_loadtest::playground::containerd::Release;

use crate::support::{Bench, Runnable, sum_script, sums, with_bench};

async fn whole_life(bench: &Bench, image: &Runnable, name: &str, release: Release, annotations: bool) {
    let node = bench.node(name, release, annotations, "").await;
    let empty = node.mounts();
    let cri = &node.containerd.cri;
    let id = cri.pull(&image.reference).await.unwrap();
    assert_eq!(id, image.image.config_digest.to_string());
    node.assert_lazy("k8s.io", image).await;
    assert_eq!(
        node.fetched("k8s.io", image).await,
        [],
        "layers that containerd fetched whole"
    );

    let logs = bench.work.dir(format!("{name}.logs")).unwrap();
    let pod = cri
        .run_pod("pod", &image.reference, &["/bin/sleep", "1000000"], &logs)
        .await;
    let pod = pod.unwrap_or_else(|e| panic!("failed to {e}"));
    let (output, code) = cri.exec(&pod, &["/bin/sh", "-c", &sum_script(image)]).await.unwrap();
    assert_eq!((output, code), (sums(image), 0));
    let write = "echo more >> /srv/data-1 && stat -c '%u %g %a' /srv/data-1";
    let (output, code) = cri.exec(&pod, &["/bin/sh", "-c", write]).await.unwrap();
    assert_eq!((output.as_str(), code), ("1000 2000 644\n", 0));

    // containerd asks each snapshot's usage now and then; what it says goes to the kubelet.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    loop {
        let (bytes, inodes) = cri.image_usage().await.unwrap();
        if bytes > 0 && inodes > 10 {
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "usage of images: {bytes} bytes, {inodes} inodes"
        );
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }

    let before = node.shim.disk_bytes();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(120);
    cri.remove_pod(&pod).await.unwrap();
    for image in cri.images().await.unwrap() {
        cri.remove(&image.id).await.unwrap();
    }
    node.until_empty(empty).await;
    // Layers are released after their snapshots.
    while node.shim.disk_bytes() > before / 4 {
        let left = node.shim.disk_bytes();
        assert!(
            std::time::Instant::now() < deadline,
            "{left} of {before} bytes are left"
        );
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(node.snapshots("k8s.io").await, [""; 0]);
}

#[test]
fn a_pod_lives_on_containerd_1_6_with_and_without_annotations() {
    with_bench(|bench| async move {
        bench.pause().await;
        let image = bench.image("team/app", 4).await;
        whole_life(&bench, &image, "node-a", Release::Machine, true).await;
        whole_life(&bench, &image, "node-c", Release::Machine, false).await;
    });
}

#[test]
fn a_pod_lives_on_containerd_1_7_with_and_without_annotations() {
    with_bench(|bench| async move {
        bench.pause().await;
        let image = bench.image("team/app", 4).await;
        whole_life(&bench, &image, "node-a", bench.trixie().await, true).await;
        whole_life(&bench, &image, "node-c", bench.trixie().await, false).await;
    });
}

#[test]
fn a_pod_lives_on_containerd_2_1_with_and_without_annotations() {
    with_bench(|bench| async move {
        bench.pause().await;
        let image = bench.image("team/app", 4).await;
        // With annotations CRI pulls by itself, without them the transfer service does.
        whole_life(&bench, &image, "node-a", bench.forky(), true).await;
        whole_life(&bench, &image, "node-t", bench.forky(), false).await;
    });
}
