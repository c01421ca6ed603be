//! Arbitrary valid TOCs.
//!
//! In: proptest's choices. Out: a [`Toc`] with the tar and the data space it describes.
//! Invariant: canonical by construction (breadth first, children by name, inodes by first use), written without a look
//! at how the codec does it.

use std::collections::{BTreeMap, HashMap};

use headstart_layer_format::toc::{
    ChunkEntry, ChunkTable, Content, Entry, EntryId, Extent, Inode, InodeId, Kind, Mtime, Name, Skeleton,
    SkeletonBuilder, Tree, Xattr,
};
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, FileOffset, LayerOffset, LayerRange, Toc};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

/// A tar as literals and bodies, and what it becomes.
#[derive(Clone, Debug)]
pub struct Sample {
    pub toc: Toc,
    pub tar: Vec<u8>,
    pub data: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct RawNode {
    parent: usize,
    name: Vec<u8>,
    kind: u8,
    meta: (u16, u32, u32, i64, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Chooses a body, a link target, device numbers.
    choice: (usize, u32, u32),
}

fn raw_node() -> impl Strategy<Value = RawNode> {
    (
        any::<usize>(),
        vec(
            any::<u8>().prop_filter("a name's byte", |b| *b != 0 && *b != b'/'),
            1..12,
        ),
        0u8..10,
        (
            0u16..=0o7777,
            any::<u32>(),
            any::<u32>(),
            any::<i64>(),
            0u32..1_000_000_000,
        ),
        btree_map(vec(1u8.., 1..8), vec(any::<u8>(), 0..40), 0..3),
        (any::<usize>(), any::<u32>(), any::<u32>()),
    )
        .prop_map(|(parent, name, kind, meta, xattrs, choice)| RawNode {
            parent,
            name,
            kind,
            meta,
            xattrs,
            choice,
        })
}

/// Literals and bodies, in tar order, and the literals after the last body.
pub type TarParts = (Vec<(Vec<u8>, Vec<u8>)>, Vec<u8>);

pub fn tar_parts() -> impl Strategy<Value = TarParts> {
    let literal = || vec(any::<u8>(), 0..700);
    let body = prop_oneof![
        vec(any::<u8>(), 1..200),
        (1usize..20_000, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
        Just(vec![7; 4096]),
    ];
    (vec((literal(), body), 0..8), literal())
}

pub fn sample() -> impl Strategy<Value = Sample> {
    (
        tar_parts(),
        vec(raw_node(), 0..40),
        vec((1u32..9000, 1u32..9000), 1..8),
        any::<bool>(),
        any::<[u8; 32]>(),
    )
        .prop_map(|((parts, tail), nodes, cuts, long_digest, seed)| {
            let (skeleton, tar, data, bodies) = skeleton(&parts, &tail);
            let layer_digest = match long_digest {
                true => BlobDigest::Sha512([seed[0]; 64]),
                false => BlobDigest::Sha256(seed),
            };
            let (entries, inodes) = tree(&nodes, &bodies);
            let tree = Tree::new(entries, inodes).expect("a canonical tree");
            let toc = Toc::new(layer_digest, DiffId::of(&tar), tree, chunks(&data, &cuts), skeleton);
            Sample {
                toc: toc.expect("parts of one layer"),
                tar,
                data,
            }
        })
}

pub fn skeleton(parts: &[(Vec<u8>, Vec<u8>)], tail: &[u8]) -> (Skeleton, Vec<u8>, Vec<u8>, Vec<LayerRange>) {
    let mut builder = SkeletonBuilder::new().expect("an encoder");
    let (mut tar, mut data, mut bodies) = (Vec::new(), Vec::new(), Vec::new());
    for (literal, body) in parts {
        builder.literal(literal).expect("writing to memory");
        let range = builder.body(body.len() as u64);
        assert_eq!(range.start.0 as usize, data.len());
        data.extend_from_slice(body);
        data.resize(data.len().next_multiple_of(4096), 0);
        tar.extend_from_slice(literal);
        tar.extend_from_slice(body);
        bodies.push(range);
    }
    builder.literal(tail).expect("writing to memory");
    tar.extend_from_slice(tail);
    (builder.finish().expect("a skeleton"), tar, data, bodies)
}

/// Cuts the data space at sizes taken round robin.
pub fn chunks(data: &[u8], cuts: &[(u32, u32)]) -> ChunkTable {
    let mut rest = data;
    let mut entries = Vec::new();
    for &(raw, frame_len) in cuts.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (head, tail) = rest.split_at((raw as usize).min(rest.len()));
        entries.push(ChunkEntry {
            digest: ChunkDigest::of(head),
            raw_len: head.len() as u32,
            frame_len,
        });
        rest = tail;
    }
    ChunkTable::new(entries).expect("a partition")
}

struct Node {
    inode: Inode,
    children: BTreeMap<Vec<u8>, usize>,
}

fn tree(raw: &[RawNode], bodies: &[LayerRange]) -> (Vec<Entry>, Vec<Inode>) {
    let root = Node {
        inode: inode(
            (0o755, 0, 0, 0, 0),
            &BTreeMap::new(),
            Kind::Directory {
                opaque: false,
                implied: true,
            },
        ),
        children: BTreeMap::new(),
    };
    let (mut nodes, mut dirs, mut others) = (vec![root], vec![0], Vec::new());
    for r in raw {
        let parent = dirs[r.parent % dirs.len()];
        if r.name == b"." || r.name == b".." || nodes[parent].children.contains_key(&r.name) {
            continue;
        }
        // 9: another name for something that is there.
        if r.kind == 9 && !others.is_empty() {
            let target: usize = others[r.choice.0 % others.len()];
            nodes[parent].children.insert(r.name.clone(), target);
            continue;
        }
        let at = nodes.len();
        match r.kind {
            0 | 1 => dirs.push(at),
            _ => others.push(at),
        }
        nodes.push(Node {
            inode: inode(r.meta, &r.xattrs, kind(r, bodies)),
            children: BTreeMap::new(),
        });
        nodes[parent].children.insert(r.name.clone(), at);
    }
    number(&nodes)
}

fn number(nodes: &[Node]) -> (Vec<Entry>, Vec<Inode>) {
    let mut entries = vec![Entry {
        parent: EntryId::ROOT,
        name: Name::default(),
        inode: InodeId::ROOT,
    }];
    let mut inodes = vec![nodes[0].inode.clone()];
    let mut ids = HashMap::from([(0, InodeId::ROOT)]);
    let mut node_of_entry = vec![0];
    let mut at = 0;
    while at < entries.len() {
        for (name, &child) in &nodes[node_of_entry[at]].children {
            let id = *ids.entry(child).or_insert_with(|| {
                inodes.push(nodes[child].inode.clone());
                InodeId(inodes.len() as u32 - 1)
            });
            entries.push(Entry {
                parent: EntryId(at as u32),
                name: name.as_slice().into(),
                inode: id,
            });
            node_of_entry.push(child);
        }
        at += 1;
    }
    (entries, inodes)
}

fn inode(
    (mode, uid, gid, secs, nanos): (u16, u32, u32, i64, u32),
    xattrs: &BTreeMap<Vec<u8>, Vec<u8>>,
    kind: Kind,
) -> Inode {
    let xattr = |(name, value): (&Vec<u8>, &Vec<u8>)| Xattr {
        name: name.as_slice().into(),
        value: value.as_slice().into(),
    };
    Inode {
        mode,
        uid,
        gid,
        mtime: Mtime { secs, nanos },
        xattrs: xattrs.iter().map(xattr).collect(),
        kind,
    }
}

fn kind(r: &RawNode, bodies: &[LayerRange]) -> Kind {
    let (choice, a, b) = r.choice;
    match r.kind {
        0 => Kind::Directory {
            opaque: choice % 2 == 0,
            implied: false,
        },
        1 => Kind::Directory {
            opaque: false,
            implied: choice % 2 == 0,
        },
        2 => Kind::Symlink {
            target: r.name.as_slice().into(),
        },
        3 => Kind::CharDevice { major: a, minor: b },
        4 => Kind::BlockDevice { major: a, minor: b },
        5 => Kind::Fifo,
        6 => Kind::Whiteout,
        _ if bodies.is_empty() => Kind::Regular(Content::EMPTY),
        7 => Kind::Regular(Content::whole(bodies[choice % bodies.len()])),
        _ => Kind::Regular(sparse(
            bodies[choice % bodies.len()],
            u64::from(a % 10_000),
            u64::from(b % 10_000),
        )),
    }
}

/// A hole, the first half of a body, a hole, the other half, a hole.
fn sparse(body: LayerRange, hole: u64, tail: u64) -> Content {
    let half = body.len / 2;
    let extents = [(hole, 0, half), (2 * hole + half, half, body.len - half)]
        .into_iter()
        .filter(|(_, _, len)| *len > 0)
        .map(|(offset, from, len)| Extent {
            offset: FileOffset(offset),
            range: LayerRange {
                start: LayerOffset(body.start.0 + from),
                len,
            },
        });
    Content::sparse(2 * hole + body.len + tail, extents.collect()).expect("ordered extents")
}
