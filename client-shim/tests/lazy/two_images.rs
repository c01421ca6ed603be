//! Images that start on one node at the same time: the prefetch of each goes on, whatever the others' does.

use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use headstart_shim::fetch::Servers;
use headstart_shim::profile::state::{ImagePrefetch, Progress};
use headstart_shim::profile::{PrefetchConfig, Starts};
use tokio::sync::Semaphore;

use crate::support::node::{lazy_config, patient_fetch};
use crate::support::{FakeServer, Item, LayerBuilder, Node, Script, TestLayer, noise};

const CHUNK: usize = 16 << 10;
const CHUNKS: usize = 12;

struct Image {
    manifest: BlobDigest,
    layer: Arc<TestLayer>,
    /// A permit a chunk of its stream.
    gate: Arc<Semaphore>,
}

impl Image {
    fn served(server: &FakeServer, seed: u64, chunks: usize) -> Image {
        let file = Item::file(noise(chunks * CHUNK, seed));
        let layer = LayerBuilder::new().add("a", file).build(CHUNK);
        let script = Script::honest(0, &layer).shut();
        let (manifest, gate) = (BlobDigest::of(&seed.to_le_bytes()), script.gate.clone());
        server.serve_image(manifest, slice::from_ref(&layer));
        server.profile(manifest, script);
        Image { manifest, layer, gate }
    }
}

struct Lab {
    starts: Starts,
    images: Vec<Image>,
    _server: FakeServer,
    _node: Node,
    _root: tempfile::TempDir,
}

impl Lab {
    /// So many images of so many chunks are being prepared, and the stream of each has begun.
    fn starting(count: u64, chunks: usize) -> Lab {
        let server = FakeServer::start();
        let served = (1..=count).map(|seed| Image::served(&server, seed, chunks));
        let images: Vec<Image> = served.collect();
        let root = tempfile::tempdir().unwrap();
        let urls = [server.url()];
        let node = Node::open_with(root.path(), &urls, lazy_config()).unwrap();
        let starts = node.starts(&urls, &PrefetchConfig::default());
        let servers = Servers::new(&urls, &patient_fetch()).unwrap();
        for image in &images {
            let status = node.block_on(servers.image(&image.manifest, 0)).unwrap().unwrap();
            starts.prepared(&status);
            node.present(&image.layer.digest).unwrap();
        }
        let lab = Lab {
            starts,
            images,
            _server: server,
            _node: node,
            _root: root,
        };
        for image in 0..lab.images.len() {
            lab.until(image, "its stream begins", |p| p.progress == Progress::Streaming);
        }
        lab
    }

    fn now(&self, image: usize) -> ImagePrefetch {
        let all = self.starts.status().into_iter();
        let mut of_image = all.filter(|p| p.manifest == self.images[image].manifest);
        of_image.next().unwrap()
    }

    fn until(&self, image: usize, what: &str, done: impl Fn(&ImagePrefetch) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !done(&self.now(image)) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.now(image));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn streams_of_two_images_take_turns_chunk_by_chunk() {
    let lab = Lab::starting(2, CHUNKS);
    for received in 1..=CHUNKS as u64 {
        for (at, image) in lab.images.iter().enumerate() {
            image.gate.add_permits(1);
            lab.until(at, "its chunk comes between the other's", |p| {
                p.received_chunks == received
            });
        }
    }
    for at in 0..lab.images.len() {
        lab.until(at, "it ends", |p| p.progress == Progress::Done);
    }
}

/// Of what a node can take, none has all.
#[test]
fn a_stream_that_flows_leaves_the_next_its_share() {
    let chunks = 100 * CHUNKS;
    let lab = Lab::starting(2, chunks);
    for image in &lab.images {
        image.gate.add_permits(chunks);
    }
    lab.until(0, "it ends", |p| p.progress == Progress::Done);
    let other = lab.now(1).received_chunks;
    assert!(other > chunks as u64 / 4, "{other} of {chunks}");
    lab.until(1, "it ends", |p| p.progress == Progress::Done);
}

#[test]
fn images_whose_streams_pause_hold_up_no_other() {
    // As many as have streams at once on a node, by default.
    let lab = Lab::starting(8, CHUNKS);
    let (last, paused) = lab.images.split_last().unwrap();
    // Each of them is in the middle of its stream.
    for (at, image) in paused.iter().enumerate() {
        image.gate.add_permits(CHUNKS / 2);
        lab.until(at, "half of it comes", |p| p.received_chunks == CHUNKS as u64 / 2);
    }
    last.gate.add_permits(CHUNKS);
    lab.until(paused.len(), "it does not wait for the others", |p| {
        p.progress == Progress::Done
    });
    for (at, image) in paused.iter().enumerate() {
        assert_eq!(lab.now(at).progress, Progress::Streaming);
        image.gate.add_permits(CHUNKS);
        lab.until(at, "it goes on", |p| p.progress == Progress::Done);
    }
}
