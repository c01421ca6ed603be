//! What a node does for its layers by itself: it fetches the rest, checks the whole, and gives room back.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headstart_layer_format::{LayerOffset, LayerRange, Toc};
use headstart_shim::cache::diff_id::Verdict;
use headstart_shim::cache::{LayerFile, LazyConfig};
use headstart_shim::contents::Contents;
use headstart_shim::counters::Counters;
use headstart_shim::fetch::{ChunkSink, FetchConfig, Flights, Servers, VerifiedChunk};
use headstart_shim::layers::LayersError;

use crate::mount::{compare, rich};
use crate::support::node::{fetch_config, lazy_config};
use crate::support::{Disk, FakeServer, Item, LayerBuilder, Node, TestLayer, noise};

const CHUNK: usize = 16 << 10;

fn filling() -> LazyConfig {
    LazyConfig {
        background_fill: true,
        fill_after_ms: 0,
        ..lazy_config()
    }
}

fn open(root: &Path, server: &FakeServer, config: LazyConfig) -> Node {
    Node::open_with(root, &[server.url()], config).unwrap()
}

fn one_file(seed: u64, len: usize) -> LayerBuilder {
    LayerBuilder::new().add("f", Item::file(noise(len, seed)))
}

/// From our cache, not only the kernel's.
pub fn read_anew(path: &Path) -> io::Result<Vec<u8>> {
    rustix::fs::fadvise(fs::File::open(path)?, 0, None, rustix::fs::Advice::DontNeed)?;
    fs::read(path)
}

pub fn file_in(dir: &Path, layer: &TestLayer) -> Arc<LayerFile> {
    let digest = Toc::digest(&layer.encoded);
    Arc::new(LayerFile::open(dir, Contents::of(dir, &layer.toc, digest)).unwrap())
}

pub fn put(file: &LayerFile, layer: &TestLayer, index: u32) {
    let chunk = layer.toc.chunks().chunk(index).unwrap();
    let frame = &layer.frames[&chunk.digest].0;
    file.put(VerifiedChunk::open(chunk, frame).unwrap()).unwrap();
}

#[test]
fn what_nobody_reads_is_fetched_checked_and_needs_no_server() {
    let mut server = FakeServer::start();
    let layer = rich().build(CHUNK);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = open(root.path(), &server, filling());
    node.show(&layer);
    node.until(&layer.digest, "filled and verified", |l| l.verified);
    assert_eq!(node.layers.status().layers[0].chunks_present, layer.toc.chunks().len());
    let counters = node.counters();
    assert_eq!(counters.read_misses.get(), 0);
    assert_eq!(counters.fill_bytes.get(), counters.fetched_bytes.get());
    assert_eq!(counters.layers_verified.get(), 1);
    server.down();
    node.stop();
    let node = open(root.path(), &server, filling());
    compare(&layer, &node.layers.present_known(&layer.digest).unwrap().lowerdir);
    assert!(node.layers.status().layers[0].verified, "a restart believes the mark");
    assert_eq!(
        node.counters().layers_verified.get(),
        0,
        "and does not read everything again"
    );
}

/// Every chunk is what the TOC says, and the TOC is not what the image says.
#[test]
fn a_layer_that_lies_is_quarantined() {
    let server = FakeServer::start();
    let layer = one_file(1, 100_000).lying().build(CHUNK);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = open(root.path(), &server, lazy_config());
    let path = node.show(&layer).join("f");
    assert!(
        fs::read(&path).unwrap() == noise(100_000, 1),
        "nothing is known against it yet"
    );
    node.until(&layer.digest, "quarantined", |l| l.quarantined);
    assert_eq!(node.counters().layers_quarantined.get(), 1);
    assert_eq!(read_anew(&path).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(matches!(node.present(&layer.digest), Err(LayersError::Quarantined)));
    node.stop();
    let node = open(root.path(), &server, lazy_config());
    let dir = node.layers.present_known(&layer.digest).unwrap().lowerdir;
    assert_eq!(fs::read(dir.join("f")).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(!node.layers.status().layers[0].verified);
    // Once nobody has it any more it may come again, from a server that is better by then.
    node.release(&layer.digest);
    assert!(node.present(&layer.digest).is_ok());
}

#[test]
fn a_chunk_that_rotted_is_fetched_again_and_no_reason_for_quarantine() {
    let layer = one_file(1, 100_000).build(CHUNK);
    let dir = tempfile::tempdir().unwrap();
    let file = file_in(dir.path(), &layer);
    let all = 0..layer.toc.chunks().len();
    all.clone().for_each(|i| put(&file, &layer, i));
    file.flush().unwrap();
    assert!(file.whole().is_none(), "not verified yet");
    let mut bytes = fs::read(dir.path().join("data")).unwrap();
    bytes[2 * CHUNK + 5] ^= 1;
    fs::write(dir.path().join("data"), bytes).unwrap();
    assert_eq!(file.verify().unwrap(), Verdict::Rotten(1));
    assert_eq!(all.clone().filter(|&i| !file.has(i)).collect::<Vec<_>>(), [2]);
    assert!(!file_in(dir.path(), &layer).has(2), "nor after a restart");
    put(&file, &layer, 2);
    assert_eq!(file.verify().unwrap(), Verdict::Right);
    assert!(file.whole().is_none(), "not durable yet");
    file.flush().unwrap();
    // What the kernel did not take after all is not lent, also not to a successor; what it had before is, whatever comes of this.
    let first = file.whole().unwrap();
    assert!(file.is_lent() && file_in(dir.path(), &layer).is_lent());
    file.take_back(&first);
    assert_eq!((file.is_lent(), file.room().lent()), (false, 0));
    assert!(!file_in(dir.path(), &layer).is_lent());
    assert!(file.whole().is_some());
    file.take_back(&file.whole().unwrap());
    assert!(file.is_lent() && file.room().lent() > 0);
    assert_eq!(file.evict(1 << 40).unwrap(), 0, "the kernel may be reading it");
    assert_eq!(
        file_in(dir.path(), &layer).evict(1 << 40).unwrap(),
        0,
        "also after a restart"
    );
}

/// While a reader waits, the fill stands still between two chunks; but not for ever.
#[test]
fn the_fill_gives_way_to_readers() {
    let server = FakeServer::start();
    let (wanted, other) = (one_file(1, CHUNK).build(CHUNK), one_file(2, 40 * CHUNK).build(CHUNK));
    server.serve(&wanted);
    server.serve(&other);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = FetchConfig {
        response_timeout_ms: 60_000,
        ..fetch_config()
    };
    let servers = Servers::new(&[server.url()], &config).unwrap();
    let counters = Arc::new(Counters::default());
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let flights = |layer: &Arc<TestLayer>, dir: &Path| {
        let file = file_in(dir, layer);
        let contents = Arc::clone(file.contents());
        let sink: Arc<dyn ChunkSink> = Arc::clone(&file) as _;
        let counters = Arc::clone(&counters);
        let runtime = runtime.handle().clone();
        (
            Flights::new(servers.clone(), contents, sink, Arc::default(), counters, runtime),
            file,
        )
    };
    let (reader, _) = flights(&wanted, dirs[0].path());
    let (filler, file) = flights(&other, dirs[1].path());
    server.mute(Some(wanted.digest));
    let deadline = Instant::now() + Duration::from_secs(60);
    let reading = runtime.spawn(async move { reader.fetch(&[0], &[], deadline).await });
    let until = |what: &str, done: &dyn Fn() -> bool| {
        while !done() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    until("the reader asks", &|| server.chunk_requests() > 0);
    let started = Instant::now();
    let all: Vec<u32> = (0..other.toc.chunks().len()).collect();
    let filling = runtime.spawn(async move { filler.fill(&all, deadline).await });
    until("the fill gets on, slowly", &|| {
        let count = file.chunk_count();
        // Looked at in this order, so that a machine that stands still between them is no reason for alarm.
        let allowed = 2 + started.elapsed().as_millis() / 500;
        assert!(u128::from(count) <= allowed, "{count} chunks, {allowed} allowed");
        count >= 3
    });
    assert!(!reading.is_finished());
    server.mute(None);
    assert_eq!(runtime.block_on(reading).unwrap(), Ok(()));
    assert!(runtime.block_on(filling).unwrap(), "and it finishes");
    assert_eq!(file.chunk_count(), other.toc.chunks().len());
}

#[test]
fn the_cache_stays_below_its_cap_and_layers_in_use_go_last() {
    const LEN: usize = 40 * CHUNK;
    let server = FakeServer::start();
    let layers: Vec<_> = (0..3).map(|i| one_file(i, LEN).build(CHUNK)).collect();
    layers.iter().for_each(|l| server.serve(l));
    let root = tempfile::tempdir().unwrap();
    let cap = (2 * LEN + LEN / 2) as u64;
    // Blocks in which the filesystem writes down where a file with holes is.
    let bound = cap + 4 * CHUNK as u64;
    let config = LazyConfig {
        cache_bytes_max: cap,
        ..lazy_config()
    };
    let node = open(root.path(), &server, config.clone());
    let used: HashSet<_> = [layers[0].digest].into();
    node.layers.in_use().set(move || used.clone());
    let paths: Vec<_> = layers.iter().map(|l| node.show(l).join("f")).collect();
    let total = |node: &Node| node.layers.status().layers.iter().map(|l| l.disk_bytes).sum::<u64>();
    for (i, path) in paths.iter().enumerate() {
        assert!(fs::read(path).unwrap() == noise(LEN, i as u64));
        assert!(total(&node) <= bound, "{} of {cap}", total(&node));
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while node.counters().evicted_bytes.get() == 0 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(10));
    }
    let full = |node: &Node, i: usize| {
        let all = node.layers.status().layers;
        let layer = all.iter().find(|l| l.digest == layers[i].digest).unwrap();
        layer.chunks_present == layer.chunks
    };
    assert!(full(&node, 0), "the only one in use, and the oldest");
    for round in 0..4 {
        for (i, path) in paths.iter().enumerate() {
            assert!(read_anew(path).unwrap() == noise(LEN, i as u64), "round {round}");
            assert!(total(&node) <= bound);
        }
    }
    node.stop();
    let node = open(root.path(), &server, config);
    for (i, layer) in layers.iter().enumerate() {
        let dir = node.layers.present_known(&layer.digest).unwrap().lowerdir;
        assert!(
            fs::read(dir.join("f")).unwrap() == noise(LEN, i as u64),
            "after a restart"
        );
    }
    assert_eq!(node.counters().read_errors.get(), 0);
}

/// A disk that is full, by its own word (a floor) and without one (ENOSPC): bytes come, and are not kept.
#[test]
fn a_full_disk_costs_fetches_and_no_reads() {
    const LEN: usize = 8 << 20;
    let server = FakeServer::start();
    let layer = one_file(1, LEN).build(128 << 10);
    server.serve(&layer);
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::make(dir.path(), 6 << 20);
    for floor in [0, u64::MAX / 4] {
        let config = LazyConfig {
            free_bytes_min: floor,
            transit_bytes_max: 1 << 20,
            ..filling()
        };
        let node = open(&disk.at.join(format!("{floor}")), &server, config);
        let path = node.show(&layer).join("f");
        assert!(fs::read(&path).unwrap() == noise(LEN, 1), "floor {floor}");
        assert!(read_anew(&path).unwrap() == noise(LEN, 1));
        let progress = node.layers.status().layers[0].clone();
        let counters = node.counters();
        let (unkept, errors) = (counters.unkept_chunks.get(), counters.read_errors.get());
        assert!(unkept > 0 && errors == 0, "{unkept} not kept, {errors} errors");
        assert!(progress.chunks_present < progress.chunks);
        if floor > 0 {
            assert_eq!((progress.chunks_present, progress.disk_bytes), (0, 0));
            assert_eq!(counters.fill_bytes.get(), 0, "nothing is fetched that nobody asked for");
        }
        node.release(&layer.digest);
        node.stop();
    }
}

/// Readers look while chunks go and come back: never a zero that is not theirs.
#[test]
fn eviction_and_readers_do_not_meet() {
    const LEN: usize = 32 * CHUNK;
    let layer = one_file(1, LEN).build(CHUNK);
    let dir = tempfile::tempdir().unwrap();
    let file = file_in(dir.path(), &layer);
    let chunks = layer.toc.chunks().len();
    (0..chunks).for_each(|i| put(&file, &layer, i));
    let stop = Arc::new(AtomicBool::new(false));
    let hits = Arc::new(AtomicU64::new(0));
    let readers: Vec<_> = (0..3)
        .map(|seed| {
            let (file, stop, hits) = (Arc::clone(&file), Arc::clone(&stop), Arc::clone(&hits));
            std::thread::spawn(move || {
                let (whole, mut out, mut at) = (noise(LEN, 1), vec![0; 3 * CHUNK], seed);
                while !stop.load(Ordering::Relaxed) {
                    at = (at * 31 + 4097) % (LEN - out.len());
                    let range = LayerRange {
                        start: LayerOffset(at as u64),
                        len: out.len() as u64,
                    };
                    if file.read(range, &mut out).unwrap() {
                        hits.fetch_add(1, Ordering::Relaxed);
                        assert!(out == whole[at..at + out.len()], "at {at}");
                    }
                }
            })
        })
        .collect();
    let putter = {
        let (file, layer, stop) = (Arc::clone(&file), Arc::clone(&layer), Arc::clone(&stop));
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                (0..chunks).for_each(|i| put(&file, &layer, i));
            }
        })
    };
    let (mut gone, mut rounds) = (0, 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while rounds < 20 || gone == 0 || hits.load(Ordering::Relaxed) < 100 {
        assert!(Instant::now() < deadline, "{gone} bytes gone, {hits:?} reads");
        gone += file.evict(8 * CHUNK as u64).unwrap();
        rounds += 1;
    }
    stop.store(true, Ordering::Relaxed);
    putter.join().unwrap();
    let whole = LayerRange {
        start: LayerOffset(0),
        len: LEN as u64,
    };
    (0..chunks).for_each(|i| put(&file, &layer, i));
    let mut out = vec![0; LEN];
    assert!(file.read(whole, &mut out).unwrap() && out == noise(LEN, 1));
    readers.into_iter().for_each(|r| r.join().unwrap());
}

/// A chunk goes only after its claim is durably gone.
#[test]
fn what_cannot_be_disclaimed_is_not_punched_out() {
    let layer = one_file(1, 8 * CHUNK).build(CHUNK);
    let dir = tempfile::tempdir().unwrap();
    let file = file_in(dir.path(), &layer);
    (0..8).for_each(|i| put(&file, &layer, i));
    file.flush().unwrap();
    // In the place of the bitmap's successor.
    fs::create_dir(dir.path().join("bitmap.new")).unwrap();
    assert!(file.evict(CHUNK as u64).is_err());
    let after = file_in(dir.path(), &layer);
    assert_eq!(after.chunk_count(), 8, "the disk claims them");
    assert_eq!(after.verify().unwrap(), Verdict::Right, "and has them");
    fs::remove_dir(dir.path().join("bitmap.new")).unwrap();
    assert!(file.evict(2 * CHUNK as u64).unwrap() > 0);
    put(&file, &layer, 7);
    assert!(file_in(dir.path(), &layer).chunk_count() < 8);
}
