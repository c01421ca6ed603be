//! Many images come and go: what a node has of mounts, descriptors, memory and disk afterwards is what it had before.

use std::time::{Duration, Instant};

use headstart_loadtest::playground::containerd::Release;

use crate::support::{Node, Runnable, sum_script, sums, with_bench};

/// `IMAGESxLAYERSxROUNDS`. The campaign's is 50x10x3; CI has the short form.
const COUNT: &str = "HEADSTART_LOOP";
const SHORT: &str = "4x4x3";

/// What must not grow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Footprint {
    mounts: usize,
    descriptors: usize,
    disk_kib: u64,
}

fn footprint(node: &Node) -> Footprint {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", node.shim.process.pid()));
    Footprint {
        mounts: node.mounts(),
        descriptors: fds.map_or(0, Iterator::count),
        disk_kib: node.shim.disk_bytes() / 1024,
    }
}

fn rss_kib(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.shim.process.pid())).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Pulls all, starts each, removes all.
async fn round(node: &Node, images: &[Runnable], number: usize) {
    for image in images {
        node.containerd.cri.pull(&image.reference).await.unwrap();
    }
    for (i, image) in images.iter().enumerate() {
        let id = format!("c-{number}-{i}");
        let output = node.run("k8s.io", &image.reference, &id, &[], &sum_script(image)).await;
        assert_eq!(output.unwrap(), sums(image));
    }
    for image in images {
        node.containerd.cri.remove(&image.reference).await.unwrap();
    }
}

#[test]
fn images_that_come_and_go_leave_nothing() {
    let count = std::env::var(COUNT).unwrap_or_else(|_| SHORT.into());
    let numbers: Vec<usize> = count.split('x').filter_map(|n| n.parse().ok()).collect();
    let [how_many, layers, rounds] = numbers[..] else {
        panic!("{COUNT} is IMAGESxLAYERSxROUNDS, not {count}");
    };
    assert!(
        how_many > 0 && layers > 1 && rounds > 1,
        "{COUNT}={count} shows nothing"
    );
    let count = &count;
    for presentation in ["fuse", "erofs"] {
        with_bench(|bench| async move {
            let mut images = Vec::new();
            for i in 0..how_many {
                images.push(bench.image(&format!("team/app-{i}"), layers).await);
            }
            let config = format!("[lazy]\npresentation = \"{presentation}\"\n");
            let node = bench.node("node", Release::Machine, true, &config).await;
            let empty = node.mounts();
            // The first round fills pools and opens what stays open; what later rounds leave is a leak.
            let mut after_first = None;
            let mut rss = Vec::new();
            for number in 0..rounds {
                round(&node, &images, number).await;
                node.until_empty(empty).await;
                rss.push(rss_kib(&node));
                match after_first {
                    None => after_first = Some(footprint(&node)),
                    Some(first) => settles(&node, first, number).await,
                }
            }
            assert_eq!(node.declines(), [""; 0]);
            eprintln!("{presentation}: {count}: {after_first:?}, RSS after each round {rss:?} KiB");
        });
    }
}

/// Descriptors of connections that idle go after a while; nothing else differs.
async fn settles(node: &Node, first: Footprint, number: usize) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let now = footprint(node);
        let fits = now.mounts == first.mounts
            && now.descriptors <= first.descriptors + 4
            && now.disk_kib <= first.disk_kib + 64;
        if fits {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "after round {number} {now:?}, after the first {first:?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
