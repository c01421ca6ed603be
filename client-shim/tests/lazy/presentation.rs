//! Layers as EROFS mounts: who answers, what is left behind, and when the FUSE tree takes over.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use headstart_shim::layers::{LayersError, LazyConfig, PresentationChoice};
use headstart_shim::presentation::PresentationError;

use crate::mount::{compare, ragged, rich};
use crate::overlay::Overlay;
use crate::restart::start_victim;
use crate::support::node::lazy_config;
use crate::support::{FakeServer, Item, LayerBuilder, Node, noise};

/// `EROFS_SUPER_MAGIC_V1` of linux/magic.h.
const EROFS: i64 = 0xe0f5_e1e2;

fn is_erofs(path: &Path) -> bool {
    rustix::fs::statfs(path).unwrap().f_type as i64 == EROFS
}

fn with(presentation: PresentationChoice) -> LazyConfig {
    LazyConfig {
        presentation,
        ..lazy_config()
    }
}

/// Mount points at or below a directory.
fn mounts(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.canonicalize().unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|p| p.starts_with(&dir)).collect()
}

#[test]
fn the_kernel_shows_a_layer_and_the_fuse_tree_what_no_image_can() {
    let server = FakeServer::start();
    let (plain, odd) = (rich().build(64 << 10), ragged().build(64 << 10));
    server.serve(&plain);
    server.serve(&odd);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let (plain_dir, odd_dir) = (node.show(&plain), node.show(&odd));
    assert!(is_erofs(&plain_dir) && !is_erofs(&odd_dir));
    compare(&plain, &plain_dir);
    compare(&odd, &odd_dir);
    assert_eq!(node.show(&plain), plain_dir);
    let listed: Vec<_> = fs::read_dir(root.path().join("mnt"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(listed, ["layers"], "data spaces are not for people");
    let device = root
        .path()
        .join(format!("mnt/data/{}", plain_dir.file_name().unwrap().to_str().unwrap()));
    let stat = fs::metadata(&device).unwrap();
    assert_eq!(
        (stat.len(), stat.mode()),
        (plain.toc.chunks().data_size(), libc::S_IFREG | 0o400)
    );
    node.release(&plain.digest);
    assert!(!plain_dir.exists() && !device.exists());
    node.stop();
    assert_eq!(mounts(root.path()), [] as [PathBuf; 0]);
}

#[test]
fn a_layer_that_is_whole_needs_nobody() {
    let server = FakeServer::start();
    let layer = rich().build(64 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    compare(&layer, &node.show(&layer));
    let asked = |node: &Node| node.counters().read_hits.get() + node.counters().read_misses.get();
    assert!(asked(&node) > 0, "the first time, through the daemon");
    node.stop();
    let node = Node::open(root.path(), &[&server]);
    compare(&layer, &node.show(&layer));
    assert_eq!(asked(&node), 0);
}

/// A layer of which one chunk is missing is not whole: its file has a hole there.
#[test]
fn a_layer_that_is_almost_whole_is_not_read_without_us() {
    let server = FakeServer::start();
    let layer = LayerBuilder::new()
        .add("a", Item::file(noise(1, 30_000)))
        .add("b", Item::file(noise(2, 30_000)))
        .build(32 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    assert!(fs::read(node.show(&layer).join("a")).unwrap() == noise(1, 30_000));
    node.stop();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    assert!(fs::read(dir.join("b")).unwrap() == noise(2, 30_000));
    assert!(fs::read(dir.join("a")).unwrap() == noise(1, 30_000));
}

#[test]
fn what_a_killed_shim_mounted_is_gone_under_any_presentation() {
    let server = FakeServer::start();
    let layer = LayerBuilder::new()
        .add("a", Item::file(noise(1, 30_000)))
        .build(32 << 10);
    server.serve(&layer);
    for next in [PresentationChoice::Erofs, PresentationChoice::Fuse] {
        let root = tempfile::tempdir().unwrap();
        let mut victim = start_victim(root.path(), &server, &layer.digest.to_string());
        victim.kill();
        assert_eq!(mounts(&root.path().join("img")).len(), 1, "left behind");
        let node = Node::open_with(root.path(), &[server.url()], with(next)).unwrap();
        let dir = node.show(&layer);
        assert_eq!(is_erofs(&dir), next == PresentationChoice::Erofs);
        assert!(fs::read(dir.join("a")).unwrap() == noise(1, 30_000));
        let expected = 1 + usize::from(next == PresentationChoice::Erofs);
        assert_eq!(
            mounts(root.path()).len(),
            expected,
            "the old ones are gone, not covered"
        );
    }
}

#[test]
fn a_node_where_the_probe_fails_has_the_fuse_tree_unless_told_otherwise() {
    let server = FakeServer::start();
    let layer = rich().build(64 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    // No directory can be made here, so nothing can be tried.
    fs::write(root.path().join("probe"), "in the way").unwrap();
    let demanded = Node::open_with(root.path(), &[server.url()], with(PresentationChoice::Erofs));
    assert!(matches!(
        demanded,
        Err(LayersError::Presentation(PresentationError::Probe(_)))
    ));
    assert_eq!(mounts(root.path()), [] as [PathBuf; 0]);
    let node = Node::open_with(root.path(), &[server.url()], with(PresentationChoice::Auto)).unwrap();
    let dir = node.show(&layer);
    assert!(!is_erofs(&dir));
    compare(&layer, &dir);
    node.stop();
    fs::remove_file(root.path().join("probe")).unwrap();
    let node = Node::open_with(root.path(), &[server.url()], with(PresentationChoice::Auto)).unwrap();
    assert!(is_erofs(&node.show(&layer)), "this kernel can");
    assert!(!root.path().join("probe").exists());
}

#[test]
fn a_container_may_stack_what_it_sees_once_more() {
    let server = FakeServer::start();
    let layer = LayerBuilder::new()
        .add("f", Item::file(noise(3, 100_000)))
        .build(32 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let (outer, inner) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let outer = Overlay::new(outer.path(), &[node.show(&layer)]);
    let inner = Overlay::new(inner.path(), &[outer.at("")]);
    assert!(fs::read(inner.at("f")).unwrap() == noise(3, 100_000));
    fs::write(inner.at("f"), "copied up").unwrap();
    assert!(fs::read(outer.at("f")).unwrap() == noise(3, 100_000));
}
