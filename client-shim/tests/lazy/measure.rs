//! Numbers, not a test: `cargo test -p headstart-shim --test lazy measure -- --ignored --nocapture`.
//!
//! A 64 MiB file in 512 KiB chunks and 300 small files, through the mount, from a server on this machine; beside them the
//! same bytes by plain HTTP and from a local file. Nothing here depends on how fast it goes.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use headstart_layer_format::routes;

use crate::support::{FakeServer, Item, LayerBuilder, Node, noise};

const SIZE: usize = 64 << 20;
const SMALL: usize = 300;

fn read_all(path: &Path) -> (Vec<u8>, Duration) {
    let started = Instant::now();
    let mut file = File::open(path).unwrap();
    let mut out = vec![0; SIZE];
    for part in out.chunks_mut(1 << 20) {
        file.read_exact(part).unwrap();
    }
    (out, started.elapsed())
}

fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

fn rate(what: &str, time: Duration) {
    println!("{what:<44} {:>8.0} MB/s", SIZE as f64 / 1e6 / time.as_secs_f64());
}

fn quantiles(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |q: f64| times[(times.len() as f64 * q) as usize].as_micros();
    println!("{what:<44} p50 {:>6} us   p99 {:>6} us", at(0.5), at(0.99));
}

#[test]
#[ignore = "prints figures"]
fn cold_and_warm_reads() {
    // Half noise, half zeros in every 4 KiB: compresses 2:1, as binaries do.
    let mut bytes = noise(SIZE, 1);
    bytes.chunks_mut(4096).for_each(|page| page[2048..].fill(0));
    let mut builder = LayerBuilder::new().add("big", Item::file(bytes.clone()));
    for i in 0..SMALL {
        builder = builder.add(format!("small/{i:04}"), Item::file(noise(20_000, i as u64)));
    }
    let layer = builder.build(512 << 10);
    let server = FakeServer::start();
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);

    let path = dir.join("big");
    let (got, cold) = read_all(&path);
    assert!(got == bytes);
    rate("mount, cold (fetch, inflate, verify, store)", cold);
    println!("  {} requests for chunks", server.chunk_requests());
    forget(&path);
    let (_, cached) = read_all(&path);
    rate("mount, chunks here, kernel cache empty", cached);
    let (_, warm) = read_all(&path);
    rate("mount, kernel cache full", warm);
    let local = root.path().join("local");
    fs::write(&local, &bytes).unwrap();
    let (_, direct) = read_all(&local);
    rate("local file, kernel cache full", direct);
    let url = format!("{}{}", server.url(), routes::layer_data(&layer.digest));
    let whole = format!(
        "bytes=0-{}",
        layer.toc.chunks().frames(0..SIZE as u32 / (512 << 10)).len - 1
    );
    let http = node.block_on(async {
        let started = Instant::now();
        let response = reqwest::Client::new()
            .get(&url)
            .header("range", &whole)
            .send()
            .await
            .unwrap();
        response.bytes().await.unwrap();
        started.elapsed()
    });
    rate("plain HTTP of the frames (rate of raw bytes)", http);

    let mut first = Vec::new();
    let mut again = Vec::new();
    for i in 0..SMALL {
        let path = dir.join(format!("small/{i:04}"));
        let started = Instant::now();
        assert_eq!(fs::read(&path).unwrap().len(), 20_000);
        first.push(started.elapsed());
        forget(&path);
        let started = Instant::now();
        assert_eq!(fs::read(&path).unwrap().len(), 20_000);
        again.push(started.elapsed());
    }
    quantiles("small file, first read (25 share a chunk)", first);
    quantiles("small file, chunk here", again);
    let range = format!("bytes=0-{}", layer.toc.chunks().frames(0..1).len - 1);
    let round_trips = node.block_on(async {
        let client = reqwest::Client::new();
        let mut times = Vec::new();
        for _ in 0..200 {
            let started = Instant::now();
            let response = client.get(&url).header("range", &range).send().await.unwrap();
            response.bytes().await.unwrap();
            times.push(started.elapsed());
        }
        times
    });
    quantiles("plain HTTP of one chunk's frame", round_trips);
    println!("{:#?}", node.counters());
}
