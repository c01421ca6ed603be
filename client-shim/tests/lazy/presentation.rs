//! Layers as EROFS mounts: who answers, what is left behind, and when the FUSE tree takes over.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use headstart_shim::erofs::ShortTimes;
use headstart_shim::layers::{LayersError, LazyConfig, PresentationChoice, WholeLayers};
use headstart_shim::presentation::PresentationError;

use crate::erofs::shown_here;
use crate::mount::{compare, ragged, rich};
use crate::overlay::Overlay;
use crate::restart::start_victim;
use crate::support::node::lazy_config;
use crate::support::{FakeServer, Item, LayerBuilder, Node, noise};

/// `EROFS_SUPER_MAGIC_V1` of linux/magic.h.
const EROFS: i64 = 0xe0f5_e1e2;

/// Whether the mount at `dir` passes the page cache of the filesystem below.
pub fn reads_directly(dir: &Path) -> bool {
    let dir = dir.canonicalize().unwrap();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table
        .lines()
        .rev()
        .find(|l| l.split(' ').nth(4).map(Path::new) == Some(&dir));
    line.unwrap()
        .split(' ')
        .next_back()
        .unwrap()
        .split(',')
        .any(|o| o == "directio")
}

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
    node.until(&layer.digest, "all of it is here, and right", |l| l.verified);
    node.stop();
    for direct in [false, true] {
        let config = with_whole(if direct {
            WholeLayers::Direct
        } else {
            WholeLayers::Cached
        });
        let node = Node::open_with(root.path(), &[server.url()], config).unwrap();
        let dir = node.show(&layer);
        compare(&layer, &dir);
        assert_eq!((asked(&node), reads_directly(&dir)), (0, direct));
        for left in ["cache/probe-direct", "cache/probe-times", "probe"] {
            assert!(!root.path().join(left).exists(), "{left}");
        }
        node.stop();
    }
    // A kernel that is not to be trusted with it.
    let node = Node::open_with(root.path(), &[server.url()], with_whole(WholeLayers::Asked)).unwrap();
    compare(&layer, &node.show(&layer));
    assert!(asked(&node) > 0);
}

/// What was tried and is not possible is not done: no file can be written here.
#[test]
fn a_layer_that_is_whole_is_read_through_the_page_cache_where_the_trial_fails() {
    let server = FakeServer::start();
    let layer = rich().build(64 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("cache")).unwrap();
    std::os::unix::fs::symlink("/nowhere/file", root.path().join("cache/probe-direct")).unwrap();
    let config = LazyConfig {
        whole_layers: WholeLayers::Direct,
        ..quick_flush()
    };
    let node = Node::open_with(root.path(), &[server.url()], config).unwrap();
    let dir = node.show(&layer);
    let device = || fs::metadata(&dir).unwrap().dev();
    let first = device();
    compare(&layer, &dir);
    wait_until("the layer to be mounted anew", || device() != first);
    assert!(!reads_directly(&dir));
    compare(&layer, &dir);
}

/// A layer of which one chunk is missing is not whole: its file has a hole there.
#[test]
fn a_layer_that_is_almost_whole_is_not_read_without_us() {
    let server = FakeServer::start();
    let layer = LayerBuilder::new()
        .add("a", Item::file(noise(30_000, 1)))
        .add("b", Item::file(noise(30_000, 2)))
        .build(32 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    assert!(fs::read(node.show(&layer).join("a")).unwrap() == noise(30_000, 1));
    node.stop();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    assert!(fs::read(dir.join("b")).unwrap() == noise(30_000, 2));
    assert!(fs::read(dir.join("a")).unwrap() == noise(30_000, 1));
}

#[test]
fn what_a_killed_shim_mounted_is_gone_under_any_presentation() {
    let server = FakeServer::start();
    let layer = LayerBuilder::new()
        .add("a", Item::file(noise(30_000, 1)))
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
        assert!(fs::read(dir.join("a")).unwrap() == noise(30_000, 1));
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

/// Also while it is mounted: whoever mounts it then has the local file, whoever did before keeps what he has.
#[test]
fn a_layer_that_becomes_whole_is_read_without_us_by_whoever_mounts_it_then() {
    let server = FakeServer::start();
    let (layer, other) = (
        rich().build(64 << 10),
        LayerBuilder::new()
            .add("a", Item::file(noise(30_000, 1)))
            .add("b", Item::file(noise(30_000, 2)))
            .build(32 << 10),
    );
    server.serve(&layer);
    server.serve(&other);
    let root = tempfile::tempdir().unwrap();
    let config = LazyConfig {
        whole_layers: WholeLayers::Direct,
        ..quick_flush()
    };
    let node = Node::open_with(root.path(), &[server.url()], config).unwrap();
    let (dir, other_dir) = (node.show(&layer), node.show(&other));
    let scratch = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let before = Overlay::new(scratch[0].path(), std::slice::from_ref(&dir));
    let device = |dir: &Path| fs::metadata(dir).unwrap().dev();
    let (first, other_first) = (device(&dir), device(&other_dir));
    assert!(!reads_directly(&dir), "what we answer is not read directly");
    fs::read(other_dir.join("a")).unwrap();
    fs::read(dir.join("sparse")).unwrap();
    compare(&layer, &dir);
    wait_until("the layer to be mounted anew", || device(&dir) != first);
    assert_eq!(device(&other_dir), other_first, "of this one a part is missing");
    assert!(!reads_directly(&other_dir));
    assert!(reads_directly(&dir));
    assert_eq!(
        mounts(&root.path().join("img")).len(),
        2,
        "in place of the first, not over it"
    );

    let asked = node.counters().kernel_requests.get();
    let after = Overlay::new(scratch[1].path(), std::slice::from_ref(&dir));
    compare(&layer, &dir);
    assert!(fs::read(after.at("big")).unwrap() == noise(3_000_000, 1));
    assert_eq!(node.counters().kernel_requests.get(), asked, "nobody asks us");
    assert!(fs::read(before.at("big")).unwrap() == noise(3_000_000, 1));
    drop((before, after));
    node.release(&layer.digest);
    node.release(&other.digest);
    assert!(!dir.exists());
    node.stop();
    assert_eq!(mounts(root.path()), [] as [PathBuf; 0]);
}

/// Most layers have no tree, and to make them all for a look at their names would keep everybody else waiting.
#[test]
fn listing_the_layers_makes_no_trees() {
    let server = FakeServer::start();
    let layers: Vec<_> = (0..3)
        .map(|seed| {
            LayerBuilder::new()
                .add(format!("f{seed}"), Item::file(noise(1000, seed)))
                .build(1 << 20)
        })
        .collect();
    layers.iter().for_each(|l| server.serve(l));
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let slots: Vec<String> = layers
        .iter()
        .map(|l| node.show(l).file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    let made = || {
        let trees = layers
            .iter()
            .map(|l| root.path().join("cache").join(l.digest.hex()).join("tree"));
        trees.filter(|tree| tree.exists()).count()
    };
    let all = root.path().join("mnt/layers");
    for _ in 0..2 {
        let listed = fs::read_dir(&all).unwrap().map(|entry| {
            let entry = entry.unwrap();
            assert!(entry.file_type().unwrap().is_dir());
            entry.file_name().into_string().unwrap()
        });
        let mut listed: Vec<String> = listed.collect();
        listed.sort();
        assert_eq!((&listed, made()), (&slots, 0));
    }
    // One is made for whoever looks into it.
    let within = all.join(&slots[1]).join("f1");
    assert!(fs::read(within).unwrap() == noise(1000, 1));
    assert_eq!(made(), 1);
    node.release(&layers[0].digest);
    let listed = fs::read_dir(&all)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(listed.collect::<Vec<_>>(), slots[1..]);
}

/// Names, attributes and what is not there are the kernel's own business, as soon as a layer is shown.
#[test]
fn walks_and_stats_and_misses_ask_nobody() {
    let server = FakeServer::start();
    let mut builder = rich();
    for at in 0..500 {
        builder = builder.add(format!("many/{}/{at}", at % 7), Item::file(noise(100, at)));
    }
    let layer = builder.build(64 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    let scratch = tempfile::tempdir().unwrap();
    let overlay = Overlay::new(scratch.path(), std::slice::from_ref(&dir));
    let asked = node.counters().kernel_requests.get();
    for top in [dir.clone(), overlay.at("")] {
        let mut seen = 0;
        let mut todo = vec![top.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                let stat = fs::symlink_metadata(&path).unwrap();
                seen += 1;
                assert!(fs::symlink_metadata(dir.join(format!("absent-{seen}"))).is_err());
                xattr::list(&path).unwrap().for_each(drop);
                match stat.file_type() {
                    kind if kind.is_dir() => todo.push(path),
                    kind if kind.is_symlink() => drop(fs::read_link(&path).unwrap()),
                    _ => {}
                }
            }
        }
        // Whiteouts are names of the layer, and none of an overlay.
        assert!(seen >= layer.items.len() - 2, "{seen}");
    }
    assert_eq!(node.counters().kernel_requests.get(), asked);
    assert_eq!(server.chunk_requests(), 0);
    // What is counted is counted.
    fs::read(dir.join("big")).unwrap();
    assert!(node.counters().kernel_requests.get() > asked);
}

/// The kernel tells nobody which backing device is an EROFS mount's, and its read-ahead once stayed at 128 KiB, unnoticed.
#[test]
fn read_ahead_of_an_image_is_what_the_configuration_says() {
    const LEN: usize = 8 << 20;
    let server = FakeServer::start();
    let layer = LayerBuilder::new().add("f", Item::file(noise(LEN, 4))).build(1 << 20);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let config = LazyConfig {
        kernel_readahead_kib: 1024,
        ..with(PresentationChoice::Erofs)
    };
    let node = Node::open_with(root.path(), &[server.url()], config).unwrap();
    let path = node.show(&layer).join("f");
    let asked = node.counters().kernel_requests.get();
    assert!(fs::read(path).unwrap() == noise(LEN, 4));
    let asked = node.counters().kernel_requests.get() - asked;
    assert!(asked < LEN as u64 / (256 << 10), "{asked} requests");
}

/// A kernel that was not seen to give short inodes times of their own has none of them; no file can be tried here.
#[test]
fn times_are_right_also_where_short_inodes_have_but_one() {
    let server = FakeServer::start();
    let file = |at: i64| Item::file(format!("{at}")).mtime(1_600_000_000 + at, 0);
    let many = (0..500).fold(rich(), |layer, at| layer.add(format!("many/{at}"), file(at)));
    let layer = many.build(64 << 10);
    server.serve(&layer);
    let image_len = |obstructed: bool| {
        let root = tempfile::tempdir().unwrap();
        let store = root.path().join("cache");
        fs::create_dir(&store).unwrap();
        if obstructed {
            std::os::unix::fs::symlink("/nowhere/file", store.join("probe-times")).unwrap();
        }
        // No other trial.
        let config = with_whole(WholeLayers::Asked);
        let node = Node::open_with(root.path(), &[server.url()], config).unwrap();
        let dir = node.show(&layer);
        assert!(is_erofs(&dir));
        compare(&layer, &dir);
        fs::metadata(store.join(layer.digest.hex()).join("erofs"))
            .unwrap()
            .len()
    };
    let (free, obstructed) = (image_len(false), image_len(true));
    match shown_here().contains(&ShortTimes::Own) {
        true => assert!(free + 300 * 32 < obstructed, "{free} {obstructed}"),
        false => assert_eq!(free, obstructed),
    }
}

/// Nobody waits for a local file's read-ahead but who wants it, so it is long also where requests are to be short; and what this
/// process answers is never more than a request at once.
#[test]
fn read_ahead_is_bounded_where_we_answer_and_long_where_we_do_not() {
    const ODD_KIB: u32 = 1036;
    let has = |kib: u32| {
        let devices = fs::read_dir("/sys/class/bdi")
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut erofs = devices.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("erofs-"));
        erofs
            .any(|path| fs::read_to_string(path.join("read_ahead_kb")).is_ok_and(|text| text.trim() == kib.to_string()))
    };
    let server = FakeServer::start();
    let layer = LayerBuilder::new()
        .add("f", Item::file(noise(1 << 20, 4)))
        .build(1 << 20);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let config = LazyConfig {
        kernel_readahead_kib: ODD_KIB,
        ..with_whole(WholeLayers::Direct)
    };
    let node = Node::open_with(root.path(), &[server.url()], config).unwrap();
    let dir = node.show(&layer);
    assert!(is_erofs(&dir) && !reads_directly(&dir) && !has(ODD_KIB));
    fs::read(dir.join("f")).unwrap();
    wait_until("the layer to be mounted anew", || reads_directly(&dir));
    assert!(has(ODD_KIB));
}

fn with_whole(whole_layers: WholeLayers) -> LazyConfig {
    LazyConfig {
        whole_layers,
        ..with(PresentationChoice::Erofs)
    }
}

pub fn quick_flush() -> LazyConfig {
    LazyConfig {
        flush_interval_ms: 20,
        ..with(PresentationChoice::Erofs)
    }
}

pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
