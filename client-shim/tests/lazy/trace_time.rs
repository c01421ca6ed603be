//! What a trace says of time: milliseconds since the start began, not since its first read, and not since the layers came.

use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use headstart_shim::fetch::Servers;
use headstart_shim::profile::state::Telling;

use crate::support::node::patient_fetch;
use crate::support::starter::patient;
use crate::support::{FakeServer, Item, LayerBuilder, Node, noise};

#[test]
fn a_read_has_the_time_since_its_start_began() {
    const PAUSE: Duration = Duration::from_millis(300);
    const SIZE: usize = 1 << 16;
    let mut server = FakeServer::start();
    let layer = LayerBuilder::new()
        .add("a", Item::file(noise(SIZE, 1)))
        .add("b", Item::file(noise(SIZE, 2)))
        .build(SIZE);
    let manifest = BlobDigest::of(b"image");
    server.serve_image(manifest, std::slice::from_ref(&layer));
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let urls = [server.url()];
    let starts = node.starts(&urls, &patient());
    let servers = Servers::new(&urls, &patient_fetch()).unwrap();
    let status = node.block_on(servers.image(&manifest, 0)).unwrap().unwrap();
    starts.prepared(&status);
    let dir = node.show(&layer);
    // What goes on before the container is created is not its start.
    std::thread::sleep(PAUSE * 2);
    let begun = Instant::now();
    starts.container("c", &manifest, &[layer.digest]);
    for (file, seed) in [("b", 2), ("a", 1)] {
        std::thread::sleep(PAUSE);
        assert!(std::fs::read(dir.join(file)).unwrap() == noise(SIZE, seed));
    }
    let took = begun.elapsed();
    starts.over("c");
    let deadline = Instant::now() + Duration::from_secs(60);
    while starts.status()[0].trace != Telling::Posted {
        assert!(Instant::now() < deadline, "{:?}", starts.status());
        std::thread::sleep(Duration::from_millis(10));
    }
    let [trace] = &server.traces()[..] else {
        panic!("{:?}", server.traces())
    };
    let ms = |file: &str| {
        let mut reads = trace.reads.iter().filter(|r| r.file.as_deref() == Some(file));
        let read = reads.next().unwrap_or_else(|| panic!("{file} in {trace:?}"));
        Duration::from_millis(read.ms.into())
    };
    let (first, second) = (ms("b"), ms("a"));
    // A clock of whole milliseconds loses up to one.
    let pause = PAUSE - Duration::from_millis(1);
    assert!(first >= pause && second >= first + pause, "{first:?} {second:?}");
    assert!(second <= took, "{second:?} of {took:?}");
    drop(node);
    server.down();
}
