//! What must hold for any bytes at all: entry points for fuzzers.
//!
//! In: bytes from a fuzzer or a mutation harness. Out: whether they were accepted; a panic if a property of the format
//! was broken. Invariant: pure functions of their input, bounded in time and memory by its length.
//! Not here: making inputs (`server/tests/fuzz`, `fuzz/`), examples (`tests/`).

use std::io::Read;
use std::sync::OnceLock;

use crate::chunk_stream::{ChunkHeader, ChunkStatus, HEADER_LEN};
use crate::digest::ChunkDigest;
use crate::limits::{FRAME_SIZE_MAX, PROFILE_CHUNKS_MAX};
use crate::offset::{LayerOffset, LayerRange};
use crate::profile::{Have, Profile, ProfileRequest, Run};
use crate::toc::{EntryId, Kind, Piece, TOC_MAGIC, TOC_VERSION, Toc};

/// A frame of some kilobytes may hold all the metadata that the format allows. That bound is the format's own
/// (`META_SIZE_MAX`, `tests/hostile.rs`), and would only slow a fuzzer down.
const META_MAX: u64 = 8 << 20;
/// Paths of a tree that are written out.
const VIEW_MAX: usize = 1 << 20;
/// Literals that [`toc_metadata`] puts behind the metadata: zeros.
const LITERALS: usize = 1 << 20;

/// Bytes taken for an encoded TOC.
pub fn toc(data: &[u8]) -> bool {
    let meta_size = data
        .get(8..16)
        .map(|n| n.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)));
    if meta_size.is_none_or(|n| n > META_MAX) {
        return false;
    }
    let Ok(toc) = Toc::decode(data) else { return false };
    check(&toc);
    true
}

/// Bytes taken for the metadata of a TOC: what a fuzzer does to them is not hidden by compression.
pub fn toc_metadata(data: &[u8]) -> bool {
    if data.len() as u64 > META_MAX {
        return false;
    }
    static SKELETON: OnceLock<Vec<u8>> = OnceLock::new();
    let skeleton = SKELETON.get_or_init(|| compressed(&vec![0; LITERALS]));
    let Ok(toc) = Toc::decode(&framed(data, LITERALS as u64, skeleton)) else {
        return false;
    };
    // One value has one encoding: what was accepted is what would be written.
    assert_eq!(metadata(&check(&toc)), data, "an accepted TOC is not canonical");
    true
}

/// Bytes taken for an answer of `POST chunks`.
pub fn chunk_stream(data: &[u8]) -> bool {
    let mut rest = data;
    let mut accepted = false;
    while let Some((head, behind)) = rest.split_first_chunk::<HEADER_LEN>() {
        anything_encodes(head);
        let Ok(header) = ChunkHeader::decode(head) else { break };
        accepted = true;
        assert_eq!(header.encode(), *head, "a header has two forms");
        let len = match header.status {
            ChunkStatus::Found { frame_len } => frame_len,
            ChunkStatus::Missing => 0,
        };
        assert!(len <= FRAME_SIZE_MAX);
        let Some(behind) = behind.get(len as usize..) else {
            break;
        };
        rest = behind;
    }
    accepted
}

/// Any header that a server could want to write is read as it was meant.
fn anything_encodes(head: &[u8; HEADER_LEN]) {
    let mut digest = [0; 32];
    digest.copy_from_slice(&head[..32]);
    let frame_len = u32::from_le_bytes([head[36], head[37], head[38], head[39]]) % FRAME_SIZE_MAX + 1;
    for status in [ChunkStatus::Found { frame_len }, ChunkStatus::Missing] {
        let digest = ChunkDigest::from_bytes(digest);
        let header = ChunkHeader { digest, status };
        assert_eq!(ChunkHeader::decode(&header.encode()), Ok(header));
    }
}

/// JSON taken for what nodes and servers say of a profile: a profile, or a request for what a node lacks of one.
pub fn profile(data: &[u8]) -> bool {
    if let Ok(request) = serde_json::from_slice::<ProfileRequest>(data) {
        let written = serde_json::to_vec(&request).expect("a request can be written");
        assert_eq!(serde_json::from_slice(&written).ok(), Some(request.clone()));
        let had = (0..PROFILE_CHUNKS_MAX).filter(|at| request.have.has(*at));
        let again = Have::of(had);
        assert!((0..2 * PROFILE_CHUNKS_MAX).all(|at| again.has(at) == request.have.has(at)));
        return true;
    }
    let Ok(profile) = serde_json::from_slice::<Profile>(data) else {
        return false;
    };
    let written = serde_json::to_vec(&profile).expect("a profile can be written");
    assert_eq!(serde_json::from_slice(&written).ok(), Some(profile.clone()));
    let positions: Vec<_> = profile.positions().collect();
    // The last index of all is one that no table has.
    let indices = |run: &Run| {
        (u64::from(run.first)..u64::from(run.first) + u64::from(run.count)).take_while(|i| *i < u64::from(u32::MAX))
    };
    let each = profile
        .runs
        .iter()
        .flat_map(|run| indices(run).map(|index| (run.layer, index)));
    let counted = positions.iter().map(|(layer, index)| (*layer, u64::from(*index)));
    assert!(
        counted.eq(each.take(PROFILE_CHUNKS_MAX)),
        "runs are counted in two ways"
    );
    !positions.is_empty()
}

fn compressed(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).expect("compressing memory into memory does not fail")
}

fn framed(meta: &[u8], skeleton_size: u64, skeleton: &[u8]) -> Vec<u8> {
    let frame = compressed(meta);
    let mut out = TOC_MAGIC.to_vec();
    out.push(TOC_VERSION);
    for n in [
        meta.len() as u64,
        frame.len() as u64,
        skeleton_size,
        skeleton.len() as u64,
    ] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend_from_slice(&frame);
    out.extend_from_slice(skeleton);
    out
}

/// The metadata section of an encoded TOC.
fn metadata(encoded: &[u8]) -> Vec<u8> {
    let len = encoded[16..24].iter().rev().fold(0, |n, &b| n << 8 | usize::from(b));
    zstd::stream::decode_all(&encoded[40..40 + len]).expect("what was just encoded")
}

/// What is true of every TOC that exists. Returns its encoding.
pub fn check(toc: &Toc) -> Vec<u8> {
    let encoded = toc.encode().expect("a TOC that exists can be encoded");
    assert_eq!(Toc::decode(&encoded).as_ref(), Ok(toc), "decode(encode(t)) != t");
    check_chunks(toc);
    check_skeleton(toc);
    check_tree(toc);
    encoded
}

fn check_chunks(toc: &Toc) {
    let table = toc.chunks();
    let (mut layer, mut blob) = (0, 0);
    for c in table.iter() {
        assert_eq!(
            (c.range.start.0, c.frame.start.0),
            (layer, blob),
            "a gap between chunks"
        );
        assert!(c.range.len > 0 && c.frame.len > 0);
        (layer, blob) = (c.range.end().0, c.frame.end().0);
        assert_eq!(table.covering(c.range), c.index..c.index + 1);
        assert_eq!(table.covering_frames(c.frame), c.index..c.index + 1);
    }
    assert_eq!((layer, blob), (table.data_size(), table.blob_size()));
    assert_eq!(layer, toc.skeleton().data_size());
    let all = LayerRange {
        start: LayerOffset(0),
        len: u64::MAX,
    };
    assert_eq!(table.frames(table.covering(all)).len, blob);
}

fn check_skeleton(toc: &Toc) {
    let skeleton = toc.skeleton();
    let mut data = LayerOffset(0);
    let mut size = 0;
    for piece in skeleton.pieces() {
        size += match piece {
            Piece::Literal { len } => len,
            Piece::Body(range) => {
                assert_eq!(range.start, data, "a body is not where the one before ends");
                data = range.end().align_up();
                range.len
            }
        };
    }
    assert_eq!((size, data.0), (skeleton.tar_size(), skeleton.data_size()));
    if let Ok(literals) = skeleton.literals() {
        let read = std::io::copy(&mut literals.take(LITERALS as u64), &mut std::io::sink());
        assert!(read.is_ok_and(|n| n <= skeleton.size()) || skeleton.size() > 0);
    }
}

fn check_tree(toc: &Toc) {
    let tree = toc.tree();
    let mut paths_len = 0;
    for (at, entry) in tree.entries().iter().enumerate() {
        let id = EntryId(at as u32);
        let inode = tree.inode(entry.inode).expect("an entry has an inode");
        assert!(tree.nlink(entry.inode) > 0);
        let names = || inode.xattrs.iter().map(|x| &x.name);
        assert!(names().zip(names().skip(1)).all(|(a, b)| a < b), "an attribute twice");
        if let Kind::Regular(content) = &inode.kind {
            for e in content.extents() {
                assert!(e.range.end().0 <= toc.chunks().data_size() && e.offset.0 + e.range.len <= content.size());
                assert!(!toc.chunks().covering(e.range).is_empty());
            }
        }
        if paths_len > VIEW_MAX {
            continue;
        }
        let path = tree.path(id);
        paths_len += path.len() + 1;
        assert_eq!(tree.find(&path), Some(id), "a path does not lead to its entry");
        assert!(at == 0 || tree.children(entry.parent).contains(&(at as u32)));
    }
    if paths_len <= VIEW_MAX {
        let view = serde_json::to_vec(&toc.view());
        assert!(view.is_ok(), "a TOC that exists can be shown");
    }
}
