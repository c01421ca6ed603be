//! Synthetic layers straight into a store, and copies of its directory.
//!
//! In: numbers. Out: published layers whose chunks are functions of those numbers.
//! Invariant: a chunk of one number has the same bytes in every layer.
//! Not here: a server.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::{Path, PathBuf};

use headstart_layer_format::toc::{
    ChunkEntry, ChunkTable, Entry, EntryId, Inode, InodeId, Kind, Mtime, Name, SkeletonBuilder, Tree,
};
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, Toc};
use headstart_server::store::Store;

pub fn chunk_bytes(n: u32) -> Vec<u8> {
    (0..1024u32)
        .flat_map(|i| (i.wrapping_mul(n.wrapping_add(77)) ^ n).to_le_bytes())
        .collect()
}

pub fn put_chunk(store: &Store, raw: &[u8]) -> ChunkEntry {
    let digest = ChunkDigest::of(raw);
    let frame = zstd::bulk::compress(raw, 3).unwrap();
    let (frame_len, _) = store.append_chunk(&digest, raw.len() as u32, &frame).unwrap();
    ChunkEntry {
        digest,
        raw_len: raw.len() as u32,
        frame_len,
    }
}

/// A layer of one directory whose data space is the given chunks.
pub fn toc_of(layer: &BlobDigest, chunks: Vec<ChunkEntry>) -> Toc {
    let mut skeleton = SkeletonBuilder::new().unwrap();
    skeleton.literal(&[0; 1024]).unwrap();
    skeleton.body(chunks.iter().map(|c| u64::from(c.raw_len)).sum());
    let root = Inode {
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: Mtime::default(),
        xattrs: Vec::new(),
        kind: Kind::Directory {
            opaque: false,
            implied: true,
        },
    };
    let entry = Entry {
        parent: EntryId::ROOT,
        name: Name::default(),
        inode: InodeId::ROOT,
    };
    let tree = Tree::new(vec![entry], vec![root]).unwrap();
    let diff_id = DiffId::of(layer.to_string().as_bytes());
    Toc::new(
        *layer,
        diff_id,
        tree,
        ChunkTable::new(chunks).unwrap(),
        skeleton.finish().unwrap(),
    )
    .unwrap()
}

pub fn publish(store: &Store, name: &str, chunks: std::ops::Range<u32>) -> (BlobDigest, Toc) {
    let layer = BlobDigest::of(name.as_bytes());
    let entries = chunks.map(|n| put_chunk(store, &chunk_bytes(n))).collect();
    let toc = toc_of(&layer, entries);
    store.publish_layer(&layer, &toc).unwrap();
    (layer, toc)
}

pub fn assert_ready(store: &Store, layer: &BlobDigest) {
    let (summary, bytes) = store.toc(layer).unwrap().expect("a TOC");
    assert_eq!(Toc::digest(&bytes), summary.digest);
    let toc = Toc::decode(&bytes).unwrap();
    assert_eq!(toc.layer_digest(), layer);
    for c in toc.chunks().entries() {
        let frame = store.read_chunk(&c.digest).unwrap().expect("a chunk");
        let raw = zstd::bulk::decompress(&frame, c.raw_len as usize).unwrap();
        assert_eq!(ChunkDigest::of(&raw), c.digest);
    }
}

pub fn packs(dir: &Path) -> Vec<PathBuf> {
    let mut out: Vec<_> = std::fs::read_dir(dir.join("packs"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    out.sort();
    out
}

pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    copy_below(from, to);
}

/// The same into a directory that is there.
pub fn copy_below(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
