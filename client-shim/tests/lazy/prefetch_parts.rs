//! A long stream, which is asked for in parts, from servers that have no room for all of it at once.

use std::slice;
use std::sync::Arc;
use std::time::Duration;

use headstart_layer_format::BlobDigest;
use headstart_shim::fetch::Servers;
use headstart_shim::profile::PrefetchConfig;
use headstart_shim::profile::state::Progress;

use crate::prefetch::{CHUNK, Lab, manifest};
use crate::support::node::patient_fetch;
use crate::support::{FakeServer, Item, LayerBuilder, Script, TestLayer, noise};

/// Of a layer that is two parts.
const CHUNKS: usize = (9 << 20) / CHUNK;

fn long_layer(seed: u64) -> Arc<TestLayer> {
    LayerBuilder::new()
        .add("all", Item::file(noise(CHUNKS * CHUNK, seed)))
        .build(CHUNK)
}

/// Chunks of the first part that was asked for.
fn first_part(server: &FakeServer) -> usize {
    let have = server.streams().remove(0).have;
    (0..CHUNKS).filter(|at| !have.has(*at)).count()
}

#[test]
fn a_long_stream_is_asked_for_in_parts_each_without_what_came_meanwhile() {
    let server = FakeServer::start();
    let (chunks, late) = ((9 << 20) / CHUNK, 4);
    let layer = LayerBuilder::new()
        .add("early", Item::file(noise((chunks - late) * CHUNK, 1)))
        .add("late", Item::file(noise(late * CHUNK, 2)))
        .build(CHUNK);
    let script = Script::honest(0, &layer).shut();
    let gate = script.gate.clone();
    let config = PrefetchConfig::default();
    let lab = Lab::prepare(&server, slice::from_ref(&layer), script, &config);
    lab.begun(&server);
    assert!(lab.read(&layer, "late") == noise(late * CHUNK, 2));
    let first = server.streams().remove(0).have;
    let first = (0..chunks).filter(|at| !first.has(*at)).count();
    assert!((chunks / 4..chunks * 3 / 4).contains(&first), "{first} of {chunks}");
    // The second is asked for while the last of the first is still to come.
    gate.add_permits(first - 1);
    lab.until("it comes", |p| p.received_chunks == first as u64 - 1);
    lab.until("there are two", |_| server.streams().len() == 2);
    gate.add_permits(chunks);
    let done = lab.ended();
    assert_eq!((done.progress, done.late_bytes), (Progress::Done, 0));
    assert_eq!(lab.node.counters().fetched_bytes.get(), layer.blob.len() as u64);
    let asked = server.streams();
    for at in 0..chunks {
        let times = asked.iter().filter(|s| !s.have.has(at)).count();
        assert!(times == usize::from(at < chunks - late) || times == 0, "{at}: {times}");
    }
    assert!(lab.read(&layer, "early") == noise((chunks - late) * CHUNK, 1));
}

/// An ask ahead, the next one at once, and one more, as often as each is sent.
#[test]
fn a_later_part_for_which_there_is_no_room_is_asked_for_again() {
    for (status, times) in [(503, 7), (429, 3)] {
        let server = FakeServer::start();
        let layer = long_layer(1);
        let script = Script::honest(0, &layer).shut();
        let gate = script.gate.clone();
        let config = PrefetchConfig::default();
        let lab = Lab::prepare(&server, slice::from_ref(&layer), script, &config);
        lab.begun(&server);
        server.refuse_streams(status, times);
        let first = first_part(&server);
        gate.add_permits(first - 1);
        lab.until("it is asked ahead", |_| server.refusals_left() < times);
        gate.add_permits(CHUNKS);
        let done = lab.ended();
        assert_eq!(
            (done.progress, done.received_chunks),
            (Progress::Done, CHUNKS as u64),
            "{status}"
        );
        assert_eq!((server.refusals_left(), server.streams().len()), (0, 2));
        assert_eq!(lab.node.counters().fetched_bytes.get(), layer.blob.len() as u64);
    }
}

#[test]
fn a_server_that_has_no_room_is_not_waited_for_longer_than_an_image_may_take() {
    let server = FakeServer::start();
    let layer = long_layer(1);
    let script = Script::honest(0, &layer).shut();
    let gate = script.gate.clone();
    let config = PrefetchConfig {
        time_max_ms: 4_000,
        ..PrefetchConfig::default()
    };
    let lab = Lab::prepare(&server, slice::from_ref(&layer), script, &config);
    lab.begun(&server);
    server.refuse_streams(429, 1000);
    let first = first_part(&server);
    gate.add_permits(CHUNKS);
    let ended = lab.ended();
    assert_eq!(
        (ended.progress, ended.received_chunks),
        (Progress::Stopped, first as u64)
    );
    let asked = 1000 - server.refusals_left();
    assert!((2..10).contains(&asked), "{asked}");
    assert!(lab.read(&layer, "all") == noise(CHUNKS * CHUNK, 1));

    // Of which nothing has come, that is not waited for.
    let server = FakeServer::start();
    server.refuse_streams(429, 1000);
    let lab = Lab::prepare(
        &server,
        slice::from_ref(&layer),
        Script::honest(0, &layer),
        &PrefetchConfig::default(),
    );
    assert_eq!(lab.ended().progress, Progress::Failed);
    assert_eq!(1000 - server.refusals_left(), 1);
}

/// What nobody reads yet has a part of what a connection may have under way.
#[test]
fn of_all_streams_one_at_a_time_asks_ahead() {
    let server = FakeServer::start();
    let layers = [long_layer(1), long_layer(2)];
    let scripts = layers.each_ref().map(|layer| Script::honest(0, layer).shut());
    let gates = scripts.each_ref().map(|script| Arc::clone(&script.gate));
    let [first, second] = scripts;
    let lab = Lab::prepare(&server, &layers[..1], first, &PrefetchConfig::default());
    lab.begun(&server);
    let other = BlobDigest::of(b"other");
    server.serve_image(other, &layers[1..]);
    server.profile(other, second);
    let servers = Servers::new(&[server.url()], &patient_fetch()).unwrap();
    let status = lab.node.block_on(servers.image(&other, 0)).unwrap().unwrap();
    lab.starts.prepared(&status);
    lab.node.present(&layers[1].digest).unwrap();
    lab.until("both begin", |_| server.streams().len() == 2);

    let part = first_part(&server);
    for gate in &gates {
        gate.add_permits(part - 1);
    }
    let images = || lab.starts.status();
    lab.until("both are near the end of a part", |_| {
        images().iter().all(|image| image.received_chunks == part as u64 - 1)
    });
    lab.until("one asks ahead", |_| server.streams().len() == 3);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(server.streams().len(), 3);
    for gate in &gates {
        gate.add_permits(CHUNKS);
    }
    lab.until("both end", |_| {
        images().iter().all(|image| image.progress == Progress::Done)
    });
    assert_eq!(server.streams().len(), 4);
    assert!(server.streams().iter().any(|asked| asked.image == manifest()));
}
