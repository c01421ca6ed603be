//! A profile's chunks as one stream, from servers that are honest, slow, mistaken or hostile.

use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use headstart_layer_format::api::ImageStatus;
use headstart_layer_format::profile::Run;
use headstart_shim::fetch::Servers;
use headstart_shim::layers::LazyConfig;
use headstart_shim::profile::state::{ImagePrefetch, Progress};
use headstart_shim::profile::{PrefetchConfig, Starts};
use tokio::sync::Semaphore;

use crate::support::node::{lazy_config, patient_fetch};
use crate::support::{FakeServer, Item, LayerBuilder, Node, Script, TestLayer, noise, part};

pub const CHUNK: usize = 16 << 10;
/// Headers of the stream do not count as bytes of chunks.
const HEADER: usize = 40;

pub fn manifest() -> BlobDigest {
    BlobDigest::of(b"manifest")
}

/// `a` has 8 chunks of its own, `b` those of `seed`.
fn layer(seed: u64) -> Arc<TestLayer> {
    LayerBuilder::new()
        .add("a", Item::file(noise(8 * CHUNK, 1)))
        .add("b", Item::file(noise(4 * CHUNK, seed)))
        .build(CHUNK)
}

pub struct Lab {
    pub node: Node,
    pub starts: Starts,
    status: ImageStatus,
    _root: tempfile::TempDir,
}

impl Lab {
    pub fn prepare(server: &FakeServer, layers: &[Arc<TestLayer>], script: Script, config: &PrefetchConfig) -> Self {
        Self::prepare_with(server, layers, script, config, lazy_config())
    }

    fn prepare_with(
        server: &FakeServer,
        layers: &[Arc<TestLayer>],
        script: Script,
        config: &PrefetchConfig,
        lazy: LazyConfig,
    ) -> Self {
        server.serve_image(manifest(), layers);
        server.profile(manifest(), script);
        let root = tempfile::tempdir().unwrap();
        let urls = [server.url()];
        let node = Node::open_with(root.path(), &urls, lazy).unwrap();
        let starts = node.starts(&urls, config);
        let status = status(&node, server);
        starts.prepared(&status);
        for layer in layers {
            node.present(&layer.digest).unwrap();
        }
        Self {
            node,
            starts,
            status,
            _root: root,
        }
    }

    pub fn until(&self, what: &str, done: impl Fn(&ImagePrefetch) -> bool) -> ImagePrefetch {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let now = self.starts.status().into_iter().next().unwrap();
            if done(&now) {
                return now;
            }
            assert!(Instant::now() < deadline, "{what}: {now:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The stream was asked for.
    pub fn begun(&self, server: &FakeServer) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while server.streams().is_empty() {
            assert!(Instant::now() < deadline, "it does not begin");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn ended(&self) -> ImagePrefetch {
        let goes_on = |p: &ImagePrefetch| matches!(p.progress, Progress::Waiting | Progress::Streaming);
        self.until("the prefetch ends", |p| !goes_on(p))
    }

    pub fn read(&self, layer: &TestLayer, name: &str) -> Vec<u8> {
        let shown = self.node.layers.present_known(&layer.digest).unwrap();
        std::fs::read(shown.lowerdir.join(name)).unwrap()
    }
}

fn status(node: &Node, server: &FakeServer) -> ImageStatus {
    let servers = Servers::new(&[server.url()], &patient_fetch()).unwrap();
    node.block_on(servers.image(&manifest(), 0)).unwrap().unwrap()
}

fn frame_len(layer: &TestLayer, index: u32) -> usize {
    layer.toc.chunks().chunk(index).unwrap().frame.len as usize
}

#[test]
fn all_of_it_comes_in_one_request_before_anybody_reads() {
    let server = FakeServer::start();
    let layer = layer(2);
    let lab = Lab::prepare(
        &server,
        slice::from_ref(&layer),
        Script::honest(0, &layer),
        &PrefetchConfig::default(),
    );
    let done = lab.ended();
    assert_eq!((done.progress, done.received_chunks), (Progress::Done, 12));
    assert_eq!(done.received_bytes, layer.blob.len() as u64);
    assert!(lab.read(&layer, "a") == noise(8 * CHUNK, 1));
    assert!(lab.read(&layer, "b") == noise(4 * CHUNK, 2));
    assert_eq!(lab.node.counters().read_misses.get(), 0);
    assert_eq!((server.chunk_requests(), server.streams().len()), (0, 1));
    assert!(server.streams()[0].have.is_empty());
}

#[test]
fn a_second_build_costs_what_is_new() {
    let server = FakeServer::start();
    let old = layer(2);
    let lab = Lab::prepare(
        &server,
        slice::from_ref(&old),
        Script::honest(0, &old),
        &PrefetchConfig::default(),
    );
    assert_eq!(lab.ended().progress, Progress::Done);
    let before = lab.node.counters().fetched_bytes.get();

    let new = layer(3);
    let second = BlobDigest::of(b"second");
    server.serve_image(second, slice::from_ref(&new));
    server.profile(second, Script::honest(0, &new));
    let servers = Servers::new(&[server.url()], &patient_fetch()).unwrap();
    let status = lab.node.block_on(servers.image(&second, 0)).unwrap().unwrap();
    lab.starts.prepared(&status);
    lab.node.present(&new.digest).unwrap();
    let done = lab.ended();
    assert_eq!((done.manifest, done.progress), (second, Progress::Done));
    assert_eq!((done.near_chunks, done.received_chunks), (8, 4));
    let own: usize = (8..12).map(|i| frame_len(&new, i)).sum();
    assert_eq!(lab.node.counters().fetched_bytes.get() - before, own as u64);
    assert_eq!(server.streams()[1].have.to_string(), "ff");
    assert!(lab.read(&new, "a") == noise(8 * CHUNK, 1));
    assert!(lab.read(&new, "b") == noise(4 * CHUNK, 3));
    assert_eq!(lab.node.counters().read_misses.get(), 0);
}

#[test]
fn demand_overtakes_a_stream_and_what_comes_late_is_not_written_again() {
    let server = FakeServer::start();
    let layer = layer(2);
    let script = Script::honest(0, &layer).shut();
    let gate = script.gate.clone();
    let config = PrefetchConfig::default();
    let lab = Lab::prepare(&server, slice::from_ref(&layer), script, &config);
    lab.begun(&server);
    // Nothing of the stream has come, and nobody waits for it.
    assert!(lab.read(&layer, "b") == noise(4 * CHUNK, 2));
    assert!(server.chunk_requests() > 0);
    gate.add_permits(100);
    let done = lab.ended();
    assert_eq!(done.progress, Progress::Done);
    assert_eq!(done.received_bytes, layer.blob.len() as u64);
    let own: usize = (8..12).map(|i| frame_len(&layer, i)).sum();
    assert_eq!(done.late_bytes, own as u64);
    assert!(lab.read(&layer, "a") == noise(8 * CHUNK, 1));
}

#[test]
fn a_stream_ends_with_its_image() {
    let server = FakeServer::start();
    let layer = layer(2);
    let lab = Lab::prepare(
        &server,
        slice::from_ref(&layer),
        Script::honest(0, &layer).shut(),
        &PrefetchConfig::default(),
    );
    lab.begun(&server);
    lab.starts.gone(&layer.digest);
    assert!(lab.starts.status().is_empty());
    let deadline = Instant::now() + Duration::from_secs(60);
    while lab.node.counters().prefetches_stopped.get() == 0 {
        assert!(Instant::now() < deadline, "it goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_stream_that_breaks_is_begun_again_for_the_rest() {
    let server = FakeServer::start();
    let layer = layer(2);
    let mut script = Script::honest(0, &layer);
    // Half a frame, and the body ends.
    script.parts.truncate(6);
    let (_, last) = script.parts.last_mut().unwrap();
    last.truncate(100);
    let lab = Lab::prepare(&server, slice::from_ref(&layer), script, &PrefetchConfig::default());
    let ended = lab.ended();
    assert_eq!(ended.progress, Progress::Failed);
    assert_eq!(ended.received_chunks, 5);
    let asked: Vec<String> = server.streams().iter().map(|s| s.have.to_string()).collect();
    assert_eq!(asked, ["", "1f", "1f"]);
    assert!(
        lab.read(&layer, "a") == noise(8 * CHUNK, 1),
        "readers fetch for themselves"
    );
    assert_eq!(lab.node.counters().read_errors.get(), 0);
}

/// Whatever a profile names: what is fetched for it is within the node's bounds.
#[test]
fn a_profile_costs_no_more_than_the_nodes_bounds() {
    let server = FakeServer::start();
    let layer = layer(2);
    let mut script = Script::honest(0, &layer);
    let nonsense = |layer, first| Run {
        layer,
        first,
        count: u32::MAX,
        bytes: u64::MAX,
    };
    script
        .runs
        .extend([nonsense(0, 0), nonsense(7, 0), nonsense(0, u32::MAX)]);
    // It sends all the same what the node said it has.
    script.parts.iter_mut().for_each(|(at, _)| *at = None);
    let bound = 3 * CHUNK as u64;
    let config = PrefetchConfig {
        bytes_max: bound,
        ..PrefetchConfig::default()
    };
    let lab = Lab::prepare(&server, slice::from_ref(&layer), script, &config);
    let done = lab.ended();
    assert_eq!(done.progress, Progress::Done);
    assert!((1..=bound).contains(&done.received_bytes), "{done:?}");
    assert!(lab.node.counters().fetched_bytes.get() <= bound);
    assert_eq!(done.received_chunks, done.asked_chunks);
    assert!(lab.read(&layer, "a") == noise(8 * CHUNK, 1));
}

/// Sends other than was asked for, wrong bytes, or more than there is.
#[test]
fn a_hostile_server_gets_little_and_readers_get_right_bytes() {
    let layer = layer(2);
    let other = layer_of_others();
    let frame = frame_len(&layer, 0);
    let padding = 4_000_000;
    let wrong = {
        // The header of one chunk, the frame of another, in its own length.
        let (mine, theirs) = (part(&layer, 0, 0), part(&layer, 1, 0));
        let mut wrong = theirs.clone();
        wrong[..32].copy_from_slice(&mine[..32]);
        wrong
    };
    let cases: [(&str, Vec<Vec<u8>>, u64); 4] = [
        ("another chunk", vec![part(&other, 0, 0); 50], 0),
        ("the same for ever", vec![part(&layer, 0, 0); 500], frame as u64),
        ("wrong bytes", vec![wrong; 50], 2 * frame as u64),
        ("long frames", (0..12).map(|i| part(&layer, i, padding)).collect(), 0),
    ];
    for (what, parts, received_max) in cases {
        let server = FakeServer::start();
        let mut script = Script::honest(0, &layer);
        script.parts = parts.into_iter().map(|part| (None, part)).collect();
        script.gate = Arc::new(Semaphore::new(1000));
        let lab = Lab::prepare(&server, slice::from_ref(&layer), script, &PrefetchConfig::default());
        let ended = lab.ended();
        assert_eq!(ended.progress, Progress::Failed, "{what}");
        assert!(ended.received_bytes <= received_max, "{what}: {ended:?}");
        // What is wrong is wrong the second time too: it is not asked again.
        assert_eq!(server.streams().len(), 1, "{what}");
        assert!(lab.read(&layer, "a") == noise(8 * CHUNK, 1), "{what}");
        assert!(lab.read(&layer, "b") == noise(4 * CHUNK, 2), "{what}");
    }
}

fn layer_of_others() -> Arc<TestLayer> {
    LayerBuilder::new().add("x", Item::file(noise(CHUNK, 99))).build(CHUNK)
}

#[test]
fn a_profile_of_other_tocs_is_not_followed() {
    let server = FakeServer::start();
    let layer = layer(2);
    let lab = Lab::prepare(
        &server,
        slice::from_ref(&layer),
        Script::honest(0, &layer).shut(),
        &PrefetchConfig::default(),
    );
    lab.begun(&server);
    lab.starts.gone(&layer.digest);
    let mut status = lab.status.clone();
    status.layers[0].toc.as_mut().unwrap().digest = headstart_layer_format::Toc::digest(b"another");
    lab.starts.prepared(&status);
    assert_eq!(lab.ended().progress, Progress::OtherTocs);
    assert_eq!(server.streams().len(), 1);
}

#[test]
fn of_a_profile_only_layers_that_were_converted_again_are_left_out() {
    let server = FakeServer::start();
    let layers = [layer(2), layer_of_others()];
    let mut script = Script::honest(0, &layers[0]);
    let (below, top) = (script.parts.len(), Script::honest(1, &layers[1]));
    script.runs.extend(top.runs);
    let moved = top.parts.into_iter().map(|(at, part)| (at.map(|at| at + below), part));
    script.parts.extend(moved);
    let script = script.shut();
    let gate = Arc::clone(&script.gate);
    let lab = Lab::prepare(&server, &layers, script, &PrefetchConfig::default());
    lab.begun(&server);
    lab.starts.gone(&layers[0].digest);
    gate.add_permits(100);
    let mut status = lab.status.clone();
    status.layers[0].toc.as_mut().unwrap().digest = headstart_layer_format::Toc::digest(b"another");
    lab.starts.prepared(&status);
    let ended = lab.ended();
    assert_eq!(
        (ended.progress, ended.received_chunks),
        (Progress::Done, 1),
        "{ended:?}"
    );
    assert!(lab.read(&layers[1], "x") == noise(CHUNK, 99));
    assert_eq!(lab.node.counters().read_misses.get(), 0);
    let asked = server.streams().pop().unwrap();
    assert!((0..below).all(|at| asked.have.has(at)), "{asked:?}");
}

#[test]
fn a_full_disk_is_not_filled_by_what_nobody_reads() {
    let server = FakeServer::start();
    let layer = layer(2);
    let lazy = LazyConfig {
        free_bytes_min: u64::MAX / 4,
        ..lazy_config()
    };
    let config = PrefetchConfig::default();
    let lab = Lab::prepare_with(
        &server,
        slice::from_ref(&layer),
        Script::honest(0, &layer),
        &config,
        lazy,
    );
    let ended = lab.ended();
    assert_eq!((ended.progress, ended.received_bytes), (Progress::NoRoom, 0));
}

#[test]
fn a_server_that_knows_no_profiles_is_asked_by_digests() {
    let server = FakeServer::start();
    let layer = layer(2);
    let script = Script::honest(0, &layer);
    let lab = Lab::prepare(
        &server,
        slice::from_ref(&layer),
        script.clone(),
        &PrefetchConfig::default(),
    );
    assert_eq!(lab.ended().progress, Progress::Done);
    lab.starts.gone(&layer.digest);
    lab.node.release(&layer.digest);
    // Another profile than the node is going to name: it is not known any more.
    let mut changed = script;
    changed.runs[0].bytes += 1;
    server.profile(manifest(), changed);
    let before = server.list_requests();
    lab.starts.prepared(&lab.status);
    lab.node.present(&layer.digest).unwrap();
    let done = lab.ended();
    assert_eq!((done.progress, done.received_chunks), (Progress::Done, 12));
    assert_eq!((server.list_requests() - before, server.streams().len()), (1, 1));
    assert!(server.streamed_bytes() >= layer.blob.len() + 12 * HEADER);
}
