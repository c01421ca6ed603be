//! Extended attributes: those that many inodes have once, the others behind their inode.
//!
//! In: inodes. Out: the bytes behind each, and the area of shared ones. Invariant: an attribute is shown as the FUSE tree
//! shows it (`fuse/xattrs.rs`), if a filesystem can store it at all; identifiers depend on the TOC's order alone.
//! Not here: what attributes mean.

use std::collections::HashMap;
use std::io::Write;

use headstart_layer_format::toc::{Inode, Tree};

use super::format::{XATTR_ALIGN, XATTR_ENTRY_LEN, XATTR_HEADER_LEN};
use super::{ErofsError, SHARED_MAX};
use crate::fuse::xattrs::{OPAQUE_NAME, OPAQUE_VALUE, is_opaque, plain_xattrs};

/// Numbers that stand for the beginnings of names. Names that begin otherwise are of no namespace that Linux lets a
/// process write on a disk: unpacking leaves them out (containerd ignores the refusal), and so does an image.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
/// How many shared ones an inode may name: a byte.
const SHARED_PER_INODE_MAX: usize = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Attribute<'a> {
    prefix: u8,
    suffix: &'a [u8],
    value: &'a [u8],
}

impl<'a> Attribute<'a> {
    fn new(name: &'a [u8], value: &'a [u8]) -> Option<Self> {
        let (prefix, suffix) = PREFIXES.iter().find_map(|(p, n)| Some((*n, name.strip_prefix(*p)?)))?;
        // An access list's name is its whole prefix; any other has something behind it.
        let whole = matches!(prefix, 2 | 3);
        (whole == suffix.is_empty()).then_some(Self { prefix, suffix, value })
    }

    fn len(&self) -> usize {
        (XATTR_ENTRY_LEN + self.suffix.len() + self.value.len()).next_multiple_of(XATTR_ALIGN)
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), ErofsError> {
        let too_long = ErofsError::Unsupported("an extended attribute is too long");
        let (Ok(name), Ok(value)) = (u8::try_from(self.suffix.len()), u16::try_from(self.value.len())) else {
            return Err(too_long);
        };
        out.extend_from_slice(&[name, self.prefix]);
        out.extend_from_slice(&value.to_le_bytes());
        out.extend_from_slice(self.suffix);
        out.extend_from_slice(self.value);
        out.resize(out.len().next_multiple_of(XATTR_ALIGN), 0);
        Ok(())
    }
}

/// Few have, and most have not even one that is not shown.
fn has_any(inode: &Inode) -> bool {
    (!inode.xattrs.is_empty() || is_opaque(inode)) && attributes(inode).next().is_some()
}

fn attributes(inode: &Inode) -> impl Iterator<Item = Attribute<'_>> {
    let plain = plain_xattrs(inode).filter_map(|x| Attribute::new(&x.name, &x.value));
    let opaque = is_opaque(inode).then(|| Attribute::new(OPAQUE_NAME, OPAQUE_VALUE));
    plain.chain(opaque.flatten())
}

#[derive(Debug)]
pub(super) struct Xattrs<'a> {
    /// Place in the shared area, in units of [`XATTR_ALIGN`].
    shared: HashMap<Attribute<'a>, u32>,
    /// The same in the area's order.
    area: Vec<Attribute<'a>>,
    area_len: u64,
}

impl<'a> Xattrs<'a> {
    pub(super) fn of(tree: &'a Tree) -> Result<Self, ErofsError> {
        let mut counts: HashMap<Attribute<'a>, u32> = HashMap::new();
        let having = || tree.inodes().iter().filter(|inode| has_any(inode));
        for attribute in having().flat_map(attributes) {
            if attribute.value.len() > usize::from(u16::MAX) {
                return Err(ErofsError::Unsupported("an extended attribute is too long"));
            }
            if let Some(count) = counts.get_mut(&attribute) {
                *count += 1;
            } else if counts.len() < SHARED_MAX {
                counts.insert(attribute, 1);
            }
        }
        let mut all = Self {
            shared: HashMap::new(),
            area: Vec::new(),
            area_len: 0,
        };
        for attribute in having().flat_map(attributes) {
            if counts.get(&attribute).is_some_and(|n| *n > 1) && !all.shared.contains_key(&attribute) {
                let place = u32::try_from(all.area_len / XATTR_ALIGN as u64).map_err(|_| ErofsError::OverLimit {
                    what: "shared attributes",
                    max: u32::MAX.into(),
                })?;
                all.shared.insert(attribute, place);
                all.area.push(attribute);
                all.area_len += attribute.len() as u64;
            }
        }
        Ok(all)
    }

    /// What follows an inode: a header, references, and what is not shared. Nothing for an inode without any.
    pub(super) fn body(&self, inode: &Inode, out: &mut Vec<u8>) -> Result<(), ErofsError> {
        out.clear();
        if !has_any(inode) {
            return Ok(());
        }
        let shared = |a: &Attribute<'_>| self.shared.get(a).copied();
        let places: Vec<u32> = attributes(inode)
            .filter_map(|a| shared(&a))
            .take(SHARED_PER_INODE_MAX)
            .collect();
        out.resize(XATTR_HEADER_LEN, 0);
        out[4] = places.len() as u8;
        out.extend(places.iter().flat_map(|p| p.to_le_bytes()));
        let mut referred = places.len();
        for attribute in attributes(inode) {
            if referred > 0 && shared(&attribute).is_some() {
                referred -= 1;
            } else {
                attribute.write(out)?;
            }
        }
        let units = (out.len() - XATTR_HEADER_LEN) / XATTR_ALIGN + 1;
        if units > usize::from(u16::MAX) {
            return Err(ErofsError::Unsupported("an inode has too many extended attributes"));
        }
        Ok(())
    }

    pub(super) fn area_len(&self) -> u64 {
        self.area_len
    }

    pub(super) fn write_area(&self, out: &mut dyn Write) -> Result<(), ErofsError> {
        let mut bytes = Vec::new();
        for attribute in &self.area {
            bytes.clear();
            attribute.write(&mut bytes)?;
            out.write_all(&bytes)?;
        }
        Ok(())
    }
}
