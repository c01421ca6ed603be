//! Whole layers that the kernel reads by itself: how many may be, which are not, and what goes when there is no room.

use std::fs;
use std::time::Duration;

use headstart_shim::layers::{LazyConfig, WholeLayers};

use crate::presentation::{quick_flush, reads_directly, wait_until};
use crate::support::{FakeServer, Item, LayerBuilder, Node, noise};
use crate::upkeep::read_anew;

/// What the kernel reads by itself cannot be given back, so with a cap it is not all there is.
#[test]
fn a_cap_bounds_what_is_read_without_us_and_the_rest_can_go() {
    const LEN: usize = 1 << 20;
    let server = FakeServer::start();
    let file = |seed| LayerBuilder::new().add("f", Item::file(noise(LEN, seed)));
    let layers: Vec<_> = (0..3).map(|seed| file(seed).build(64 << 10)).collect();
    layers.iter().for_each(|l| server.serve(l));
    let size = layers[0].toc.chunks().data_size();
    let root = tempfile::tempdir().unwrap();
    let config = LazyConfig {
        whole_layers: WholeLayers::Direct,
        // 60 % of it are one layer and a half.
        cache_bytes_max: size * 5 / 2,
        ..quick_flush()
    };
    let node = Node::open_with(root.path(), &[server.url()], config.clone()).unwrap();
    let third = layers[2].digest;
    node.layers.in_use().set(move || [third].into());
    let dirs: Vec<_> = layers.iter().map(|l| node.show(l)).collect();
    let is_right = |i: usize| read_anew(&dirs[i].join("f")).unwrap() == noise(LEN, i as u64);
    let lent = |node: &Node| node.layers.status().lent_bytes;
    assert_eq!(lent(&node), 0);
    assert!(is_right(0));
    wait_until("the first to be lent", || reads_directly(&dirs[0]));
    assert_eq!(lent(&node), size);
    assert!(is_right(1));
    node.until(&layers[1].digest, "as whole as the first", |l| l.verified);
    // Some rounds of the flush, which tries.
    std::thread::sleep(Duration::from_millis(300));
    assert!(!reads_directly(&dirs[1]), "it does not fit");
    assert_eq!(lent(&node), size);
    assert!(is_right(0) && is_right(1));

    assert!(is_right(2));
    node.until(&layers[1].digest, "given back in part", |l| l.chunks_present < l.chunks);
    node.until(&layers[0].digest, "still whole", |l| l.chunks_present == l.chunks);
    assert!((0..3).all(is_right));
    node.stop();

    let node = Node::open_with(root.path(), &[server.url()], config).unwrap();
    assert_eq!(lent(&node), size, "in this boot it stays lent, and counts");
    assert!(reads_directly(&dirs[0]) && !reads_directly(&dirs[1]));
    assert!((0..3).all(is_right));
    node.release(&layers[0].digest);
    wait_until("one of the others to have its place", || {
        assert!(is_right(1) && is_right(2));
        lent(&node) == size
    });
    node.release(&layers[1].digest);
    node.release(&layers[2].digest);
    assert_eq!((lent(&node), node.counters().read_errors.get()), (0, 0));
}

/// What the kernel did not take is not lent: it can go, and another layer has its place.
#[test]
fn a_layer_that_the_kernel_refuses_is_not_lent() {
    const LEN: usize = 1 << 20;
    let server = FakeServer::start();
    let file = |seed| LayerBuilder::new().add("f", Item::file(noise(LEN, seed)));
    let layers: Vec<_> = (0..3).map(|seed| file(seed).build(64 << 10)).collect();
    layers.iter().for_each(|l| server.serve(l));
    let size = layers[0].toc.chunks().data_size();
    let root = tempfile::tempdir().unwrap();
    let config = LazyConfig {
        whole_layers: WholeLayers::Direct,
        // One is lent and no more; two are kept.
        cache_bytes_max: size * 5 / 2,
        ..quick_flush()
    };
    let node = Node::open_with(root.path(), &[server.url()], config).unwrap();
    let others = layers[1..].iter().map(|l| l.digest).collect::<Vec<_>>();
    node.layers.in_use().set(move || others.iter().copied().collect());
    let dirs: Vec<_> = layers.iter().map(|l| node.show(l)).collect();
    let is_right = |i: usize| read_anew(&dirs[i].join("f")).unwrap() == noise(LEN, i as u64);
    // Another file, as the one that is mounted must stay as it is.
    let image = root.path().join("cache").join(layers[0].digest.hex()).join("erofs");
    fs::write(image.with_extension("bad"), [0; 8192]).unwrap();
    fs::rename(image.with_extension("bad"), &image).unwrap();
    assert!(is_right(0));
    node.until(&layers[0].digest, "all of it is here, and right", |l| l.verified);
    // Some rounds of the flush, which tries.
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_right(0) && !reads_directly(&dirs[0]));
    assert!(is_right(1));
    wait_until("the second to be lent", || reads_directly(&dirs[1]));
    assert_eq!(node.layers.status().lent_bytes, size);
    assert!(is_right(2));
    node.until(&layers[0].digest, "given back in part", |l| l.chunks_present < l.chunks);
    assert!((0..3).all(is_right));
    assert!(
        !root
            .path()
            .join("cache")
            .join(layers[0].digest.hex())
            .join("lent")
            .exists()
    );
}
