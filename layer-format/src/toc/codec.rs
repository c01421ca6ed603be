//! The binary form of a TOC. `FORMAT.md` section 3 is normative.
//!
//! In: a [`Toc`], or bytes from anywhere. Out: canonical bytes, or a checked [`Toc`].
//! Invariant: `decode(encode(t)) == t`; no allocation exceeds a small multiple of the bytes really present.
//! Not here: reading files or sockets; the JSON view ([`super::json`]).

use std::io::Read;

use bytes::Bytes;

use super::chunks::{ChunkEntry, ChunkTable};
use super::skeleton::{Body, Skeleton};
use super::tree::{Content, Entry, EntryId, Extent, Inode, InodeId, Kind, Mtime, Tree, Xattr};
use super::{Name, Toc, TocError, within};
use crate::digest::{BlobDigest, ChunkDigest, DiffId};
use crate::limits::{
    BODIES_MAX, CHUNKS_MAX, ENTRIES_MAX, EXTENTS_MAX, META_SIZE_MAX, NAME_LEN_MAX, PATH_LEN_MAX, SKELETON_SIZE_MAX,
    TOC_SIZE_MAX, XATTR_NAME_LEN_MAX, XATTR_VALUE_LEN_MAX, XATTRS_MAX,
};
use crate::offset::{FileOffset, LayerOffset, LayerRange};

/// The first seven bytes of every TOC; the eighth is the version.
pub const TOC_MAGIC: &[u8; 7] = b"HSTOC\r\n";
/// The only version so far.
pub const TOC_VERSION: u8 = 1;

/// Magic, version and four lengths.
const HEADER_LEN: usize = 40;
/// zstd level of the metadata: 19 is 6% smaller and 20 times slower on a 67,000-entry layer.
const META_LEVEL: i32 = 6;
/// Largest zstd window accepted (8 MiB): what RFC 8878 (3.1.1.1.2) asks of every decoder, and more than our levels use.
/// A decoder reserves the window before it has seen a byte of content.
pub(super) const WINDOW_LOG_MAX: u32 = 23;

/// Reserved for metadata before any of it is there.
const META_RESERVED_MAX: u64 = 16 << 20;

const DIRECTORY: u8 = 1;
const REGULAR: u8 = 2;
const SYMLINK: u8 = 3;
const CHAR_DEVICE: u8 = 4;
const BLOCK_DEVICE: u8 = 5;
const FIFO: u8 = 6;
const WHITEOUT: u8 = 7;

/// The fewest bytes that one element takes.
const INODE_LEN_MIN: usize = 7;
const ENTRY_LEN_MIN: usize = 4;
const CHUNK_LEN_MIN: usize = 34;
const BODY_LEN_MIN: usize = 2;
const XATTR_LEN_MIN: usize = 3;
const EXTENT_LEN_MIN: usize = 3;

const OPAQUE: u64 = 1;
const IMPLIED: u64 = 2;

pub(super) fn encode(toc: &Toc) -> Result<Vec<u8>, TocError> {
    let meta = encode_meta(toc);
    within("metadata size", meta.len() as u64, META_SIZE_MAX)?;
    let frame = zstd::bulk::compress(&meta, META_LEVEL).map_err(|_| TocError::BadFrame("metadata"))?;
    let skeleton = toc.skeleton();
    let mut out = Vec::with_capacity(HEADER_LEN + frame.len() + skeleton.frame().len());
    out.extend_from_slice(TOC_MAGIC);
    out.push(TOC_VERSION);
    for n in [
        meta.len() as u64,
        frame.len() as u64,
        skeleton.size(),
        skeleton.frame().len() as u64,
    ] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    out.extend_from_slice(&frame);
    out.extend_from_slice(skeleton.frame());
    within("size", out.len() as u64, TOC_SIZE_MAX)?;
    Ok(out)
}

pub(super) fn decode(bytes: &[u8]) -> Result<Toc, TocError> {
    let header = bytes.get(..HEADER_LEN).ok_or(TocError::Truncated)?;
    if &header[..7] != TOC_MAGIC {
        return Err(TocError::BadMagic);
    }
    if header[7] != TOC_VERSION {
        return Err(TocError::UnsupportedVersion(header[7]));
    }
    let field = |i: usize| {
        let mut n = [0; 8];
        n.copy_from_slice(&header[8 + 8 * i..16 + 8 * i]);
        u64::from_le_bytes(n)
    };
    let meta_size = within("metadata size", field(0), META_SIZE_MAX)?;
    let skeleton_size = within("skeleton size", field(2), SKELETON_SIZE_MAX)?;
    let rest = &bytes[HEADER_LEN..];
    let meta_len = usize::try_from(field(1)).map_err(|_| TocError::Truncated)?;
    let skeleton_len = usize::try_from(field(3)).map_err(|_| TocError::Truncated)?;
    let (frame, rest) = rest.split_at_checked(meta_len).ok_or(TocError::Truncated)?;
    let (skeleton, rest) = rest.split_at_checked(skeleton_len).ok_or(TocError::Truncated)?;
    if !rest.is_empty() {
        return Err(TocError::TrailingBytes("sections"));
    }
    decode_meta(&inflate_meta(frame, meta_size)?.into(), skeleton_size, skeleton)
}

/// Grows with the bytes that really come out: for a `size` that lies, no more than [`META_RESERVED_MAX`] is reserved.
fn inflate_meta(frame: &[u8], size: u64) -> Result<Vec<u8>, TocError> {
    let bad = |_| TocError::BadFrame("metadata");
    let mut decoder = zstd::stream::read::Decoder::with_buffer(frame)
        .map_err(bad)?
        .single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(bad)?;
    // Not grown piece by piece where the size is likely: metadata is a third of it, compressed.
    let likely = size.min(frame.len() as u64 * 8).min(META_RESERVED_MAX);
    let mut meta = Vec::with_capacity(likely as usize);
    decoder.by_ref().take(size + 1).read_to_end(&mut meta).map_err(bad)?;
    if meta.len() as u64 != size {
        return Err(TocError::BadFrame("metadata"));
    }
    if !decoder.finish().is_empty() {
        return Err(TocError::TrailingBytes("metadata frame"));
    }
    Ok(meta)
}

fn encode_meta(toc: &Toc) -> Vec<u8> {
    let mut w = Writer(Vec::new());
    match toc.layer_digest() {
        BlobDigest::Sha256(b) => w.tagged(0, b),
        BlobDigest::Sha512(b) => w.tagged(1, b),
    }
    w.0.extend_from_slice(toc.diff_id().as_bytes());
    w.varint(toc.tree().inodes().len() as u64);
    for inode in toc.tree().inodes() {
        encode_inode(&mut w, inode);
    }
    w.varint(toc.tree().entries().len() as u64);
    let mut parent = 0;
    for e in toc.tree().entries().iter().skip(1) {
        w.varint(u64::from(e.parent.0 - parent));
        parent = e.parent.0;
        w.bytes(&e.name);
        w.varint(u64::from(e.inode.0));
    }
    w.varint(u64::from(toc.chunks().len()));
    for c in toc.chunks().entries() {
        w.0.extend_from_slice(c.digest.as_bytes());
        w.varint(u64::from(c.raw_len));
        w.varint(u64::from(c.frame_len));
    }
    w.varint(toc.skeleton().bodies().len() as u64);
    for b in toc.skeleton().bodies() {
        w.varint(b.literal_len);
        w.varint(b.len);
    }
    w.0
}

fn encode_inode(w: &mut Writer, inode: &Inode) {
    w.0.push(match inode.kind {
        Kind::Directory { .. } => DIRECTORY,
        Kind::Regular(_) => REGULAR,
        Kind::Symlink { .. } => SYMLINK,
        Kind::CharDevice { .. } => CHAR_DEVICE,
        Kind::BlockDevice { .. } => BLOCK_DEVICE,
        Kind::Fifo => FIFO,
        Kind::Whiteout => WHITEOUT,
    });
    w.varint(u64::from(inode.mode));
    w.varint(u64::from(inode.uid));
    w.varint(u64::from(inode.gid));
    w.varint(zigzag(inode.mtime.secs));
    w.varint(u64::from(inode.mtime.nanos));
    w.varint(inode.xattrs.len() as u64);
    for x in &inode.xattrs {
        w.bytes(&x.name);
        w.bytes(&x.value);
    }
    match &inode.kind {
        Kind::Directory { opaque, implied } => {
            w.varint(if *opaque { OPAQUE } else { 0 } | if *implied { IMPLIED } else { 0 });
        }
        Kind::Regular(content) => {
            w.varint(content.size());
            w.varint(content.extents().len() as u64);
            for e in content.extents() {
                w.varint(e.offset.0);
                w.varint(e.range.start.0);
                w.varint(e.range.len);
            }
        }
        Kind::Symlink { target } => w.bytes(target),
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => {
            w.varint(u64::from(*major));
            w.varint(u64::from(*minor));
        }
        Kind::Fifo | Kind::Whiteout => {}
    }
}

fn decode_meta(meta: &Bytes, skeleton_size: u64, skeleton: &[u8]) -> Result<Toc, TocError> {
    let mut r = Reader {
        whole: meta,
        rest: meta,
        extents_left: EXTENTS_MAX,
        xattrs_left: XATTRS_MAX,
    };
    let layer_digest = match r.byte()? {
        0 => BlobDigest::Sha256(r.array()?),
        1 => BlobDigest::Sha512(r.array()?),
        _ => return Err(TocError::Malformed("unknown digest algorithm")),
    };
    let diff_id = DiffId::from_bytes(r.array()?);
    let inodes = r.list("inode count", ENTRIES_MAX, INODE_LEN_MIN, decode_inode)?;
    let entries = decode_entries(&mut r)?;
    let chunks = r.list("chunk count", CHUNKS_MAX, CHUNK_LEN_MIN, |r| {
        Ok(ChunkEntry {
            digest: ChunkDigest::from_bytes(r.array()?),
            raw_len: r.u32()?,
            frame_len: r.u32()?,
        })
    })?;
    let bodies = r.list("body count", BODIES_MAX, BODY_LEN_MIN, |r| {
        Ok(Body {
            literal_len: r.varint()?,
            len: r.varint()?,
        })
    })?;
    if !r.rest.is_empty() {
        return Err(TocError::TrailingBytes("metadata"));
    }
    Toc::new(
        layer_digest,
        diff_id,
        Tree::new(entries, inodes)?,
        ChunkTable::new(chunks)?,
        Skeleton::from_parts(bodies, skeleton_size, skeleton.to_vec())?,
    )
}

fn decode_entries(r: &mut Reader<'_>) -> Result<Vec<Entry>, TocError> {
    // The root is counted and takes no bytes.
    let others = r.varint()?.checked_sub(1).ok_or(TocError::Malformed("no root entry"))?;
    let others = r.count(others, "entry count", ENTRIES_MAX - 1, ENTRY_LEN_MIN)?;
    let mut entries = Vec::with_capacity(others + 1);
    entries.push(Entry {
        parent: EntryId::ROOT,
        name: Name::default(),
        inode: InodeId::ROOT,
    });
    let mut parent = 0u32;
    for _ in 0..others {
        parent = parent
            .checked_add(r.u32()?)
            .ok_or(TocError::Malformed("parent overflows"))?;
        let name = r.name()?;
        entries.push(Entry {
            parent: EntryId(parent),
            name,
            inode: InodeId(r.u32()?),
        });
    }
    Ok(entries)
}

fn decode_inode(r: &mut Reader<'_>) -> Result<Inode, TocError> {
    let tag = r.byte()?;
    let mode = u16::try_from(r.varint()?).map_err(|_| TocError::Malformed("mode has more than permission bits"))?;
    let (uid, gid) = (r.u32()?, r.u32()?);
    let mtime = Mtime {
        secs: unzigzag(r.varint()?),
        nanos: r.u32()?,
    };
    let xattrs_left = r.xattrs_left;
    let xattrs = r.list("xattr count", xattrs_left, XATTR_LEN_MIN, |r| {
        Ok(Xattr {
            name: r.bytes("xattr name length", XATTR_NAME_LEN_MAX)?,
            value: r.bytes("xattr value length", XATTR_VALUE_LEN_MAX)?,
        })
    })?;
    r.xattrs_left -= xattrs.len() as u64;
    let kind = match tag {
        DIRECTORY => match r.varint()? {
            flags if flags & !(OPAQUE | IMPLIED) == 0 => Kind::Directory {
                opaque: flags & OPAQUE != 0,
                implied: flags & IMPLIED != 0,
            },
            _ => return Err(TocError::Malformed("unknown directory flag")),
        },
        REGULAR => Kind::Regular(decode_content(r)?),
        SYMLINK => Kind::Symlink {
            target: r.bytes("symlink length", PATH_LEN_MAX)?,
        },
        CHAR_DEVICE => Kind::CharDevice {
            major: r.u32()?,
            minor: r.u32()?,
        },
        BLOCK_DEVICE => Kind::BlockDevice {
            major: r.u32()?,
            minor: r.u32()?,
        },
        FIFO => Kind::Fifo,
        WHITEOUT => Kind::Whiteout,
        _ => return Err(TocError::Malformed("unknown file kind")),
    };
    Ok(Inode {
        mode,
        uid,
        gid,
        mtime,
        xattrs,
        kind,
    })
}

fn decode_content(r: &mut Reader<'_>) -> Result<Content, TocError> {
    let size = r.varint()?;
    let count = r.varint()?;
    let count = r.count(count, "extent count", r.extents_left, EXTENT_LEN_MIN)?;
    r.extents_left -= count as u64;
    match count {
        1 => Content::piece(size, decode_extent(r)?),
        _ => Content::sparse(size, r.times(count, decode_extent)?),
    }
}

fn decode_extent(r: &mut Reader<'_>) -> Result<Extent, TocError> {
    let offset = FileOffset(r.varint()?);
    Ok(Extent {
        offset,
        range: LayerRange {
            start: LayerOffset(r.varint()?),
            len: r.varint()?,
        },
    })
}

fn zigzag(n: i64) -> u64 {
    ((n << 1) ^ (n >> 63)) as u64
}

fn unzigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

struct Writer(Vec<u8>);

impl Writer {
    /// LEB128.
    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.0.push(tag);
        self.0.extend_from_slice(bytes);
    }
}

/// Bytes not read yet, and how many of the things that every inode may have are still allowed.
struct Reader<'a> {
    whole: &'a Bytes,
    rest: &'a [u8],
    extents_left: u64,
    xattrs_left: u64,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], TocError> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(TocError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    fn byte(&mut self) -> Result<u8, TocError> {
        Ok(self.take(1)?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], TocError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// Shortest-form LEB128 only, so that a value has one encoding.
    fn varint(&mut self) -> Result<u64, TocError> {
        // Most are small.
        if let Some((&n, rest)) = self.rest.split_first()
            && n < 0x80
        {
            self.rest = rest;
            return Ok(n.into());
        }
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            let bits = u64::from(b & 0x7f);
            if (bits << shift) >> shift != bits {
                return Err(TocError::Malformed("number overflows"));
            }
            n |= bits << shift;
            if b & 0x80 == 0 {
                if b == 0 && shift > 0 {
                    return Err(TocError::Malformed("number is not in shortest form"));
                }
                return Ok(n);
            }
        }
        Err(TocError::Malformed("number overflows"))
    }

    fn u32(&mut self) -> Result<u32, TocError> {
        u32::try_from(self.varint()?).map_err(|_| TocError::Malformed("number overflows"))
    }

    fn name(&mut self) -> Result<Name, TocError> {
        let (len, whole) = (self.len("name length", NAME_LEN_MAX)?, self.whole);
        Ok(Name::part(whole, self.take(len)?))
    }

    fn bytes(&mut self, what: &'static str, max: usize) -> Result<Box<[u8]>, TocError> {
        let len = self.len(what, max)?;
        Ok(self.take(len)?.into())
    }

    fn len(&mut self, what: &'static str, max: usize) -> Result<usize, TocError> {
        Ok(within(what, self.varint()?, max as u64)? as usize)
    }

    /// A count within its limit, of elements that take at least `least` bytes each: so a count that lies reserves no
    /// more than a small multiple of the bytes that are there.
    fn count(&mut self, count: u64, what: &'static str, max: u64, least: usize) -> Result<usize, TocError> {
        within(what, count, max)?;
        if count > (self.rest.len() / least) as u64 {
            return Err(TocError::Truncated);
        }
        Ok(count as usize)
    }

    fn list<T>(
        &mut self,
        what: &'static str,
        max: u64,
        least: usize,
        one: impl FnMut(&mut Self) -> Result<T, TocError>,
    ) -> Result<Vec<T>, TocError> {
        let count = self.varint()?;
        let count = self.count(count, what, max, least)?;
        self.times(count, one)
    }

    /// `count` was counted.
    fn times<T>(
        &mut self,
        count: usize,
        mut one: impl FnMut(&mut Self) -> Result<T, TocError>,
    ) -> Result<Vec<T>, TocError> {
        let mut out = Vec::with_capacity(count);
        for _ in 0..count {
            out.push(one(self)?);
        }
        Ok(out)
    }
}
