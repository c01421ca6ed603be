//! The tree as any process sees it, in a real mount.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use headstart_shim::layers::PresentationChoice;

use crate::support::{Body, FakeServer, Item, LayerBuilder, Node, TestLayer, What, noise};

/// A layer with everything a layer can have.
pub fn rich() -> LayerBuilder {
    let sparse = Body {
        size: 300_000,
        pieces: vec![(8_192, noise(5_000, 3)), (200_704, noise(70_000, 4))],
    };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    LayerBuilder::new()
        .add("", Item::dir().mode(0o751).owner(3, 4).mtime(1_234_567_890, 1))
        .add("bin", Item::dir())
        .add("bin/su", Item::file("setuid").mode(0o4755))
        .add(
            "bin/ping",
            Item::file("ping").mode(0o755).xattr("security.capability", &capability),
        )
        .add("bin/sh", Item::new(What::Symlink(b"su".to_vec())).mode(0o777))
        .add(
            "etc/passwd",
            Item::file("root:x:0:0\n").owner(0, 42).mtime(-5, 999_999_999),
        )
        .add("etc/empty", Item::file(""))
        .add(
            "etc/noted",
            Item::file("n")
                .xattr("user.note", b"\x00\xff binary")
                .xattr("user.z", b""),
        )
        .add(
            "etc/steered",
            Item::file("s").xattr("trusted.overlay.redirect", b"/etc/shadow"),
        )
        .add("big", Item::file(noise(3_000_000, 1)).mode(0o600))
        .add("big2", Item::new(What::Link(b"big".to_vec())))
        .add("d/big3", Item::new(What::Link(b"big".to_vec())))
        .add("sparse", Item::new(What::File(sparse)))
        .add(
            "hole",
            Item::new(What::File(Body {
                size: 1 << 20,
                pieces: vec![],
            })),
        )
        .add("dev/null", Item::new(What::Char(1, 3)).mode(0o666))
        .add("dev/loop", Item::new(What::Block(7, 300)).mode(0o660))
        .add("dev/pipe", Item::new(What::Fifo).mode(0o640))
        .add("gone", Item::new(What::Whiteout))
        .add(
            "opaque",
            Item::new(What::Dir {
                opaque: true,
                implied: false,
            })
            .mode(0o1777),
        )
        .add(b"na\xffme", Item::file("not utf-8"))
        .add([b'l'; 255], Item::file("long name"))
}

/// The same, and a file whose pieces begin anywhere.
pub fn ragged() -> LayerBuilder {
    let pieces = vec![(10_000, noise(5_000, 5)), (200_000, noise(70_000, 6))];
    rich().add("ragged", Item::new(What::File(Body { size: 300_000, pieces })))
}

fn at(dir: &Path, path: &[u8]) -> PathBuf {
    dir.join(OsStr::from_bytes(path))
}

/// Compares everything `stat`, `readlink`, `listxattr` and `read` can say with the layer's items.
pub fn compare(layer: &TestLayer, dir: &Path) {
    compare_items(&layer.items, dir);
}

pub fn compare_items(items: &BTreeMap<Vec<u8>, Item>, dir: &Path) {
    for (path, item) in items {
        let (file, target) = (
            at(dir, path),
            match &item.what {
                What::Link(target) => target,
                _ => path,
            },
        );
        let item = &items[target];
        let shown = String::from_utf8_lossy(path);
        let stat = fs::symlink_metadata(&file).unwrap_or_else(|e| panic!("{shown}: {e}"));
        // The time of a directory that the layer does not describe is nobody's statement.
        if !matches!(item.what, What::Dir { implied: true, .. }) {
            assert_eq!((stat.mtime(), stat.mtime_nsec() as u32), item.mtime, "{shown}");
        }
        let kind = stat.file_type();
        let mut mode = u32::from(item.mode);
        let mut owner = (item.uid, item.gid);
        match &item.what {
            What::Dir { implied, opaque } => {
                assert!(kind.is_dir(), "{shown}");
                if *implied {
                    (mode, owner) = (0o755, (0, 0));
                }
                let mark = xattr::get(&file, "trusted.overlay.opaque").unwrap();
                assert_eq!(mark.as_deref(), opaque.then_some(&b"y"[..]), "{shown}");
            }
            What::File(body) => {
                assert!(kind.is_file(), "{shown}");
                assert_eq!(stat.len(), body.size, "{shown}");
                assert!(
                    fs::read(&file).unwrap_or_else(|e| panic!("{shown}: {e}")) == body.bytes(),
                    "{shown}"
                );
            }
            What::Symlink(to) => {
                assert_eq!(fs::read_link(&file).unwrap().as_os_str().as_bytes(), to, "{shown}");
                assert_eq!(stat.len(), to.len() as u64, "{shown}");
            }
            What::Char(major, minor) | What::Block(major, minor) => {
                assert_eq!(kind.is_block_device(), matches!(item.what, What::Block(..)), "{shown}");
                assert_eq!(stat.rdev(), rustix::fs::makedev(*major, *minor), "{shown}");
            }
            What::Fifo => assert!(kind.is_fifo(), "{shown}"),
            What::Whiteout => {
                assert!(kind.is_char_device() && stat.rdev() == 0, "{shown}");
                mode = 0;
            }
            What::Link(_) => unreachable!("resolved"),
        }
        assert_eq!(
            (stat.mode() & 0o7777, (stat.uid(), stat.gid())),
            (mode, owner),
            "{shown}"
        );
        let links = items
            .iter()
            .filter(|(p, i)| *p == target || i.what == What::Link(target.clone()));
        if !kind.is_dir() {
            assert_eq!(stat.nlink(), links.count() as u64, "{shown}");
            assert_eq!(
                stat.ino(),
                fs::symlink_metadata(at(dir, target)).unwrap().ino(),
                "{shown}"
            );
        }
        let names: Vec<_> = xattr::list(&file)
            .unwrap()
            .filter(|n| n != "trusted.overlay.opaque")
            .collect();
        let visible: Vec<_> = item
            .xattrs
            .iter()
            .filter(|(n, _)| !n.starts_with(b"trusted."))
            .collect();
        assert_eq!(names.len(), visible.len(), "{shown}: {names:?}");
        for (name, value) in visible {
            let got = xattr::get(&file, OsStr::from_bytes(name)).unwrap();
            assert_eq!(got.as_ref(), Some(value), "{shown}");
        }
    }
    let count = count(dir);
    assert_eq!(count, items.len() - 1, "nothing but the layer's names");
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let below = if entry.file_type().unwrap().is_dir() {
                count(&entry.path())
            } else {
                0
            };
            1 + below
        })
        .sum()
}

#[test]
fn every_attribute_and_byte_is_the_layers() {
    let server = FakeServer::start();
    let layer = ragged().build(128 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    compare(&layer, &dir);
    // And again, from the kernel's caches and ours.
    let fetched = server.chunk_requests();
    compare(&layer, &dir);
    assert_eq!(server.chunk_requests(), fetched);
    assert!(!dir.join("gone/x").exists() && !dir.join("absent").exists());
    assert_eq!(node.counters().read_errors.get(), 0);
}

#[test]
fn the_mount_is_read_only_and_says_how_full_the_disk_is() {
    let server = FakeServer::start();
    let layer = rich().build(128 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    let read_only = |r: std::io::Result<()>| assert_eq!(r.unwrap_err().raw_os_error(), Some(libc::EROFS));
    read_only(fs::write(dir.join("new"), "x"));
    read_only(fs::remove_file(dir.join("bin/su")));
    read_only(fs::rename(dir.join("bin/su"), dir.join("su")));
    read_only(fs::create_dir(dir.join("bin/d")));
    read_only(fs::OpenOptions::new().append(true).open(dir.join("bin/su")).map(drop));
    let (mount, disk) = (
        rustix::fs::statvfs(&dir).unwrap(),
        rustix::fs::statvfs(root.path()).unwrap(),
    );
    // An image is a filesystem of its own, and says its own size; overlayfs says what the directory above it does.
    if crate::PRESENTATION == PresentationChoice::Fuse {
        assert_eq!((mount.f_blocks, mount.f_frsize), (disk.f_blocks, disk.f_frsize));
        assert_eq!(mount.f_files, layer.toc.tree().inodes().len() as u64);
    }
    let (bytes, inodes) = node.layers.usage(&layer.digest).unwrap();
    assert_eq!(inodes, layer.toc.tree().inodes().len() as u64);
    fs::read(dir.join("big")).unwrap();
    assert!(node.layers.usage(&layer.digest).unwrap().0 >= bytes + 3_000_000);
}

#[test]
fn any_part_of_a_file_can_be_read_in_any_order() {
    let server = FakeServer::start();
    let bytes = noise(5_000_000, 9);
    let layer = LayerBuilder::new().add("f", Item::file(bytes.clone())).build(64 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let path = node.show(&layer).join("f");
    let file = fs::File::open(&path).unwrap();
    let mut at = 77_777u64;
    for _ in 0..60 {
        at = (at * 6_364_136 + 1_442_695) % 4_990_000;
        let mut part = vec![0; 9_999];
        file.read_exact_at(&mut part, at).unwrap();
        assert!(part == bytes[at as usize..at as usize + 9_999], "{at}");
    }
    let mut file = file;
    file.seek(SeekFrom::End(-3)).unwrap();
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).unwrap();
    assert_eq!(tail, bytes[4_999_997..]);
}

#[test]
fn many_readers_of_a_cold_chunk_cause_one_fetch() {
    let server = FakeServer::start();
    let bytes = noise(60_000, 5);
    let layer = LayerBuilder::new().add("f", Item::file(bytes.clone())).build(64 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    server.latency(Duration::from_millis(300));
    let (barrier, bytes) = (Arc::new(Barrier::new(16)), Arc::new(bytes));
    let readers: Vec<_> = (0..16)
        .map(|i| {
            let (path, barrier, bytes) = (dir.join("f"), Arc::clone(&barrier), Arc::clone(&bytes));
            std::thread::spawn(move || {
                // Other parts of the file for half of them: other pages for the kernel, the same chunk for us.
                let file = fs::File::open(path).unwrap();
                let at = if i % 2 == 0 { 0 } else { 40_000 };
                barrier.wait();
                let mut part = vec![0; 1000];
                file.read_exact_at(&mut part, at).unwrap();
                assert!(part == bytes[at as usize..at as usize + 1000]);
            })
        })
        .collect();
    readers.into_iter().for_each(|r| r.join().unwrap());
    assert_eq!(server.chunk_requests(), 1);
}

#[test]
fn a_small_file_is_one_request_and_a_large_one_few() {
    let server = FakeServer::start();
    let layer = LayerBuilder::new()
        .add("a", Item::file(noise(700_000, 1)))
        .add("b", Item::file(noise(8_000_000, 2)))
        .build(64 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.show(&layer);
    let mut first = [0; 100];
    fs::File::open(dir.join("a")).unwrap().read_exact(&mut first).unwrap();
    assert_eq!(server.ranges().len(), 1, "all chunks of a small file in one Range");
    assert!(fs::read(dir.join("a")).unwrap() == noise(700_000, 1));
    assert_eq!(server.ranges().len(), 1);
    assert!(fs::read(dir.join("b")).unwrap() == noise(8_000_000, 2));
    let requests = server.ranges().len() - 1;
    let chunks = 8_000_000 / (64 << 10);
    assert!(
        requests < chunks / 2,
        "{requests} requests for {chunks} chunks read in order"
    );
    assert_eq!(
        node.counters().fetched_bytes.get(),
        layer.blob.len() as u64,
        "nothing twice"
    );
}
