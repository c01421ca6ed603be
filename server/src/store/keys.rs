//! Keys and values of the index: one tree, a letter in front of each kind of row.
//!
//! In: typed keys and values. Out: bytes, and back. Invariant: keys of different kinds never collide; a source is
//! length-prefixed, so no name can run into the next field.
//! Not here: the tree itself ([`super::index`]).

use headstart_layer_format::{BlobDigest, ChainId, ChunkDigest, TocDigest};

use super::facts::Source;
use super::pack::{Location, PackId};

pub const VERSION: &[u8] = b"v";

/// There since facts were forgotten: their records may have no rows.
pub const FORGETTING: &[u8] = b"g";

/// Per pack: up to where the index has seen it.
pub const PROGRESS: u8 = b'p';
/// Per pack whose records were all moved or dropped: its file may be gone, and is deleted at an opening.
pub const DOOMED: u8 = b'x';
pub const CHUNK: u8 = b'c';
pub const TOC: u8 = b'o';
pub const LAYER: u8 = b'l';
/// Last use of a converted layer.
pub const USED: u8 = b'u';
pub const MANIFEST: u8 = b'm';
pub const DIFF_IDS: u8 = b'd';
pub const TAG: u8 = b't';
pub const PIN: u8 = b'i';
pub const MEMBER: u8 = b'b';
pub const SOURCE: u8 = b's';
pub const CHAIN: u8 = b'h';
/// Of a room that keeps its truth elsewhere.
pub const NOTE: u8 = b'f';

/// First letters of rows that no pack has, and that are worth keeping when the index is rebuilt.
pub const NOWHERE_ELSE: [u8; 3] = [USED, NOTE, FORGETTING[0]];

pub fn is_nowhere_else(key: &[u8]) -> bool {
    key.first().is_some_and(|first| NOWHERE_ELSE.contains(first))
}

fn key(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = vec![kind];
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// Algorithm tag and raw digest: also the key of layer-state records.
pub fn blob(d: &BlobDigest) -> Vec<u8> {
    let tag = match d {
        BlobDigest::Sha256(_) => 0u8,
        BlobDigest::Sha512(_) => 1,
    };
    let mut out = vec![tag];
    out.extend_from_slice(d.as_bytes());
    out
}

pub fn blob_from(bytes: &[u8]) -> Option<BlobDigest> {
    match bytes.split_first()? {
        (0, rest) => rest.try_into().ok().map(BlobDigest::Sha256),
        (1, rest) => rest.try_into().ok().map(BlobDigest::Sha512),
        _ => None,
    }
}

fn source_bytes(s: &Source) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + s.upstream.len() + s.repository.len());
    for name in [&s.upstream, &s.repository] {
        out.extend_from_slice(&(name.len() as u32).to_be_bytes());
        out.extend_from_slice(name.as_bytes());
    }
    out
}

pub fn source_from(bytes: &[u8]) -> Option<Source> {
    let field = |bytes: &[u8]| -> Option<(String, usize)> {
        let len = u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let text = bytes.get(4..4usize.checked_add(len)?)?;
        Some((String::from_utf8(text.to_vec()).ok()?, 4 + len))
    };
    let (upstream, used) = field(bytes)?;
    let (repository, end) = field(&bytes[used..])?;
    (used + end == bytes.len()).then_some(Source { upstream, repository })
}

/// Source and digest of a member's key.
pub fn member_from(bytes: &[u8]) -> Option<(Source, BlobDigest)> {
    let len_at = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?) as usize);
    let middle = 4usize.checked_add(len_at(0)?)?;
    let end = middle.checked_add(4)?.checked_add(len_at(middle)?)?;
    Some((source_from(bytes.get(..end)?)?, blob_from(bytes.get(end..)?)?))
}

/// Digest and source of a source's key.
pub fn blob_source_from(bytes: &[u8]) -> Option<(BlobDigest, Source)> {
    let len = match bytes.first()? {
        0 => 33,
        _ => 65,
    };
    Some((blob_from(bytes.get(..len)?)?, source_from(bytes.get(len..)?)?))
}

pub fn progress(pack: PackId) -> Vec<u8> {
    key(PROGRESS, &[&pack.0.to_be_bytes()])
}

pub fn doomed(pack: PackId) -> Vec<u8> {
    key(DOOMED, &[&pack.0.to_be_bytes()])
}

pub fn used(layer: &BlobDigest) -> Vec<u8> {
    key(USED, &[&blob(layer)])
}

pub fn note(of: &[u8]) -> Vec<u8> {
    key(NOTE, &[of])
}

/// `target`: a pin's target in its text form.
pub fn pin(target: &[u8]) -> Vec<u8> {
    key(PIN, &[target])
}

/// Source and tag of a tag's key.
pub fn tag_from(bytes: &[u8]) -> Option<(Source, String)> {
    let len_at = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?) as usize);
    let middle = 4usize.checked_add(len_at(0)?)?;
    let end = middle.checked_add(4)?.checked_add(len_at(middle)?)?;
    let source = source_from(bytes.get(..end)?)?;
    Some((source, String::from_utf8(bytes.get(end..)?.to_vec()).ok()?))
}

pub fn chunk(d: &ChunkDigest) -> Vec<u8> {
    key(CHUNK, &[d.as_bytes()])
}

pub fn toc(d: &TocDigest) -> Vec<u8> {
    key(TOC, &[d.as_bytes()])
}

pub fn layer(d: &BlobDigest) -> Vec<u8> {
    key(LAYER, &[&blob(d)])
}

pub fn manifest(d: &BlobDigest) -> Vec<u8> {
    key(MANIFEST, &[&blob(d)])
}

pub fn diff_ids(manifest: &BlobDigest) -> Vec<u8> {
    key(DIFF_IDS, &[&blob(manifest)])
}

pub fn tag(s: &Source, tag: &str) -> Vec<u8> {
    key(TAG, &[&source_bytes(s), tag.as_bytes()])
}

pub fn member(s: &Source, d: &BlobDigest) -> Vec<u8> {
    key(MEMBER, &[&source_bytes(s), &blob(d)])
}

/// Prefix of all sources of a blob.
pub fn sources(d: &BlobDigest) -> Vec<u8> {
    key(SOURCE, &[&blob(d)])
}

pub fn source(d: &BlobDigest, s: &Source) -> Vec<u8> {
    key(SOURCE, &[&blob(d), &source_bytes(s)])
}

pub fn chain(c: &ChainId) -> Vec<u8> {
    key(CHAIN, &[c.as_bytes()])
}

/// 20 bytes.
pub fn location(l: &Location) -> Vec<u8> {
    let mut out = Vec::with_capacity(20);
    out.extend_from_slice(&l.pack.0.to_le_bytes());
    out.extend_from_slice(&l.offset.to_le_bytes());
    out.extend_from_slice(&l.payload_len.to_le_bytes());
    out.extend_from_slice(&l.raw_len.to_le_bytes());
    out
}

pub fn location_from(bytes: &[u8]) -> Option<Location> {
    let bytes: &[u8; 20] = bytes.try_into().ok()?;
    let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Some(Location {
        pack: PackId(word(0)),
        offset: u64::from(word(4)) | u64::from(word(8)) << 32,
        payload_len: word(12),
        raw_len: word(16),
    })
}
