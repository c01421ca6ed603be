//! The tree without a kernel: any layer, every answer, against a model that is just a map of paths.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use headstart_shim::cache::{CacheDir, Found, Layer, LazyConfig};
use headstart_shim::contents::EncodedToc;
use headstart_shim::counters::Counters;
use headstart_shim::fetch::{ChunkSink, FetchConfig, Servers, VerifiedChunk};
use headstart_shim::fuse::attr::{Attr, FileKind};
use headstart_shim::fuse::node_id::Node;
use headstart_shim::fuse::tree_fs::{FsError, Lookup, TreeFs};
use proptest::prelude::*;

use crate::support::{Body, Item, LayerBuilder, TestLayer, What};

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-c]".prop_map(String::into_bytes),
        1 => proptest::collection::vec(prop_oneof![1u8..46, 48u8..=255], 1..12)
            .prop_filter("dots", |n| n != b"." && n != b".."),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    let piece = (0u64..9000, proptest::collection::vec(any::<u8>(), 1..9000));
    (proptest::collection::vec(piece, 0..3), 0u64..5000).prop_map(|(pieces, hole)| {
        let mut body = Body::default();
        for (gap, bytes) in pieces {
            let at = body.size + gap;
            body.size = at + bytes.len() as u64;
            body.pieces.push((at, bytes));
        }
        body.size += hole;
        body
    })
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        3 => any::<bool>().prop_map(|opaque| What::Dir { opaque, implied: false }),
        4 => body().prop_map(What::File),
        1 => "[a-z/]{1,20}".prop_map(|t| What::Symlink(t.into_bytes())),
        1 => (0u32..4096, 0u32..(1 << 20)).prop_map(|(a, b)| What::Char(a, b)),
        1 => (0u32..4096, 0u32..(1 << 20)).prop_map(|(a, b)| What::Block(a, b)),
        1 => Just(What::Fifo),
        1 => Just(What::Whiteout),
    ]
}

fn item() -> impl Strategy<Value = Item> {
    let xattrs = proptest::collection::btree_map(
        prop_oneof![
            "user\\.[a-z]{1,4}",
            "trusted\\.overlay\\.[a-z]{1,8}",
            Just("security.capability".to_owned())
        ]
        .prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..20),
        0..3,
    );
    let times = (-(1i64 << 33)..(1i64 << 33), 0u32..1_000_000_000);
    (what(), 0u16..0o10000, any::<u32>(), any::<u32>(), times, xattrs).prop_map(
        |(what, mode, uid, gid, mtime, xattrs)| Item {
            what,
            mode,
            uid,
            gid,
            mtime,
            xattrs,
        },
    )
}

/// Items at paths; an item below something that is not a directory is left out. Some files get a second name.
pub fn layer() -> impl Strategy<Value = LayerBuilder> {
    let path = proptest::collection::vec(name(), 1..4);
    let links = proptest::collection::vec((any::<prop::sample::Index>(), name()), 0..3);
    (proptest::collection::vec((path, item()), 0..25), links).prop_map(|(items, links)| {
        let mut builder = LayerBuilder::new();
        for (path, item) in items {
            let fits = (1..path.len())
                .all(|n| !matches!(builder.items.get(&path[..n].join(&b'/')), Some(i) if !matches!(i.what, What::Dir { .. })));
            let path = path.join(&b'/');
            if fits && !builder.items.contains_key(&path) {
                builder = builder.add(path, item);
            }
        }
        for (which, name) in links {
            let plain = |i: &Item| !matches!(i.what, What::Dir { .. } | What::Link(_));
            let targets: Vec<Vec<u8>> = builder.items.iter().filter(|(_, i)| plain(i)).map(|(p, _)| p.clone()).collect();
            if !targets.is_empty() && !builder.items.contains_key(&name) {
                builder = builder.add(name, Item::new(What::Link(which.get(&targets).clone())));
            }
        }
        builder
    })
}

pub struct Shown {
    pub tree: TreeFs,
    pub slot: u32,
    pub layer: Arc<Layer>,
    pub counters: Arc<Counters>,
    pub dir: tempfile::TempDir,
}

/// The layer in a tree, all its chunks in the cache; there is no server.
pub fn shown(runtime: &tokio::runtime::Runtime, layer: &TestLayer) -> Shown {
    let dir = tempfile::tempdir().unwrap();
    let (cache, _) = CacheDir::open(dir.path(), &LazyConfig::default(), &Arc::default()).unwrap();
    let stored = cache
        .admit(&layer.toc, &EncodedToc::new(layer.encoded.clone()))
        .unwrap();
    for chunk in layer.toc.chunks().iter() {
        let verified = VerifiedChunk::open(chunk, &layer.frames[&chunk.digest].0).unwrap();
        stored.file.put(verified).unwrap();
    }
    let servers = Servers::new(&["http://127.0.0.1:1".into()], &FetchConfig::default()).unwrap();
    let counters = Arc::new(Counters::default());
    let layer = Layer::new(stored, &servers, &LazyConfig::default(), &counters, runtime.handle());
    let tree = TreeFs::new(dir.path(), &counters);
    let (slot, layer) = (layer.slot(), Arc::new(layer));
    assert!(tree.add(Arc::clone(&layer)));
    Shown {
        tree,
        slot,
        layer,
        counters,
        dir,
    }
}

pub fn walk(tree: &TreeFs, path: &[u8], from: Node) -> Attr {
    let mut attr = tree.attr(from).unwrap();
    for part in path.split(|&b| b == b'/').filter(|p| !p.is_empty()) {
        attr = match tree.lookup(attr.node, part).unwrap() {
            Lookup::Found(attr) => attr,
            other => panic!("{path:?}: {other:?}"),
        };
    }
    attr
}

fn kind_of(what: &What) -> FileKind {
    match what {
        What::Dir { .. } => FileKind::Directory,
        What::File(_) => FileKind::Regular,
        What::Symlink(_) => FileKind::Symlink,
        What::Char(..) | What::Whiteout => FileKind::CharDevice,
        What::Block(..) => FileKind::BlockDevice,
        What::Fifo => FileKind::Fifo,
        What::Link(_) => unreachable!("resolved"),
    }
}

pub fn list(tree: &TreeFs, dir: Node, page: usize) -> Vec<(Vec<u8>, Attr)> {
    let (mut out, mut from) = (Vec::new(), 0);
    loop {
        let mut count = 0;
        tree.read_dir(dir, from, &mut |item| {
            if count == page {
                return false;
            }
            out.push((item.name.to_vec(), item.attr));
            from = item.next;
            count += 1;
            true
        })
        .unwrap();
        if count == 0 {
            return out;
        }
    }
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

/// `page`: names that are listed at once.
pub fn check(shown: &Shown, layer: &TestLayer, page: usize, reads: &[(u64, u32)]) {
    let (tree, root) = (&shown.tree, Node::layer_root(shown.slot));
    let items = &layer.items;
    let target = |path: &Vec<u8>| match &items[path].what {
        What::Link(target) => target.clone(),
        _ => path.clone(),
    };
    let mut names: BTreeMap<Vec<u8>, u32> = BTreeMap::new();
    for path in items.keys() {
        *names.entry(target(path)).or_default() += 1;
    }
    let mut nodes: BTreeMap<Vec<u8>, Node> = BTreeMap::new();
    for path in items.keys() {
        let item = &items[&target(path)];
        let attr = walk(tree, path, root);
        assert_eq!(
            *nodes.entry(target(path)).or_insert(attr.node),
            attr.node,
            "names of one inode share its id"
        );
        assert_eq!(attr.kind, kind_of(&item.what));
        assert_eq!((attr.mtime.secs, attr.mtime.nanos), item.mtime);
        let dir_children: BTreeSet<&[u8]> = items
            .keys()
            .filter(|p| !p.is_empty())
            .filter_map(|p| match p.iter().rposition(|&b| b == b'/') {
                Some(at) => (p[..at] == path[..]).then_some(&p[at + 1..]),
                None => path.is_empty().then_some(&p[..]),
            })
            .collect();
        let child = |name: &[u8]| {
            if path.is_empty() {
                name.to_vec()
            } else {
                [path, name].join(&b'/')
            }
        };
        match &item.what {
            What::Dir { implied, opaque } => {
                let subdirectories = dir_children
                    .iter()
                    .filter(|n| matches!(items[&child(n)].what, What::Dir { .. }))
                    .count() as u32;
                assert_eq!(attr.nlink, 2 + subdirectories);
                let expected = if *implied {
                    (0o755, 0, 0)
                } else {
                    (item.mode, item.uid, item.gid)
                };
                assert_eq!((attr.perm, attr.uid, attr.gid), expected);
                let listed = list(tree, attr.node, page);
                let listed_names: Vec<&[u8]> = listed[2..].iter().map(|(n, _)| n.as_slice()).collect();
                assert_eq!(listed_names, dir_children.iter().copied().collect::<Vec<_>>());
                assert_eq!((&listed[0].0[..], listed[0].1.node), (&b"."[..], attr.node));
                assert_eq!(&listed[1].0[..], b"..");
                for (name, entry) in &listed[2..] {
                    assert_eq!(Lookup::Found(*entry), tree.lookup(attr.node, name).unwrap());
                    if entry.kind == FileKind::Directory {
                        assert_eq!(tree.lookup(entry.node, b".."), Ok(Lookup::Found(attr)));
                    }
                }
                assert_eq!(tree.lookup(attr.node, b"no such name here"), Ok(Lookup::Absent));
                let shown_opaque = tree.xattr(attr.node, b"trusted.overlay.opaque");
                assert_eq!(
                    shown_opaque.is_ok(),
                    *opaque,
                    "opaque is shown if and only if the layer means it"
                );
            }
            what => {
                assert_eq!(attr.nlink, names[&target(path)]);
                assert_eq!((attr.uid, attr.gid), (item.uid, item.gid));
                assert_eq!(tree.lookup(attr.node, b"x"), Err(FsError::NotADirectory));
                match what {
                    What::File(body) => {
                        let bytes = body.bytes();
                        assert_eq!(attr.size, body.size);
                        for (offset, size) in reads {
                            let plan = tree.plan_read(attr.node, *offset, *size).unwrap();
                            let end = (offset + u64::from(*size)).min(body.size);
                            let expected = bytes.get(*offset as usize..end as usize).unwrap_or_default();
                            assert_eq!(plan.read_cached().unwrap().as_deref(), Some(expected));
                            // Whatever an earlier answer left there.
                            let mut used = vec![0xa5; expected.len() + 1];
                            assert!(plan.read_cached_into(&mut used).unwrap() && plan.answer(&used) == expected);
                            used.fill(0x5a);
                            // All of it was written just now.
                            assert_eq!(plan.read_now(&mut used).unwrap(), Found::Here);
                            assert!(plan.answer(&used) == expected);
                        }
                    }
                    What::Symlink(target) => assert_eq!(tree.readlink(attr.node).as_ref(), Ok(target)),
                    What::Whiteout => assert_eq!((attr.rdev, attr.perm), (0, 0)),
                    What::Char(major, minor) | What::Block(major, minor) => {
                        let device = rustix::fs::makedev(*major, *minor);
                        assert_eq!(
                            u64::from(attr.rdev),
                            device,
                            "small numbers encode alike in 32 and 64 bits"
                        );
                    }
                    _ => assert_eq!(attr.size, 0),
                }
            }
        }
        let visible: Vec<_> = item
            .xattrs
            .iter()
            .filter(|(n, _)| !n.starts_with(b"trusted."))
            .collect();
        for (name, value) in &visible {
            assert_eq!(tree.xattr(attr.node, name).as_ref(), Ok(*value));
        }
        let listed = tree.xattr_names(attr.node).unwrap();
        let listed: BTreeSet<&[u8]> = listed.split(|&b| b == 0).filter(|n| !n.is_empty()).collect();
        let mut expected: BTreeSet<&[u8]> = visible.iter().map(|(n, _)| n.as_slice()).collect();
        if matches!(item.what, What::Dir { opaque: true, .. }) {
            expected.insert(b"trusted.overlay.opaque");
        }
        assert_eq!(listed, expected);
        assert_eq!(tree.xattr(attr.node, b"user.absent"), Err(FsError::NoAttribute));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_the_models(
        layer in layer(),
        page in 1usize..6,
        reads in proptest::collection::vec((0u64..40_000, 0u32..40_000), 1..6),
    ) {
        let (runtime, layer) = (runtime(), layer.build(8192));
        let shown = shown(&runtime, &layer);
        check(&shown, &layer, page, &reads);
        assert_eq!(shown.counters.damaged_trees.get(), 0);
    }
}

#[test]
fn a_withdrawn_layer_is_stale_and_its_name_may_come_back_as_another() {
    let runtime = runtime();
    let layer = LayerBuilder::new().add("f", Item::file("x")).build(4096);
    let shown = shown(&runtime, &layer);
    let name = shown.slot.to_string();
    let node = walk(&shown.tree, b"f", Node::layer_root(shown.slot)).node;
    assert_eq!(list(&shown.tree, Node::Layers, 9)[2].0, name.as_bytes());
    assert!(shown.tree.remove(shown.slot));
    assert_eq!(shown.tree.attr(node), Err(FsError::Stale));
    assert_eq!(shown.tree.lookup(Node::Layers, name.as_bytes()), Ok(Lookup::AbsentNow));
    assert_eq!(shown.tree.lookup(Node::Layers, b"01"), Ok(Lookup::Absent));
    assert_eq!(list(&shown.tree, Node::Layers, 9).len(), 2);
}
