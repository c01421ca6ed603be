//! The cache on disk: what a restart keeps, and what damage does to it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use headstart_layer_format::Toc;
use headstart_shim::cache::{CacheDir, CacheError, LayerFile, LazyConfig};
use headstart_shim::contents::Contents;
use headstart_shim::fetch::{ChunkSink, VerifiedChunk};
use headstart_shim::layers::LayersError;

use crate::mount::{compare, rich};
use crate::support::node::lazy_config;
use crate::support::{FakeServer, Item, LayerBuilder, Node, TestLayer, noise};

fn layer_dir(root: &Path, layer: &TestLayer) -> PathBuf {
    root.join("cache").join(layer.digest.hex())
}

#[test]
fn a_restart_keeps_the_cache_and_needs_no_server() {
    let mut server = FakeServer::start();
    let layer = rich().build(64 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let before = node.present(&layer.digest).unwrap();
    compare(&layer, &before.lowerdir);
    node.stop();
    server.down();
    let node = Node::open(root.path(), &[&server]);
    let after = node.layers.present_known(&layer.digest).unwrap();
    assert_eq!((before.slot, before.lowerdir), (after.slot, after.lowerdir.clone()));
    compare(&layer, &after.lowerdir);
    let progress = node.layers.status().layers;
    assert_eq!(progress[0].chunks_present, progress[0].chunks);
    assert_eq!(node.counters().requests.get(), 0);
}

#[test]
fn one_shim_a_directory() {
    let server = FakeServer::start();
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let second = Node::open_with(root.path(), &[server.url()], lazy_config());
    assert!(matches!(second, Err(LayersError::Cache(CacheError::InUse(_)))));
    assert!(
        root.path().join("mnt/layers").is_dir(),
        "the first one's mount is untouched"
    );
    node.stop();
    Node::open(root.path(), &[&server]).stop();
}

/// {delete, truncate, cut to half, change a byte} x {each file}: a restart serves right bytes, fetching again what it must.
#[test]
fn no_damage_to_any_file_makes_wrong_bytes() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("delete", |p| fs::remove_file(p).unwrap()),
        ("truncate", |p| {
            fs::File::options().write(true).open(p).unwrap().set_len(0).unwrap()
        }),
        ("halve", |p| {
            let file = fs::File::options().write(true).open(p).unwrap();
            file.set_len(file.metadata().unwrap().len() / 2).unwrap();
        }),
        ("change", |p| {
            let mut bytes = fs::read(p).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 0x10;
            fs::write(p, bytes).unwrap();
        }),
    ];
    let server = FakeServer::start();
    let layer = LayerBuilder::new()
        .add("f", Item::file(noise(200_000, 1)))
        .build(16 << 10);
    server.serve(&layer);
    let files = ["data", "bitmap", "toc", "layer", "../next_slot"];
    for (what, damage) in damages {
        for file in files {
            // Bytes that change below us after they were verified are the disk's fault, and not looked for on each read.
            if (what, file) == ("change", "data") {
                continue;
            }
            let root = tempfile::tempdir().unwrap();
            let node = Node::open(root.path(), &[&server]);
            let slot = node.present(&layer.digest).unwrap().slot;
            assert!(fs::read(node.show(&layer).join("f")).unwrap() == noise(200_000, 1));
            node.stop();
            damage(&layer_dir(root.path(), &layer).join(file));
            let node = Node::open(root.path(), &[&server]);
            let presented = node.present(&layer.digest).unwrap();
            assert!(
                fs::read(presented.lowerdir.join("f")).unwrap() == noise(200_000, 1),
                "{what} {file}"
            );
            let lost_layer = matches!(file, "toc" | "layer");
            assert_eq!(
                presented.slot != slot,
                lost_layer,
                "{what} {file}: a slot is not used twice"
            );
            let fetched = node.counters().requests.get() > 0;
            assert_eq!(fetched, file != "../next_slot", "{what} {file}");
        }
    }
}

/// A failed `fdatasync` is reported once; the next one succeeds though the bytes never reached the disk. Such chunks were
/// then claimed as durable, and would have read as zeros.
#[test]
fn chunks_that_could_not_be_made_durable_are_fetched_again() {
    let layer = LayerBuilder::new()
        .add("f", Item::file(noise(30_000, 1)))
        .build(16 << 10);
    let dir = tempfile::tempdir().unwrap();
    let toc_digest = Toc::digest(&layer.encoded);
    let open = || LayerFile::open(dir.path(), Contents::of(dir.path(), &layer.toc, toc_digest)).unwrap();
    let file = open();
    let put = |index| {
        let chunk = layer.toc.chunks().chunk(index).unwrap();
        let frame = &layer.frames[&chunk.digest].0;
        file.put(VerifiedChunk::open(chunk, frame).unwrap()).unwrap();
    };
    put(0);
    file.flush().unwrap();
    put(1);
    // A device that cannot be synced takes the place of the data file.
    let data = fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .find(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == dir.path().join("data")))
        .map(|fd| fd.file_name().to_str().unwrap().parse::<i32>().unwrap())
        .unwrap();
    let device = fs::File::open("/dev/full").unwrap();
    // SAFETY: both descriptors are open, and nobody reads the data file meanwhile.
    assert!(unsafe { libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&device), data) } >= 0);
    assert!(file.flush().is_err());
    assert!(file.has(0) && !file.has(1), "only the durable chunk is still here");
    assert!(file.flush().is_ok(), "nothing is new");
    let after = open();
    assert!(after.has(0) && !after.has(1));
}

#[test]
fn a_released_layer_leaves_nothing_and_comes_back_in_another_slot() {
    let server = FakeServer::start();
    let layers: Vec<Arc<TestLayer>> = (0..2)
        .map(|i| {
            LayerBuilder::new()
                .add("f", Item::file(noise(30_000, i)))
                .build(16 << 10)
        })
        .collect();
    layers.iter().for_each(|l| server.serve(l));
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let mut slots = BTreeSet::new();
    let first = node.present(&layers[0].digest).unwrap();
    slots.insert(first.slot);
    slots.insert(node.present(&layers[1].digest).unwrap().slot);
    assert!(fs::read(first.lowerdir.join("f")).unwrap() == noise(30_000, 0));
    let open = fs::File::open(first.lowerdir.join("f")).unwrap();
    node.release(&layers[0].digest);
    assert!(!first.lowerdir.exists());
    assert!(!layer_dir(root.path(), &layers[0]).exists());
    assert!(node.layers.present_known(&layers[0].digest).is_err());
    assert!(node.layers.usage(&layers[0].digest).is_none());
    assert_eq!(fs::read_dir(root.path().join("mnt/layers")).unwrap().count(), 1);
    drop(open);
    node.release(&layers[0].digest);
    slots.insert(node.present(&layers[0].digest).unwrap().slot);
    assert!(fs::read(node.show(&layers[0]).join("f")).unwrap() == noise(30_000, 0));
    node.release(&layers[0].digest);
    node.stop();
    // The highest slot was given back before the restart; it is still not given out again.
    let node = Node::open(root.path(), &[&server]);
    slots.insert(node.present(&layers[0].digest).unwrap().slot);
    assert_eq!(slots.len(), 4);
}

/// Readers of a restarted shim wait until all layers are loaded: one whose disk is slow does not keep the others waiting.
#[test]
fn layers_are_loaded_side_by_side() {
    let root = tempfile::tempdir().unwrap();
    let slow: Vec<_> = ["a", "b"].map(|name| root.path().join(name)).to_vec();
    for dir in &slow {
        fs::create_dir(dir).unwrap();
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, dir.join("layer"), fifo, mode, 0).unwrap();
    }
    // A reader of the one gets its end only when there is a reader of the other.
    let met = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = slow
        .iter()
        .map(|dir| {
            let (path, met) = (dir.join("layer"), Arc::clone(&met));
            std::thread::spawn(move || {
                let _fifo = fs::File::options().write(true).open(path).unwrap();
                met.fetch_add(1, Ordering::SeqCst);
                let begun = Instant::now();
                while met.load(Ordering::SeqCst) < 2 {
                    if begun.elapsed() > Duration::from_secs(20) {
                        return false;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
                true
            })
        })
        .collect();
    let (_, layers) = CacheDir::open(root.path(), &LazyConfig::default(), &Default::default()).unwrap();
    assert!(layers.is_empty());
    assert!(writers.into_iter().all(|w| w.join().unwrap()), "one after the other");
}
