//! Chunks that another layer of the node has are not fetched.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_shim::fetch::ChunkSink;

use crate::support::{Disk, FakeServer, Item, LayerBuilder, Node, TestLayer, noise};

const CHUNK: usize = 16 << 10;
const SHARED: usize = 20 * CHUNK;

fn layers() -> Vec<Arc<TestLayer>> {
    layers_sharing(SHARED)
}

/// Layers whose first file is the same, and its chunks with it.
fn layers_sharing(bytes: usize) -> Vec<Arc<TestLayer>> {
    let layer = |i: u64| {
        LayerBuilder::new()
            .add("a", Item::file(noise(bytes, 1)))
            .add("b", Item::file(noise(3 * CHUNK, 100 + i)))
            .build(CHUNK)
    };
    (0..3).map(layer).collect()
}

fn check(dir: &Path, i: usize) {
    assert!(fs::read(dir.join("a")).unwrap() == noise(SHARED, 1));
    assert!(fs::read(dir.join("b")).unwrap() == noise(3 * CHUNK, 100 + i as u64));
}

#[test]
fn a_chunk_moves_once_also_over_a_restart() {
    let server = FakeServer::start();
    let layers = layers();
    layers.iter().for_each(|l| server.serve(l));
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    check(&node.show(&layers[0]), 0);
    let own = node.counters().fetched_bytes.get();
    assert_eq!(node.counters().near_chunks.get(), 0);
    check(&node.show(&layers[1]), 1);
    assert_eq!(node.counters().near_bytes.get(), SHARED as u64);
    let more = node.counters().fetched_bytes.get() - own;
    assert!(more < 5 * CHUNK as u64, "{more}");
    node.stop();
    let node = Node::open(root.path(), &[&server]);
    check(&node.show(&layers[2]), 2);
    assert_eq!(
        node.counters().near_bytes.get(),
        SHARED as u64,
        "the index came back from the disk"
    );
    // The layer that had them goes; who took them has them for good.
    node.release(&layers[0].digest);
    check(&node.show(&layers[1]), 1);
    assert_eq!(
        node.counters().corrupt_chunks.get() + node.counters().rotten_chunks.get(),
        0
    );
}

#[test]
fn a_chunk_that_rotted_there_is_fetched_and_not_shown_there_again() {
    let server = FakeServer::start();
    let layers = layers();
    layers.iter().for_each(|l| server.serve(l));
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    // Without "b" it is not whole, and not verified of its own accord.
    let dir = node.show(&layers[0]);
    assert!(fs::read(dir.join("a")).unwrap() == noise(SHARED, 1));
    let data = root.path().join("cache").join(layers[0].digest.hex()).join("data");
    let file = fs::File::options().write(true).open(&data).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot", 3 * CHUNK as u64 + 9).unwrap();
    check(&node.show(&layers[1]), 1);
    let counters = node.counters();
    assert_eq!(counters.rotten_chunks.get(), 1);
    assert_eq!(counters.near_chunks.get(), SHARED as u64 / CHUNK as u64 - 1);
    rustix::fs::fadvise(
        fs::File::open(dir.join("a")).unwrap(),
        0,
        None,
        rustix::fs::Advice::DontNeed,
    )
    .unwrap();
    check(&dir, 0);
}

/// Two files that point at the same blocks take the room of one, and each keeps its bytes when the other goes. On ext4 they are
/// copies.
#[test]
fn where_the_filesystem_shares_blocks_a_chunk_of_another_layer_takes_no_room() {
    const SHARED: usize = 512 * CHUNK;
    for (filesystem, shares) in [("xfs", true), ("btrfs", true), ("ext4", false)] {
        let server = FakeServer::start();
        let layers = layers_sharing(SHARED);
        layers.iter().for_each(|l| server.serve(l));
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::make_of(filesystem, dir.path(), 512 << 20);
        let node = Node::open(&disk.at.join("node"), &[&server]);
        let [first, second] = [0, 1].map(|i| {
            let shown = node.show(&layers[i]);
            assert!(fs::read(shown.join("a")).unwrap() == noise(SHARED, 1));
            (shown, disk.used())
        });
        assert_eq!(node.counters().near_bytes.get(), SHARED as u64, "{filesystem}");
        let more = second.1.saturating_sub(first.1);
        assert_eq!(more < SHARED as u64 / 2, shares, "{filesystem}: {more} bytes more");
        node.release(&layers[0].digest);
        let gone = disk.at.join("node/cache").join(layers[0].digest.hex());
        let deadline = Instant::now() + Duration::from_secs(60);
        while gone.exists() {
            assert!(Instant::now() < deadline, "{filesystem}: the first layer stays");
            std::thread::sleep(Duration::from_millis(10));
        }
        fs::write("/proc/sys/vm/drop_caches", "1").unwrap();
        assert!(
            fs::read(second.0.join("a")).unwrap() == noise(SHARED, 1),
            "{filesystem}"
        );
        node.stop();
    }
}

/// What a layer has lost is no longer found there, and what cannot be found is fetched.
#[test]
fn a_hint_that_is_stale_is_only_a_fetch() {
    let layers = layers();
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = crate::upkeep::file_in(dir.path(), &layers[0]);
    file.announce();
    crate::upkeep::put(&file, &layers[0], 0);
    assert!(file.is_near(0), "a hint to itself");
    assert!(!file.is_near(1));
    file.evict(CHUNK as u64).unwrap();
    assert!(file.is_near(0) && !file.take_near(0));
    let alone = crate::upkeep::file_in(other.path(), &layers[0]);
    assert!(!alone.is_near(0));
}
