//! What one node's start needed is on the next node before its container asks for it.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use headstart_loadtest::playground::{
    container::Container,
    lab::{Lab, RelayedProxy},
    node::{Node, Pulls},
    recipe,
};
use serde_json::Value;

use crate::support::{declines, warm_proxy, with_lab};

/// Containers print it of what they read.
const SUMS: &str = "find /usr/lib/python3* /app -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum";

/// What the node's shim answers on its admin socket.
fn ask(node: &Node, path: &str) -> String {
    let socket = &node.shim.as_ref().unwrap().socket;
    let stem = socket.file_stem().unwrap().to_string_lossy();
    let mut stream = UnixStream::connect(socket.with_file_name(format!("{stem}-admin.sock"))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: shim\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// The sum of the samples that begin so.
fn metric(node: &Node, series: &str) -> u64 {
    let text = ask(node, "/metrics");
    let samples = text.lines().filter(|line| line.starts_with(series));
    let values: Vec<f64> = samples
        .map(|l| l.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(!values.is_empty(), "no {series} in\n{text}");
    values.iter().sum::<f64>() as u64
}

async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        match look().await {
            Ok(found) => return found,
            Err(now) => assert!(Instant::now() < deadline, "never {what}: {now}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Pulls, and has everything come that is to come before a start.
async fn pulled(lab: &Lab, name: &str, proxy: &RelayedProxy) -> (Node, Value) {
    let node = lab.node(name, Pulls::Lazy, Some(proxy)).await.unwrap();
    node.pull().await.unwrap();
    let prefetch = until("over", async || {
        let status: Value = serde_json::from_str(&ask(&node, "/status")).unwrap();
        let prefetch = status["prefetches"][0].clone();
        match prefetch["progress"].as_str() {
            Some("done" | "no_profile") => Ok(prefetch),
            _ => Err(prefetch.to_string()),
        }
    });
    let prefetch = prefetch.await;
    (node, prefetch)
}

async fn started(node: &Node) {
    let output = Container::start(node, "app", recipe::COMMAND).unwrap().output().await;
    assert!(output.unwrap().contains(recipe::READY));
}

async fn sums(node: &Node) -> String {
    let output = Container::start(node, "sums", &["sh", "-c", SUMS]).unwrap().output();
    output.await.unwrap()
}

#[test]
fn the_second_node_has_what_the_first_one_needed() {
    with_lab(|turn| async move {
        let lab = &turn.lab;
        let proxy = warm_proxy(lab).await;

        let (first, prefetch) = pulled(lab, "node-1", &proxy).await;
        assert_eq!(prefetch["progress"], "no_profile");
        started(&first).await;
        let first_misses = metric(&first, "headstart_shim_reads_total{outcome=\"fetched\"}");
        let first_bytes = metric(&first, "headstart_shim_fetched_bytes_total");
        // A machine so slow that its server seems far: what lies near each read came with it.
        let has_explored = metric(&first, "headstart_shim_explored_bytes_total") > 0;
        assert!(has_explored || first_misses > 20);
        assert_eq!(metric(&first, "headstart_shim_prefetch_bytes_total"), 0);
        // The container is gone, and with it its start.
        let profile = until("learnt", async || {
            let status = proxy.proxy.image(&lab.image.manifest, 0).await.unwrap().unwrap();
            status.profile.ok_or_else(|| ask(&first, "/status"))
        });
        let profile = profile.await;
        assert_eq!(profile.starts, 1);

        let (second, prefetch) = pulled(lab, "node-2", &proxy).await;
        assert_eq!(prefetch["progress"], "done", "{prefetch}");
        // All of the profile is here now, and nobody has read anything yet; so what is missed from here on is not in it.
        let here = prefetch["received_chunks"].as_u64().unwrap() + prefetch["near_chunks"].as_u64().unwrap();
        assert_eq!(
            (here, prefetch["late_bytes"].as_u64()),
            (u64::from(profile.chunk_count), Some(0)),
            "{prefetch}"
        );
        started(&second).await;
        let misses = metric(&second, "headstart_shim_reads_total{outcome=\"fetched\"}");
        let ahead = metric(&second, "headstart_shim_prefetch_bytes_total");
        let demanded = metric(&second, "headstart_shim_fetched_bytes_total") - ahead;
        assert!(ahead > 0 && ahead <= first_bytes, "{ahead} of {first_bytes}");
        // How far the kernel reads ahead differs a little from start to start.
        assert!(
            has_explored || misses * 5 <= first_misses,
            "{misses} misses, and {first_misses} on the first node"
        );
        assert!(
            demanded * 5 <= ahead,
            "{demanded} bytes were waited for, {ahead} came before"
        );

        // From another's profile or by its own reads: the same bytes.
        assert_eq!(sums(&first).await, sums(&second).await);
        for node in [&first, &second] {
            assert_eq!(declines(node), Vec::<String>::new());
        }
    });
}
