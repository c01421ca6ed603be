//! What a tree file says of an inode.
//!
//! In: an inode of a TOC. Out: [`Record`], of one length, and beside it in the heap what has none: attributes, a link's
//! target, the extents of a sparse file. Invariant: whatever bytes are decoded, nothing panics.
//! Not here: where records and heap are in the file.
//!
//! ```text
//! heap, an inode:  attributes { length of name u8, of value u32, name, value } ...
//!                  then: target | extents { offset u64, start u64, length u64 } ...
//! ```

use headstart_layer_format::toc::{Content, Inode, InodeId, Kind, Mtime, Xattr};

use super::block::{u16_at, u32_at, u64_at};
use crate::fuse::attr::{Attr, FileKind};
use crate::fuse::node_id::Node;
use crate::fuse::xattrs::{is_opaque, plain_xattrs};

/// [`super::block::BODY_LEN`] has 60 of them, and nothing is left.
pub(super) const RECORD_LEN: usize = 68;
pub(super) const EXTENT_LEN: u64 = 24;

const OPAQUE: u8 = 1;
const SOLE: u8 = 2;

/// By the number that stands for each.
const KINDS: [FileKind; 6] = [
    FileKind::Directory,
    FileKind::Regular,
    FileKind::Symlink,
    FileKind::CharDevice,
    FileKind::BlockDevice,
    FileKind::Fifo,
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Of the layer's root: whose it is, the caller knows.
    attr: Attr,
    pub(crate) opaque: bool,
    pub(super) body: Body,
    /// Where its part of the heap begins, and how much of that are attributes.
    pub(super) heap: u64,
    pub(super) xattrs_len: u32,
}

/// What is behind the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// Numbers of its children's entries, and the directory it is in.
    Directory { start: u32, end: u32, parent: InodeId },
    /// All of the file is here in the data space.
    Sole { start: u64 },
    /// So many extents are in the heap.
    Extents { count: u64 },
    /// Its length is the size, or it has nothing.
    Other,
}

impl Record {
    /// `children` and `parent`: of a directory.
    pub(super) fn of(inode: &Inode, nlink: u32, children: std::ops::Range<u32>, parent: InodeId) -> Self {
        let body = match &inode.kind {
            Kind::Directory { .. } => Body::Directory {
                start: children.start,
                end: children.end,
                parent,
            },
            Kind::Regular(content) => match sole(content) {
                Some(start) => Body::Sole { start },
                None => Body::Extents {
                    count: content.extents().len() as u64,
                },
            },
            _ => Body::Other,
        };
        Self {
            attr: Attr::of(Node::layer_root(0), inode, nlink),
            opaque: is_opaque(inode),
            body,
            heap: 0,
            xattrs_len: 0,
        }
    }

    pub(crate) fn attr(&self, node: Node) -> Attr {
        Attr { node, ..self.attr }
    }

    pub(crate) fn kind(&self) -> FileKind {
        self.attr.kind
    }

    pub(crate) fn size(&self) -> u64 {
        self.attr.size
    }

    /// The directory that holds a directory.
    pub(crate) fn parent(&self) -> Option<InodeId> {
        match self.body {
            Body::Directory { parent, .. } => Some(parent),
            _ => None,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let (a, begin) = (&self.attr, out.len());
        let kind = KINDS.iter().position(|k| *k == a.kind).unwrap_or_default() as u8;
        let (sole, extra, place) = match self.body {
            Body::Directory { start, end, parent } => (0, parent.0, u64::from(start) << 32 | u64::from(end)),
            Body::Sole { start } => (SOLE, 0, start),
            Body::Extents { count } => (0, 0, count),
            Body::Other => (0, a.rdev, 0),
        };
        out.extend([kind, if self.opaque { OPAQUE } else { 0 } | sole]);
        out.extend(a.perm.to_le_bytes());
        for n in [a.nlink, a.uid, a.gid] {
            out.extend(n.to_le_bytes());
        }
        out.extend(a.mtime.secs.to_le_bytes());
        for n in [a.mtime.nanos, extra] {
            out.extend(n.to_le_bytes());
        }
        for n in [a.size, a.blocks, place, self.heap] {
            out.extend(n.to_le_bytes());
        }
        out.extend(self.xattrs_len.to_le_bytes());
        debug_assert_eq!(out.len() - begin, RECORD_LEN);
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let kind = *KINDS.get(usize::from(*bytes.first()?))?;
        let flags = *bytes.get(1)?;
        let (extra, place) = (u32_at(bytes, 28)?, u64_at(bytes, 48)?);
        let body = match kind {
            FileKind::Directory => Body::Directory {
                start: (place >> 32) as u32,
                end: place as u32,
                parent: InodeId(extra),
            },
            FileKind::Regular if flags & SOLE != 0 => Body::Sole { start: place },
            FileKind::Regular => Body::Extents { count: place },
            _ => Body::Other,
        };
        Some(Self {
            attr: Attr {
                node: Node::layer_root(0),
                kind,
                size: u64_at(bytes, 32)?,
                blocks: u64_at(bytes, 40)?,
                mtime: Mtime {
                    secs: u64_at(bytes, 16)?.cast_signed(),
                    nanos: u32_at(bytes, 24)?,
                },
                perm: u16_at(bytes, 2)?,
                nlink: u32_at(bytes, 4)?,
                uid: u32_at(bytes, 8)?,
                gid: u32_at(bytes, 12)?,
                rdev: if kind == FileKind::Directory { 0 } else { extra },
            },
            opaque: flags & OPAQUE != 0,
            body,
            heap: u64_at(bytes, 56)?,
            xattrs_len: u32_at(bytes, 64)?,
        })
    }
}

/// Where a file that is one body lies: most are.
fn sole(content: &Content) -> Option<u64> {
    match content.extents() {
        [only] if only.offset.0 == 0 && only.range.len == content.size() => Some(only.range.start.0),
        _ => None,
    }
}

/// Puts an inode's part of the heap behind what is there; says how much of it are attributes.
pub(super) fn heap_of(inode: &Inode, out: &mut Vec<u8>) -> u32 {
    let begin = out.len();
    for x in plain_xattrs(inode) {
        // The format's limits: 255 and 64 KiB.
        out.push(x.name.len() as u8);
        out.extend((x.value.len() as u32).to_le_bytes());
        out.extend_from_slice(&x.name);
        out.extend_from_slice(&x.value);
    }
    let xattrs_len = (out.len() - begin) as u32;
    match &inode.kind {
        Kind::Symlink { target } => out.extend_from_slice(target),
        Kind::Regular(content) if sole(content).is_none() => {
            for e in content.extents() {
                for n in [e.offset.0, e.range.start.0, e.range.len] {
                    out.extend(n.to_le_bytes());
                }
            }
        }
        _ => {}
    }
    xattrs_len
}

pub(super) fn xattrs(mut bytes: &[u8]) -> Option<Vec<Xattr>> {
    let mut all = Vec::new();
    while let Some((&name_len, _)) = bytes.split_first() {
        let value_len = u32_at(bytes, 1)? as usize;
        let (name, rest) = bytes.get(5..)?.split_at_checked(usize::from(name_len))?;
        let (value, rest) = rest.split_at_checked(value_len)?;
        all.push(Xattr {
            name: name.into(),
            value: value.into(),
        });
        bytes = rest;
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::super::block::BODY_LEN;
    use super::*;

    #[test]
    fn records_fill_a_block() {
        assert_eq!(BODY_LEN % RECORD_LEN, 0);
    }

    #[test]
    fn a_record_of_any_bytes_is_one_or_none() {
        for byte in 0..=255 {
            let decoded = Record::decode(&[byte; RECORD_LEN]);
            assert_eq!(decoded.is_some(), usize::from(byte) < KINDS.len(), "{byte}");
            xattrs(&vec![byte; usize::from(byte)]);
        }
        assert!(Record::decode(&[0; RECORD_LEN - 1]).is_none());
    }
}
