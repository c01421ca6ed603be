//! Images of well-made layers: accepted by the tools and the kernel, and the same as the TOC and the FUSE tree say.

use std::fs;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use headstart_layer_format::Toc;
use headstart_shim::erofs::{ErofsError, ShortTimes};
use headstart_shim::layers::{LazyConfig, PresentationChoice};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::{Image, bytes, listing, mounted, shown_here};
use crate::mount::{compare, ragged, rich};
use crate::overlay::Overlay;
use crate::support::node::lazy_config;
use crate::support::{Body, FakeServer, Item, LayerBuilder, Node, TestLayer, What, noise};
use crate::tree;

fn sparse(size: u64, pieces: &[(u64, usize)]) -> Item {
    let pieces = pieces.iter().map(|&(at, len)| (at, noise(len, at + 1))).collect();
    Item::new(What::File(Body { size, pieces }))
}

#[test]
fn a_mounted_image_is_the_toc_and_the_fuse_tree() {
    let layer = rich()
        .add(
            "holes/tail",
            sparse(1 << 20, &[(0, 100), (8192, 4096), (65536, 70_001)]),
        )
        .add("holes/whole", sparse(8192 + 5, &[(0, 8192 + 5)]))
        .add("long", Item::new(What::Symlink(vec![b'l'; 4095])).mode(0o777))
        .add("block", Item::new(What::Symlink(vec![b'b'; 4032])).mode(0o777))
        .add("!first", Item::file("before the dots"))
        .add("-second", Item::file("too"))
        .add("..third", Item::file("after them"))
        .add("acl", Item::file("a").xattr("system.posix_acl_access", &acl()))
        .add(
            "labelled/a",
            Item::file("a")
                .xattr("security.selinux", b"label")
                .xattr("user.a", b"1"),
        )
        .add(
            "labelled/b",
            Item::file("b")
                .xattr("security.selinux", b"label")
                .xattr("user.a", b"2"),
        )
        .add("large", Item::file("v").xattr("user.large", &noise(60_000, 8)))
        .add("empty", Item::file(""))
        // One more of each than a short inode can say.
        .add("said/uid", Item::file("u").owner(65_536, 1))
        .add("said/gid", Item::file("g").owner(65_535, 65_536))
        .add("brief/ids", Item::file("i").owner(65_535, 65_535))
        .add("said/nanos", Item::file("n").mtime(1_700_000_000, 1))
        .add("brief/before", Item::file("b").mtime(1, 0))
        .add("brief/after", Item::new(What::Fifo).mtime(1_700_000_009, 0))
        .add("said/after", Item::file("a").mtime(1 << 33, 0))
        .build(128 << 10);
    for short in shown_here() {
        is_the_toc_and_the_fuse_tree(&layer, short);
    }
}

fn is_the_toc_and_the_fuse_tree(layer: &Arc<TestLayer>, short: ShortTimes) {
    let (image, dir) = mounted(layer, short);
    compare(layer, &dir);

    let server = FakeServer::start();
    server.serve(layer);
    let root = tempfile::tempdir().unwrap();
    let config = LazyConfig {
        presentation: PresentationChoice::Fuse,
        ..lazy_config()
    };
    let node = Node::open_with(root.path(), &[server.url()], config).unwrap();
    let (ours, fuse) = (listing(&dir), listing(&node.show(layer)));
    assert_eq!(ours.len(), layer.items.len());
    for (path, line) in &fuse {
        assert_eq!(ours.get(path), Some(line), "{}", String::from_utf8_lossy(path));
    }
    assert_eq!(
        bytes(&layer.toc, short).unwrap(),
        fs::read(image.path()).unwrap(),
        "twice the same"
    );
    let said = image.tool("dump.erofs", &["-s"]);
    assert!(said.contains("sb_csum") && said.contains("mtime"), "{said}");
    assert!(
        said.contains(&format!(
            "inode count:                       {}",
            layer.toc.tree().inodes().len()
        )),
        "{said}"
    );
}

/// `user::rw-,user:1:r--,group::r--,mask::r--,other::r--` as the kernel keeps it.
fn acl() -> Vec<u8> {
    let entry =
        |tag: u16, perm: u16, id: u32| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    let none = u32::MAX;
    let entries = [(1, 6, none), (2, 4, 1), (4, 4, none), (0x10, 4, none), (0x20, 4, none)];
    let mut out = 2u32.to_le_bytes().to_vec();
    entries
        .iter()
        .for_each(|&(tag, perm, id)| out.extend(entry(tag, perm, id)));
    out
}

/// Cold, every block of an image is a read of its own, so what a small file takes of it is what opening many costs.
#[test]
fn a_small_file_takes_32_bytes_and_its_name() {
    const FILES: i64 = 2000;
    const NAME: i64 = 12 + 8;
    // As packages leave them: most of the times differ.
    let file = |at: i64| Item::file(format!("{at}")).mtime(1_600_000_000 + at * 977, 0);
    let layer = (0..FILES).fold(LayerBuilder::new(), |layer, at| {
        layer.add(format!("d/file{at:04}"), file(at))
    });
    let layer = layer.build(64 << 10);
    let len = |short| bytes(&layer.toc, short).unwrap().len() as i64;
    // The superblock's block, and what is left over in the last of each area.
    let around = 4 * 4096;
    let is_about = |len: i64, inode: i64| ((inode + NAME) * FILES..(inode + NAME) * FILES + around).contains(&len);
    assert!(is_about(len(ShortTimes::Own), 32), "{}", len(ShortTimes::Own));
    // With times that only a long one can say: it is still found without an index.
    assert!(is_about(len(ShortTimes::Common), 64), "{}", len(ShortTimes::Common));
}

#[test]
fn twenty_thousand_names_in_one_directory_are_all_found() {
    let mut builder = LayerBuilder::new();
    for i in 0..20_000u32 {
        // Of all lengths, so that blocks end everywhere.
        let name = format!("many/{i:05}{}", "x".repeat(i as usize * 7 % 250));
        builder = builder.add(name, Item::new(What::Fifo).owner(i, 0));
    }
    let layer = builder.build(4096);
    let (_image, dir) = mounted(&layer, ShortTimes::Common);
    let listed: Vec<_> = fs::read_dir(dir.join("many"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(listed.len(), 20_000);
    for (path, item) in layer.items.iter().filter(|(_, i)| i.what == What::Fifo) {
        let path = std::str::from_utf8(path).unwrap();
        assert_eq!(fs::symlink_metadata(dir.join(path)).unwrap().uid(), item.uid);
        assert!(fs::symlink_metadata(dir.join(format!("{path}y"))).is_err());
    }
}

#[test]
fn a_file_of_more_than_four_gibibytes_is_read_where_it_has_bytes() {
    const GIB: u64 = 1 << 30;
    let pieces = [(0, 65_536), (4 * GIB + 65_536, 65_536), (6 * GIB, 9_000)];
    let layer = LayerBuilder::new()
        .add("fine", sparse(6 * GIB + 20_000, &pieces))
        .add("coarse", sparse(7 * GIB + 1, &[(5 * GIB, 3_000)]))
        .add("nothing", sparse((1 << 43) + 1, &[]))
        .build(64 << 10);
    let mut image = Image::of(&layer, ShortTimes::Common).unwrap();
    // Without --extract, which would read terabytes of zeros.
    image.tool("fsck.erofs", &[]);
    let dir = image.mount();
    for (name, pieces) in [("fine", &pieces[..]), ("coarse", &[(5 * GIB, 3_000)]), ("nothing", &[])] {
        let mut file = fs::File::open(dir.join(name)).unwrap();
        let size = file.seek(SeekFrom::End(0)).unwrap();
        let read = |at: u64| {
            let mut part = vec![1; 8192.min(size.saturating_sub(at)) as usize];
            file.read_exact_at(&mut part, at).unwrap();
            part
        };
        for &(at, len) in pieces {
            let mut expected = noise(len, at + 1);
            let mut got = read(at);
            expected.resize(got.len().max(len), 0);
            got.truncate(expected.len());
            assert!(got == expected[..got.len()], "{name} at {at}");
            assert!(read(at + 65_536).iter().all(|b| *b == 0), "{name} behind {at}");
        }
        assert!(read(GIB).iter().chain(&read(size - 1)).all(|b| *b == 0), "{name}");
    }
}

#[test]
fn overlayfs_takes_whiteouts_and_opaque_directories_from_an_image() {
    let bottom = LayerBuilder::new()
        .add("etc/a", Item::file("bottom a"))
        .add("etc/b", Item::file("bottom b").mode(0o640).owner(5, 6))
        .add("var/x", Item::file("bottom x"))
        .build(4096);
    let opaque = What::Dir {
        opaque: true,
        implied: false,
    };
    let top = LayerBuilder::new()
        .add("etc/a", Item::new(What::Whiteout))
        .add("etc/c", Item::file("top c"))
        .add("var", Item::new(opaque).mode(0o700))
        .add("var/z", Item::file("top z"))
        .build(4096);
    let [(_top, top), (_bottom, bottom)] = [top, bottom].map(|layer| mounted(&layer, ShortTimes::Common));
    let scratch = tempfile::tempdir().unwrap();
    let overlay = Overlay::new(scratch.path(), &[top, bottom]);
    let names = |path: &str| {
        let mut names: Vec<_> = fs::read_dir(overlay.at(path))
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("etc"), ["b", "c"]);
    assert!(!overlay.at("etc/a").exists());
    assert_eq!(names("var"), ["z"]);
    fs::write(overlay.at("etc/b"), "new b").unwrap();
    let copied = fs::metadata(overlay.at("etc/b")).unwrap();
    assert_eq!((copied.mode() & 0o7777, copied.uid(), copied.gid()), (0o640, 5, 6));
    fs::write(overlay.at("etc/a"), "new a").unwrap();
    assert_eq!(names("etc"), ["a", "b", "c"]);
}

#[test]
fn any_tree_is_shown_as_the_toc_says() {
    let config = Config {
        cases: 48,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner
        .run(&tree::layer(), |mut builder| {
            builder.items.values_mut().for_each(storable);
            let layer = builder.build(8192);
            for short in shown_here() {
                let (_image, dir) = mounted(&layer, short);
                compare(&layer, &dir);
            }
            Ok(())
        })
        .unwrap();
}

/// Pieces of files begin with blocks; attributes are ones that this kernel gives back for such a file.
fn storable(item: &mut Item) {
    match &mut item.what {
        What::File(body) => {
            let mut end = 0u64;
            for (at, bytes) in &mut body.pieces {
                *at = (*at).max(end).next_multiple_of(4096);
                end = *at + bytes.len() as u64;
            }
            body.size = body.size.max(end);
        }
        What::Dir { .. } => {}
        _ => item.xattrs.retain(|name, _| !name.starts_with(b"user.")),
    }
    if let Some(value) = item.xattrs.get_mut(&b"security.capability"[..]) {
        *value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec();
    }
}

#[test]
fn a_file_whose_pieces_are_not_blocks_is_refused() {
    let bytes = |toc: &Toc| bytes(toc, ShortTimes::Own);
    let refused = bytes(&ragged().build(128 << 10).toc);
    assert!(matches!(refused, Err(ErofsError::Unsupported(_))), "{refused:?}");
    let too_long = LayerBuilder::new()
        .add("f", Item::file("f").xattr("user.v", &[0; 65536]))
        .build(4096);
    assert!(matches!(bytes(&too_long.toc), Err(ErofsError::Unsupported(_))));
    // 40 GiB of which one block makes every block an index of its own.
    let fine = LayerBuilder::new()
        .add("f", sparse(40 << 30, &[(4096, 10)]))
        .build(4096);
    assert!(matches!(bytes(&fine.toc), Err(ErofsError::OverLimit { .. })));
}
