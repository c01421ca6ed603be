//! Trees of any shape through a file and back, and files that are not what was written.

use std::collections::BTreeSet;
use std::path::PathBuf;

use headstart_layer_format::toc::{
    ChunkEntry, ChunkTable, Content, Entry, EntryId, Extent as TocExtent, Inode, Kind, Mtime, Name, SkeletonBuilder,
    Tree,
};
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, FileOffset};
use proptest::prelude::*;

use super::*;
use crate::fuse::attr::Attr;
use crate::fuse::directories::Directories;
use crate::fuse::node_id::Node;
use crate::fuse::xattrs::{is_opaque, plain_xattrs};

/// All extents lie in it.
const DATA_SIZE: u64 = 1 << 20;

/// Numbers that depend on a seed (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ (mixed >> 29)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        // Neither a slash nor a NUL.
        (0..len).map(|_| (self.below(200) + 50) as u8).collect()
    }
}

fn kind(n: &mut Numbers) -> Kind {
    match n.below(12) {
        0..3 => Kind::Directory {
            opaque: n.below(3) == 0,
            implied: n.below(3) == 0,
        },
        3..7 => Kind::Regular(Content::whole(LayerRange {
            start: LayerOffset(4096 * n.below(128)),
            len: n.below(DATA_SIZE / 2),
        })),
        7 => {
            // Most have a few extents, one in ten more than are looked at as a whole.
            let count = if n.below(10) == 0 { 1500 } else { n.below(6) };
            let (mut at, mut extents) = (0, Vec::new());
            for _ in 0..count {
                at += n.below(5000);
                let len = 1 + n.below(5000);
                extents.push(TocExtent {
                    offset: FileOffset(at),
                    range: range(4096 * n.below(128), len).unwrap(),
                });
                at += len;
            }
            Kind::Regular(Content::sparse(at + n.below(3), extents).unwrap())
        }
        8 => {
            let len = 1 + n.below(300);
            Kind::Symlink {
                target: n.bytes(len).into(),
            }
        }
        9 => Kind::CharDevice {
            major: 5,
            minor: 77_777,
        },
        10 => Kind::Fifo,
        _ => Kind::Whiteout,
    }
}

fn inode(n: &mut Numbers, kind: Kind, long: bool) -> Inode {
    let count = n.below(4);
    let names: BTreeSet<Vec<u8>> = (0..count)
        .map(|_| {
            let prefix: &[u8] = if n.below(3) == 0 { b"trusted." } else { b"user." };
            let len = 1 + n.below(12);
            [prefix, &n.bytes(len)].concat()
        })
        .collect();
    let xattrs = names.into_iter().map(|name| {
        let len = if long { 65_000 / (count + 1) } else { n.below(40) };
        Xattr {
            name: name.into(),
            value: n.bytes(len).into(),
        }
    });
    Inode {
        xattrs: xattrs.collect(),
        mode: n.below(0o10000) as u16,
        uid: n.next() as u32,
        gid: n.next() as u32,
        mtime: Mtime {
            secs: n.next().cast_signed(),
            nanos: n.below(1_000_000_000) as u32,
        },
        kind,
    }
}

/// A tree of about `size` names.
fn toc(seed: u64, size: usize) -> Toc {
    let mut n = Numbers(seed);
    let root = Kind::Directory {
        opaque: false,
        implied: n.below(2) == 0,
    };
    let mut inodes = vec![inode(&mut n, root, false)];
    let mut entries = vec![Entry {
        parent: EntryId::ROOT,
        name: Name::default(),
        inode: InodeId::ROOT,
    }];
    let mut at = 0;
    while at < entries.len() && entries.len() < size {
        let of = inodes[entries[at].inode.0 as usize].kind.clone();
        if matches!(of, Kind::Directory { .. }) {
            // Half of all names may be in one directory.
            let most = if n.below(4) == 0 { size as u64 / 2 } else { 12 };
            let count = match at {
                0 => size as u64 / 2,
                _ => n.below(most.max(2)),
            };
            let names: BTreeSet<Vec<u8>> = (0..count)
                .map(|_| {
                    let len = if n.below(50) == 0 { 255 } else { 1 + n.below(20) };
                    n.bytes(len)
                })
                .filter(|name| name != b"." && name != b"..")
                .collect();
            for name in names {
                let linked = InodeId(n.below(inodes.len() as u64) as u32);
                let is_link = n.below(10) == 0 && !matches!(inodes[linked.0 as usize].kind, Kind::Directory { .. });
                let inode = match is_link {
                    true => linked,
                    false => {
                        let (kind, long) = (kind(&mut n), n.below(200) == 0);
                        inodes.push(inode(&mut n, kind, long));
                        InodeId(inodes.len() as u32 - 1)
                    }
                };
                entries.push(Entry {
                    parent: EntryId(at as u32),
                    name: name.into(),
                    inode,
                });
            }
        }
        at += 1;
    }
    let mut skeleton = SkeletonBuilder::new().unwrap();
    skeleton.body(DATA_SIZE);
    let chunk = ChunkEntry {
        digest: ChunkDigest::of(b""),
        raw_len: DATA_SIZE as u32,
        frame_len: 1,
    };
    Toc::new(
        BlobDigest::of(&seed.to_le_bytes()),
        DiffId::of(b"tar"),
        Tree::new(entries, inodes).unwrap(),
        ChunkTable::new(vec![chunk]).unwrap(),
        skeleton.finish().unwrap(),
    )
    .unwrap()
}

fn digest(toc: &Toc) -> TocDigest {
    TocDigest::of(toc.layer_digest().to_string().as_bytes())
}

/// A tree's file, in a directory of its own.
struct Made {
    _dir: tempfile::TempDir,
    path: PathBuf,
    toc: Toc,
    bytes: Vec<u8>,
}

impl Made {
    fn of(toc: Toc) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tree");
        TreeFile::make(&path, &toc, &digest(&toc)).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        Self {
            _dir: dir,
            path,
            toc,
            bytes,
        }
    }

    fn open(&self) -> Result<TreeFile, TreeError> {
        TreeFile::open(&self.path, &digest(&self.toc), &Arc::default())
    }

    /// As it would be with these bytes on the disk: every answer is right, or there is an error.
    fn with(&self, bytes: &[u8]) -> Result<(), TreeError> {
        std::fs::write(&self.path, bytes).unwrap();
        compare(&self.open()?, &self.toc)
    }
}

/// Asks for everything; panics where an answer is not what the TOC says.
fn compare(file: &TreeFile, toc: &Toc) -> Result<(), TreeError> {
    let tree = toc.tree();
    let directories = Directories::of(tree);
    let node = Node::layer_root(9);
    for (id, inode) in (0..).map(InodeId).zip(tree.inodes()) {
        let record = file.inode(id)?.unwrap();
        assert_eq!(record.attr(node), Attr::of(node, inode, directories.nlink(tree, id)));
        assert_eq!(record.opaque, is_opaque(inode));
        assert_eq!(file.xattrs(&record)?, plain_xattrs(inode).cloned().collect::<Vec<_>>());
        let target = match &inode.kind {
            Kind::Symlink { target } => Some(target.to_vec()),
            _ => None,
        };
        assert_eq!(file.link(&record)?, target);
        match &inode.kind {
            Kind::Regular(content) => compare_content(file, &record, content)?,
            _ => assert!(file.extents(&record, 0, 1)?.is_none()),
        }
        let Some(entry) = directories.entry(id) else {
            assert_eq!(record.parent(), None);
            assert_eq!(file.lookup(&record, b"x")?, None);
            continue;
        };
        let parent = tree.entry(tree.entry(entry).unwrap().parent).unwrap().inode;
        assert_eq!(record.parent(), Some(parent));
        let children: Vec<&Entry> = tree.children(entry).map(|e| tree.entry(EntryId(e)).unwrap()).collect();
        for from in [0, 1, children.len() / 2, children.len(), children.len() + 1] {
            let mut left = children.iter().skip(from);
            file.list(&record, from as u64, &mut |name, inode, record| {
                let child = left.next().unwrap();
                assert_eq!((name, inode), (&*child.name, child.inode));
                let expected = tree.inode(inode).unwrap();
                assert_eq!(
                    record.attr(node),
                    Attr::of(node, expected, directories.nlink(tree, inode))
                );
                true
            })?;
            assert_eq!(left.len(), 0);
        }
        for child in &children {
            assert_eq!(file.lookup(&record, &child.name)?, Some(child.inode));
            let longer = [&child.name, &b"\x01"[..]].concat();
            let is_there = children.iter().any(|c| *c.name == longer[..]);
            assert_eq!(file.lookup(&record, &longer)?.is_some(), is_there);
        }
        assert_eq!(file.lookup(&record, b"")?, None);
        assert_eq!(file.lookup(&record, &[255; 255])?, None);
    }
    assert!(file.inode(InodeId(tree.inodes().len() as u32))?.is_none());
    assert!(file.inode(InodeId(u32::MAX))?.is_none());
    Ok(())
}

fn compare_content(file: &TreeFile, record: &Record, content: &Content) -> Result<(), TreeError> {
    let size = content.size();
    for (start, end) in [(0, size), (size / 3, size / 2), (size / 2, size / 2 + 1), (size, size)] {
        let found = file.extents(record, start, end)?.unwrap();
        let overlap = |e: &TocExtent| {
            let (from, to) = (e.offset.0.max(start), (e.offset.0 + e.range.len).min(end));
            let skipped = from.saturating_sub(e.offset.0);
            (from < to).then(|| (from, range(e.range.start.0 + skipped, to - from).unwrap()))
        };
        let touched: Vec<_> = content.extents().iter().filter_map(overlap).collect();
        assert_eq!(found.touched, touched);
        let is_near = content.extents().len() as u64 <= EXTENTS_NEAR;
        let near = content.extents().iter().filter(|e| is_near || overlap(e).is_some());
        assert_eq!(found.bodies, near.map(|e| e.range).collect::<Vec<_>>());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back(seed in any::<u64>(), size in 1usize..700) {
        let made = Made::of(toc(seed, size));
        compare(&made.open().unwrap(), &made.toc).unwrap();
        let memory = TreeFile::in_memory(&made.toc, &digest(&made.toc), &Arc::default()).unwrap();
        compare(&memory, &made.toc).unwrap();
    }
}

#[test]
fn a_tree_of_many_blocks_comes_back_through_few_in_memory() {
    let made = Made::of(toc(3, 40_000));
    let blocks: Arc<Blocks> = Arc::default();
    let file = TreeFile::open(&made.path, &digest(&made.toc), &blocks).unwrap();
    assert!(
        file.layout.name_blocks > 100 && file.layout.heap_len > 1 << 20,
        "{:?}",
        file.layout
    );
    compare(&file, &made.toc).unwrap();
}

/// The same bytes for the same TOC, in every version that says the same [`block`] form: raise that when this fails.
#[test]
fn the_form_has_a_name() {
    let made = Made::of(toc(1, 300));
    assert_eq!(format!("{:08x}", crc32fast::hash(&made.bytes)), "08332b4d");
}

/// In each block, and in every field of the first of each kind.
#[test]
fn no_damaged_byte_is_believed() {
    let made = Made::of(toc(8, 400));
    made.with(&made.bytes).unwrap();
    let mut n = Numbers(1);
    for block in 0..made.bytes.len() / BLOCK_LEN {
        let at = [0, 5, 9, 15, 16, 17, BLOCK_LEN - 1, n.below(BLOCK_LEN as u64) as usize];
        for at in at.map(|at| block * BLOCK_LEN + at) {
            let mut bytes = made.bytes.clone();
            bytes[at] ^= 1 << n.below(8);
            assert!(matches!(made.with(&bytes), Err(TreeError::Damaged)), "byte {at}");
        }
    }
}

#[test]
fn blocks_that_are_torn_swapped_or_of_another_tree_are_not_believed() {
    let (made, other) = (Made::of(toc(8, 400)), Made::of(toc(9, 400)));
    let blocks = made.bytes.len() / BLOCK_LEN;
    assert!(blocks > 8 && other.bytes.len() > 8 * BLOCK_LEN);
    let damaged = |bytes: &[u8], what: &str| {
        assert!(matches!(made.with(bytes), Err(TreeError::Damaged)), "{what}");
    };
    for block in 0..blocks {
        let (at, next) = (block * BLOCK_LEN, (block + 1) % blocks * BLOCK_LEN);
        let mut bytes = made.bytes.clone();
        bytes[at..at + BLOCK_LEN].fill(0);
        damaged(&bytes, "zeros");
        let mut bytes = made.bytes.clone();
        bytes[at..at + BLOCK_LEN].copy_from_slice(&made.bytes[next..next + BLOCK_LEN]);
        damaged(&bytes, "another block");
        let mut bytes = made.bytes.clone();
        if let Some(theirs) = other.bytes.get(at..at + BLOCK_LEN) {
            bytes[at..at + BLOCK_LEN].copy_from_slice(theirs);
            damaged(&bytes, "another tree's block");
        }
        damaged(&made.bytes[..at], "cut at a block");
        damaged(&made.bytes[..at + 100], "cut in a block");
    }
    damaged(&[&made.bytes[..], &[0; BLOCK_LEN]].concat(), "too long");
    damaged(&other.bytes, "another tree");
}

/// Of a file that is there when it is opened, and then is not.
#[test]
fn a_file_that_shrinks_is_an_error() {
    let made = Made::of(toc(8, 400));
    let file = made.open().unwrap();
    std::fs::File::options()
        .write(true)
        .open(&made.path)
        .unwrap()
        .set_len(5000)
        .unwrap();
    assert!(matches!(compare(&file, &made.toc), Err(TreeError::Damaged)));
}

/// Whoever can write right checksums can lie, but not end the process.
#[test]
fn what_is_in_a_block_may_be_anything() {
    let made = Made::of(toc(8, 400));
    let seal = Seal::of(&digest(&made.toc));
    let mut n = Numbers(2);
    let mut opened = 0;
    for _ in 0..400 {
        let mut bytes = made.bytes.clone();
        for _ in 0..3 {
            let number = n.below((bytes.len() / BLOCK_LEN) as u64) as usize;
            let place = number * BLOCK_LEN..(number + 1) * BLOCK_LEN;
            let old = Block::open(seal, number as u32, Box::new(bytes[place.clone()].try_into().unwrap())).unwrap();
            let mut body = old.body().to_vec();
            // All of it, or a byte.
            match n.below(3) {
                0 => body.fill_with(|| n.next() as u8),
                1 => body.fill(255),
                _ => body[n.below(80) as usize] ^= 1 << n.below(8),
            }
            let (first, count) = match n.below(4) {
                0 => (n.next() as u32, n.next() as u16),
                _ => (old.first(), old.count()),
            };
            bytes[place].copy_from_slice(Block::seal(seal, number as u32, first, count, &body).bytes());
        }
        std::fs::write(&made.path, &bytes).unwrap();
        if let Ok(file) = made.open() {
            opened += 1;
            ask_everything(&file);
        }
    }
    assert!(opened > 50, "{opened}");
}

fn ask_everything(file: &TreeFile) {
    for id in (0..500).map(InodeId) {
        let Ok(Some(record)) = file.inode(id) else { continue };
        let _ = record.attr(Node::layer_root(1));
        let _ = (file.xattrs(&record), file.link(&record), record.parent());
        let _ = file.lookup(&record, b"name");
        let _ = file.list(&record, 3, &mut |name, _, _| name.len() < 200);
        for (start, end) in [(0, u64::MAX), (5000, 6000), (record.size(), record.size())] {
            let _ = file.extents(&record, start, end);
        }
    }
}

#[test]
fn what_a_kill_left_is_written_over() {
    let made = Made::of(toc(8, 400));
    std::fs::remove_file(&made.path).unwrap();
    std::fs::write(made.path.with_extension("new"), &made.bytes[..9000]).unwrap();
    assert!(matches!(made.open(), Err(TreeError::Io(_))));
    TreeFile::make(&made.path, &made.toc, &digest(&made.toc)).unwrap();
    assert_eq!(std::fs::read(&made.path).unwrap(), made.bytes);
    compare(&made.open().unwrap(), &made.toc).unwrap();
}
