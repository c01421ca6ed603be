//! Starts of which nothing is known: what lies near their reads comes too, bounded, and only while it is of use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use headstart_shim::fetch::Servers;
use headstart_shim::profile::state::Progress;
use headstart_shim::profile::{PrefetchConfig, Starts};

use crate::support::node::{lazy_config, patient_fetch};
use crate::support::{FakeServer, Item, LayerBuilder, Node, Script, TestLayer, noise};

/// A chunk a file. From a server beside it a node takes regions of 256 KiB: four of these.
const CHUNK: usize = 64 << 10;
const REGION: u32 = 4;

fn manifest() -> BlobDigest {
    BlobDigest::of(b"manifest")
}

fn layer(files: usize, seed: u64) -> Arc<TestLayer> {
    let add = |builder: LayerBuilder, i| builder.add(format!("{i:03}"), Item::file(noise(CHUNK, seed + i as u64)));
    (0..files).fold(LayerBuilder::new(), add).build(CHUNK)
}

/// However near the server is.
fn exploring() -> PrefetchConfig {
    PrefetchConfig {
        explore_rtt_us_min: 0,
        // No test waits for the end of a start, on however slow a machine.
        trace_quiet_ms: 60_000,
        time_max_ms: 600_000,
        ..PrefetchConfig::default()
    }
}

struct Lab {
    node: Node,
    starts: Starts,
    layers: Vec<Arc<TestLayer>>,
    _root: tempfile::TempDir,
}

impl Lab {
    /// The image is prepared; nothing was read.
    fn of(server: &FakeServer, layers: &[Arc<TestLayer>], config: &PrefetchConfig) -> Self {
        server.serve_image(manifest(), layers);
        let root = tempfile::tempdir().unwrap();
        let urls = [server.url()];
        let node = Node::open_with(root.path(), &urls, lazy_config()).unwrap();
        let starts = node.starts(&urls, config);
        let servers = Servers::new(&urls, &patient_fetch()).unwrap();
        let status = node.block_on(servers.image(&manifest(), 0)).unwrap().unwrap();
        for layer in layers {
            node.present(&layer.digest).unwrap();
        }
        starts.prepared(&status);
        let lab = Self {
            node,
            starts,
            layers: layers.to_vec(),
            _root: root,
        };
        let digests: Vec<_> = layers.iter().map(|l| l.digest).collect();
        lab.until("the prefetch ends", || {
            let now = lab.starts.status()[0].progress;
            matches!(now, Progress::NoProfile | Progress::Done)
        });
        lab.starts.container("container", &manifest(), &digests);
        lab
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < deadline, "{what}: {} chunks", self.present(0));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn present(&self, layer: usize) -> u32 {
        let all = self.node.layers.status().layers;
        let of = all.iter().find(|l| l.digest == self.layers[layer].digest).unwrap();
        of.chunks_present
    }

    fn read(&self, layer: usize, file: usize, seed: u64) {
        let shown = self.node.layers.present_known(&self.layers[layer].digest).unwrap();
        let bytes = std::fs::read(shown.lowerdir.join(format!("{file:03}"))).unwrap();
        assert!(bytes == noise(CHUNK, seed + file as u64));
    }

    fn explored(&self) -> u64 {
        self.node.counters().explored_bytes.get()
    }
}

#[test]
fn a_start_without_a_profile_gets_what_lies_near_its_reads() {
    let server = FakeServer::start();
    let lab = Lab::of(&server, &[layer(64, 0)], &exploring());
    assert_eq!(lab.present(0), 0, "nothing was read, and the layer is not small");
    lab.read(0, 33, 0);
    lab.until("the region of a read", || lab.present(0) == REGION);
    lab.read(0, 37, 0);
    lab.until("the one behind it", || lab.present(0) == 2 * REGION);
    // Three of a block of four: the fourth comes unread.
    lab.read(0, 41, 0);
    lab.until("a region that nobody read", || lab.present(0) == 4 * REGION);
    // Far from it: its own region.
    lab.read(0, 0, 0);
    lab.until("a region far away", || lab.present(0) == 5 * REGION);
    let requests = server.ranges().len() + server.list_requests();
    for file in (0..4).chain(32..48) {
        lab.read(0, file, 0);
    }
    assert_eq!(server.ranges().len() + server.list_requests(), requests);
}

#[test]
fn small_layers_come_before_anybody_reads() {
    let server = FakeServer::start();
    let lab = Lab::of(&server, &[layer(64, 0), layer(8, 1000)], &exploring());
    lab.until("the small layer", || lab.present(1) == 8);
    assert_eq!(lab.present(0), 0);
    lab.read(1, 5, 1000);
}

#[test]
fn it_costs_no_more_than_is_allowed() {
    let server = FakeServer::start();
    let config = PrefetchConfig {
        // Three regions, less the chunk that a reader fetches himself, and part of a fourth.
        bytes_max: 10 * (CHUNK as u64 + 1024),
        ..exploring()
    };
    let lab = Lab::of(&server, &[layer(64, 0)], &config);
    for region in 0..16 {
        lab.read(0, region * REGION as usize, 0);
        if region == 0 {
            lab.until("the first region", || lab.present(0) >= REGION);
        }
    }
    // The first came. Of the others it was not always quicker than their reader; it had time.
    std::thread::sleep(Duration::from_millis(200));
    let explored = lab.explored();
    assert!((1..=config.bytes_max).contains(&explored), "{explored}");
    assert!(lab.present(0) < 16 + 10, "{}", lab.present(0));
}

#[test]
fn near_servers_and_profiles_need_no_exploring() {
    let server = FakeServer::start();
    let near = PrefetchConfig {
        explore_rtt_us_min: u64::MAX,
        ..exploring()
    };
    let lab = Lab::of(&server, &[layer(64, 0)], &near);
    lab.read(0, 33, 0);
    assert_eq!((lab.explored(), lab.present(0)), (0, 1));
    drop(lab);

    let layer = layer(64, 5000);
    server.profile(manifest(), Script::honest(0, &layer));
    let lab = Lab::of(&server, &[layer], &exploring());
    lab.read(0, 60, 5000);
    assert_eq!(lab.explored(), 0);
}
