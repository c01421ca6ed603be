//! The file tree of one layer.
//!
//! In: inodes, and directory entries in canonical order. Out: a [`Tree`] that can be looked up and listed.
//! Invariant (checked by [`Tree::new`]): entry 0 is the root; entries are strictly ordered by (parent, name); a parent
//! precedes its children and is a directory; inodes are numbered by first use; a directory has one name; whiteouts are
//! kept as facts of this layer, not applied.
//! Not here: paths given by a tar, and which of two equal paths wins (the server's `ingest/tree.rs`).

use std::ops::{Deref, Range};

use super::{Name, TocError, within};
use crate::limits::{
    DATA_SIZE_MAX, DEPTH_MAX, ENTRIES_MAX, EXTENTS_MAX, NAME_LEN_MAX, PATH_LEN_MAX, PATHS_LEN_MAX, XATTR_NAME_LEN_MAX,
    XATTR_VALUE_LEN_MAX, XATTRS_LEN_MAX, XATTRS_MAX,
};
use crate::offset::{FileOffset, LayerRange};

/// Index of a directory entry; the root is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub u32);

impl EntryId {
    pub const ROOT: Self = Self(0);
}

/// Index of an inode; the root directory's is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InodeId(pub u32);

impl InodeId {
    pub const ROOT: Self = Self(0);
}

/// A name in a directory. Hard links are several entries of one inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub parent: EntryId,
    /// Empty for the root only. For a whiteout: the name it hides, without `.wh.`.
    pub name: Name,
    pub inode: InodeId,
}

/// Modification time; nanoseconds are below 10^9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mtime {
    pub secs: i64,
    pub nanos: u32,
}

/// An extended attribute, as a binary pair (`security.capability` is not text).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xattr {
    pub name: Box<[u8]>,
    pub value: Box<[u8]>,
}

/// What `stat(2)`, `listxattr(2)` and `readlink(2)` can say about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Permission bits, set-id and sticky: `mode & 0o7777`.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub mtime: Mtime,
    /// Ordered by name, without repeats.
    pub xattrs: Vec<Xattr>,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Directory {
        /// Hides everything below it in lower layers (`.wh..wh..opq`).
        opaque: bool,
        /// The tar has no entry for it: a runtime makes it 0755 root:root at unpack time.
        implied: bool,
    },
    Regular(Content),
    Symlink {
        target: Box<[u8]>,
    },
    CharDevice {
        major: u32,
        minor: u32,
    },
    BlockDevice {
        major: u32,
        minor: u32,
    },
    Fifo,
    /// Hides one name in lower layers (`.wh.NAME`).
    Whiteout,
}

/// Bytes of a regular file: extents of the data space, zeros between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    size: u64,
    extents: Extents,
}

/// One of them is the usual case, and takes no allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Extents {
    One(Extent),
    /// Any other number.
    Others(Vec<Extent>),
}

impl From<Vec<Extent>> for Extents {
    fn from(extents: Vec<Extent>) -> Self {
        match extents[..] {
            [only] => Self::One(only),
            _ => Self::Others(extents),
        }
    }
}

impl Deref for Extents {
    type Target = [Extent];

    fn deref(&self) -> &[Extent] {
        match self {
            Self::One(extent) => std::slice::from_ref(extent),
            Self::Others(extents) => extents,
        }
    }
}

/// `range.len` bytes of a file, at `offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub offset: FileOffset,
    pub range: LayerRange,
}

impl Content {
    /// An empty file.
    pub const EMPTY: Self = Self {
        size: 0,
        extents: Extents::Others(Vec::new()),
    };

    /// A file that is one body, the usual case.
    pub fn whole(range: LayerRange) -> Self {
        if range.len == 0 {
            return Self::EMPTY;
        }
        Self {
            size: range.len,
            extents: Extents::One(Extent {
                offset: FileOffset(0),
                range,
            }),
        }
    }

    /// A file with holes. Extents are ordered, disjoint, not empty, and end within `size`.
    pub fn sparse(size: u64, extents: Vec<Extent>) -> Result<Self, TocError> {
        Self::of(size, extents.into())
    }

    /// The same, of one extent.
    pub(super) fn piece(size: u64, extent: Extent) -> Result<Self, TocError> {
        Self::of(size, Extents::One(extent))
    }

    fn of(size: u64, extents: Extents) -> Result<Self, TocError> {
        within("file size", size, i64::MAX as u64)?;
        let mut end = 0;
        for e in extents.iter() {
            if e.range.len == 0 || e.offset.0 < end {
                return Err(TocError::Malformed(
                    "file extents are empty, overlap or are out of order",
                ));
            }
            within("extent end", e.range.start.0.saturating_add(e.range.len), DATA_SIZE_MAX)?;
            end = e
                .offset
                .0
                .checked_add(e.range.len)
                .ok_or(TocError::Malformed("file extent overflows"))?;
        }
        if end > size {
            return Err(TocError::Malformed("a file extent ends after the file"));
        }
        Ok(Self { size, extents })
    }

    /// Length as `stat` says it.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }
}

/// The tree. See the file header for its invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    entries: Vec<Entry>,
    inodes: Vec<Inode>,
    /// Names per inode, derived: hard-link counts.
    nlinks: Vec<u32>,
}

impl Tree {
    /// Checks the invariant and derives the link counts.
    pub fn new(entries: Vec<Entry>, inodes: Vec<Inode>) -> Result<Self, TocError> {
        within("entry count", entries.len() as u64, ENTRIES_MAX)?;
        for inode in &inodes {
            check_inode(inode)?;
        }
        let xattrs = inodes.iter().map(|i| i.xattrs.len() as u64).sum();
        within("xattr count", xattrs, XATTRS_MAX)?;
        let extents: u64 = inodes
            .iter()
            .map(|i| match &i.kind {
                Kind::Regular(c) => c.extents.len() as u64,
                _ => 0,
            })
            .sum();
        within("extent count", extents, EXTENTS_MAX)?;
        let nlinks = check_entries(&entries, &inodes)?;
        Ok(Self {
            entries,
            inodes,
            nlinks,
        })
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// `None` for an id of another tree.
    pub fn entry(&self, id: EntryId) -> Option<&Entry> {
        self.entries.get(id.0 as usize)
    }

    /// `None` for an id of another tree.
    pub fn inode(&self, id: InodeId) -> Option<&Inode> {
        self.inodes.get(id.0 as usize)
    }

    /// Number of names of an inode in this layer (0 for an id of another tree).
    pub fn nlink(&self, id: InodeId) -> u32 {
        self.nlinks.get(id.0 as usize).copied().unwrap_or(0)
    }

    /// Entry ids of a directory's children, in name order; empty for anything else.
    pub fn children(&self, dir: EntryId) -> Range<u32> {
        let start = self.entries.partition_point(|e| e.parent < dir).max(1);
        let end = self.entries.partition_point(|e| e.parent <= dir).max(start);
        start as u32..end as u32
    }

    /// The child of `dir` called `name`.
    pub fn lookup(&self, dir: EntryId, name: &[u8]) -> Option<EntryId> {
        let children = self.children(dir);
        let slice = &self.entries[children.start as usize..children.end as usize];
        let at = slice.binary_search_by(|e| (*e.name).cmp(name)).ok()?;
        Some(EntryId(children.start + at as u32))
    }

    /// The entry at a `/`-separated path relative to the root, or the root for an empty path.
    pub fn find(&self, path: &[u8]) -> Option<EntryId> {
        path.split(|&b| b == b'/')
            .filter(|part| !part.is_empty())
            .try_fold(EntryId::ROOT, |dir, part| self.lookup(dir, part))
    }

    /// Path of an entry relative to the root, without a leading slash.
    pub fn path(&self, id: EntryId) -> Vec<u8> {
        let mut parts: Vec<&[u8]> = Vec::new();
        let mut at = id;
        while let Some(entry) = self.entry(at)
            && at != EntryId::ROOT
        {
            parts.push(&entry.name);
            at = entry.parent;
        }
        parts.reverse();
        parts.join(&b'/')
    }
}

fn check_inode(inode: &Inode) -> Result<(), TocError> {
    if inode.mode > 0o7777 {
        return Err(TocError::Malformed("mode has more than permission bits"));
    }
    if inode.mtime.nanos >= 1_000_000_000 {
        return Err(TocError::Malformed("mtime nanoseconds out of range"));
    }
    let mut total = 0;
    for x in &inode.xattrs {
        if x.name.is_empty() || x.name.contains(&0) {
            return Err(TocError::Malformed("bad extended attribute name"));
        }
        within("xattr name length", x.name.len() as u64, XATTR_NAME_LEN_MAX as u64)?;
        within("xattr value length", x.value.len() as u64, XATTR_VALUE_LEN_MAX as u64)?;
        total += x.name.len() + x.value.len();
    }
    within(
        "xattr total",
        total as u64,
        (XATTRS_LEN_MAX + XATTR_VALUE_LEN_MAX) as u64,
    )?;
    if inode.xattrs.windows(2).any(|w| w[0].name >= w[1].name) {
        return Err(TocError::Malformed("extended attributes are out of order"));
    }
    if let Kind::Symlink { target } = &inode.kind {
        within("symlink length", target.len() as u64, PATH_LEN_MAX as u64)?;
        if target.is_empty() || target.contains(&0) {
            return Err(TocError::Malformed("bad symlink target"));
        }
    }
    Ok(())
}

/// Checks order, names, depth and inode use; returns the link counts.
fn check_entries(entries: &[Entry], inodes: &[Inode]) -> Result<Vec<u32>, TocError> {
    let is_dir = |id: InodeId| {
        matches!(
            inodes.get(id.0 as usize),
            Some(Inode {
                kind: Kind::Directory { .. },
                ..
            })
        )
    };
    let root = entries.first().ok_or(TocError::Malformed("no root entry"))?;
    if root.parent != EntryId::ROOT || !root.name.is_empty() || root.inode != InodeId::ROOT || !is_dir(InodeId::ROOT) {
        return Err(TocError::Malformed("bad root entry"));
    }
    let mut nlinks = vec![0u32; inodes.len()];
    nlinks[0] = 1;
    let mut used = 1;
    // (depth, length of the path) of every entry so far.
    let mut shape: Vec<(u16, u16)> = Vec::with_capacity(entries.len());
    shape.push((0, 0));
    let mut paths_len = 0;
    let mut previous: Option<&Entry> = None;
    for (at, e) in entries.iter().enumerate().skip(1) {
        let parent = e.parent.0 as usize;
        if parent >= at || !is_dir(entries[parent].inode) {
            return Err(TocError::Malformed("an entry's parent is not a directory before it"));
        }
        if previous.is_some_and(|p| (p.parent, &p.name) >= (e.parent, &e.name)) {
            return Err(TocError::Malformed("entries are out of order or repeated"));
        }
        check_name(&e.name)?;
        let (depth, len) = shape[parent];
        within("directory depth", u64::from(depth) + 1, DEPTH_MAX as u64)?;
        let path_len = within(
            "path length",
            u64::from(len) + 1 + e.name.len() as u64,
            PATH_LEN_MAX as u64 + 1,
        )?;
        shape.push((depth + 1, path_len as u16));
        paths_len = within("length of all paths", paths_len + path_len, PATHS_LEN_MAX)?;
        match e.inode.0.cmp(&used) {
            std::cmp::Ordering::Greater => return Err(TocError::Malformed("inodes are not numbered by first use")),
            std::cmp::Ordering::Equal => used += 1,
            std::cmp::Ordering::Less if is_dir(e.inode) => {
                return Err(TocError::Malformed("a directory has two names"));
            }
            std::cmp::Ordering::Less => {}
        }
        let nlink = nlinks
            .get_mut(e.inode.0 as usize)
            .ok_or(TocError::Malformed("an entry's inode does not exist"))?;
        *nlink += 1;
        previous = Some(e);
    }
    if used as usize != inodes.len() {
        return Err(TocError::Malformed("an inode has no name"));
    }
    Ok(nlinks)
}

fn check_name(name: &[u8]) -> Result<(), TocError> {
    within("name length", name.len() as u64, NAME_LEN_MAX as u64)?;
    if name.is_empty() || name == b"." || name == b".." || name.iter().any(|&b| b == 0 || b == b'/') {
        return Err(TocError::Malformed("bad file name"));
    }
    Ok(())
}
