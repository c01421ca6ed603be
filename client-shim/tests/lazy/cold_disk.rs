//! Reads of what is on this node's disk and not in its memory.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;

use headstart_shim::layers::{LazyConfig, WholeLayers};
use rustix::fs::{Advice, fadvise};

use crate::support::node::lazy_config;
use crate::support::{Disk, FakeServer, Item, LayerBuilder, Node, noise};

const SIZE: usize = 16 << 20;
const READERS: usize = 8;
const PAGE: usize = 4096;
/// A disk may be so quick, and a machine so busy, that readers never meet.
const TRIES: usize = 20;

/// The kernel lets go of a file's pages.
fn forget(path: &Path) {
    let file = File::open(path).unwrap();
    fadvise(&file, 0, None, Advice::DontNeed).unwrap();
}

#[test]
fn readers_of_the_disk_do_not_wait_for_each_other_and_get_the_right_bytes() {
    let server = FakeServer::start();
    let dir = tempfile::tempdir().unwrap();
    // A filesystem that can tell what is in memory, and lets go of it.
    let disk = Disk::make(dir.path(), 64 << 20);
    // Not by the kernel alone, although all of it is here.
    let config = LazyConfig {
        whole_layers: WholeLayers::Asked,
        ..lazy_config()
    };
    let node = Node::open_with(&disk.at, &[server.url()], config).unwrap();
    let bytes = noise(SIZE, 1);
    let layer = LayerBuilder::new().add("f", Item::file(bytes.clone())).build(256 << 10);
    server.serve(&layer);
    let shown = node.show(&layer).join("f");
    assert!(std::fs::read(&shown).unwrap() == bytes);
    let data = disk.at.join("cache").join(layer.digest.hex()).join("data");
    File::open(&data).unwrap().sync_all().unwrap();
    let misses = node.counters().read_misses.get();
    for n in 0..TRIES {
        forget(&data);
        forget(&shown);
        thread::scope(|scope| {
            for reader in 0..READERS {
                let (bytes, shown) = (&bytes, &shown);
                scope.spawn(move || {
                    let file = File::open(shown).unwrap();
                    let mut page = vec![0; PAGE];
                    // Pages far apart, no two readers' the same.
                    for i in 0..64 {
                        let at = ((i * 61 + n) % 128 * READERS + reader) * 4 * PAGE % SIZE;
                        file.read_exact_at(&mut page, at as u64).unwrap();
                        assert!(page == bytes[at..at + PAGE], "at {at}");
                    }
                });
            }
        });
        if node.counters().reads_aside.get() > 0 {
            assert_eq!(node.counters().read_misses.get(), misses, "all of it was here");
            return;
        }
    }
    panic!("nobody was read for beside the others");
}
