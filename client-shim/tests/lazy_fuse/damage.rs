//! What the kernel is told of a layer whose tree this node's disk did not keep.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use headstart_shim::layers::LazyConfig;

use crate::support::node::lazy_config;
use crate::support::{FakeServer, Item, LayerBuilder, Node, noise};

/// Name, number of the inode, size.
fn walk(dir: &Path) -> BTreeMap<String, (u64, u64)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        found.insert(path.display().to_string(), (meta.ino(), meta.len()));
        if meta.is_dir() {
            found.extend(walk(&path));
        }
    }
    found
}

fn damage(tree: &Path) {
    let file = File::options().write(true).open(tree).unwrap();
    for at in (0..file.metadata().unwrap().len()).step_by(4096) {
        file.write_all_at(b"damage", at + 999).unwrap();
    }
}

#[test]
fn a_damaged_tree_is_made_anew_without_a_server_and_names_the_same_nodes() {
    let mut server = FakeServer::start();
    let mut layer = LayerBuilder::new();
    for at in 0..400u64 {
        layer = layer.add(
            format!("d{}/file-{at}", at % 7),
            Item::file(noise(100 + at as usize, at)),
        );
    }
    let layer = layer.build(1 << 20);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("cache").join(layer.digest.hex()).join("tree");
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    let before = walk(&dir);
    assert_eq!(before.len(), 407);
    assert!(fs::read(dir.join("d3/file-10")).unwrap() == noise(110, 10));
    assert_eq!(node.counters().damaged_trees.get(), 0);
    node.stop();
    server.down();

    for remove in [false, true] {
        match remove {
            true => fs::remove_file(&tree).unwrap(),
            false => damage(&tree),
        }
        let node = Node::open(root.path(), &[&server]);
        assert_eq!(walk(&dir), before);
        assert_eq!(node.counters().damaged_trees.get(), u64::from(!remove));
        node.stop();
    }

    // Under a reader.
    let node = Node::open(root.path(), &[&server]);
    let open = File::open(dir.join("d3/file-10")).unwrap();
    damage(&tree);
    assert_eq!(walk(&dir), before);
    let mut bytes = [0; 110];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..] == noise(110, 10));
    assert_eq!(node.counters().damaged_trees.get(), 1);
}

#[test]
fn a_tree_without_room_on_the_disk_goes_there_later_under_its_readers() {
    let server = FakeServer::start();
    let mut layer = LayerBuilder::new();
    for at in 0..400u64 {
        layer = layer.add(format!("d{}/file-{at}", at % 7), Item::file(noise(100, at)));
    }
    let layer = layer.build(1 << 20);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let tree = root.path().join("cache").join(layer.digest.hex()).join("tree");
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    let before = walk(&dir);
    node.stop();
    // As on a full disk nothing can be made there.
    fs::remove_file(&tree).unwrap();
    fs::create_dir(tree.with_extension("new")).unwrap();
    let config = LazyConfig {
        flush_interval_ms: 50,
        ..lazy_config()
    };
    let node = Node::open_with(root.path(), &[server.url()], config).unwrap();
    assert_eq!(walk(&dir), before);
    let open = File::open(dir.join("d3/file-10")).unwrap();
    assert!(!tree.exists());
    fs::remove_dir(tree.with_extension("new")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !tree.exists() {
        assert!(Instant::now() < deadline, "it stays in memory");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(walk(&dir), before);
    }
    // The file is there a moment before it is asked.
    std::thread::sleep(Duration::from_millis(500));
    damage(&tree);
    // Of this the kernel knows nothing yet.
    let absent = fs::metadata(dir.join("d3/no-such-file")).unwrap_err();
    assert_eq!(absent.kind(), std::io::ErrorKind::NotFound);
    assert_eq!(node.counters().damaged_trees.get(), 1, "it is what is asked now");
    let mut bytes = [0; 100];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..] == noise(100, 10));
    assert_eq!(walk(&dir), before);
}
