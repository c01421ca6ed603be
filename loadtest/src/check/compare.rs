//! Comparison of two file trees.
//!
//! In: two [`FileTree`]s and what to overlook. Out: [`Differences`], each a line that names path, field and both values.
//! Invariant: the list is bounded, the count is not; every file's bytes are compared unless told otherwise.
//! Not here: how trees are read.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::tree::{Content, FileTree, Node, NodeKind};

/// More would only scroll by.
const LISTED_MAX: usize = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Field {
    /// Type, symlink target and device numbers.
    Kind,
    Mode,
    Owner,
    Mtime,
    Xattrs,
    /// Which names are one inode.
    Links,
    Size,
    Content,
}

/// What not to look at. The default looks at everything.
#[derive(Clone, Debug, Default)]
pub struct Overlook {
    fields: HashSet<Field>,
    fields_at: HashSet<(Vec<u8>, Field)>,
    below: Vec<Vec<u8>>,
    xattr_prefixes: Vec<Vec<u8>>,
}

impl Overlook {
    pub fn nothing() -> Self {
        Self::default()
    }

    /// A field of every path.
    pub fn field(mut self, field: Field) -> Self {
        self.fields.insert(field);
        self
    }

    /// A field of one path.
    pub fn field_at(mut self, path: impl AsRef<[u8]>, field: Field) -> Self {
        self.fields_at.insert((path.as_ref().to_vec(), field));
        self
    }

    /// A path and everything below it.
    pub fn path(mut self, path: impl AsRef<[u8]>) -> Self {
        self.below.push(path.as_ref().to_vec());
        self
    }

    /// Extended attributes whose names start so, such as `trusted.overlay.`.
    pub fn xattrs(mut self, prefix: impl AsRef<[u8]>) -> Self {
        self.xattr_prefixes.push(prefix.as_ref().to_vec());
        self
    }

    fn skips(&self, path: &[u8]) -> bool {
        self.below.iter().any(|b| {
            path.strip_prefix(b.as_slice())
                .is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
        })
    }

    fn looks_at(&self, path: &[u8], field: Field) -> bool {
        !self.fields.contains(&field) && !self.fields_at.contains(&(path.to_vec(), field))
    }
}

#[derive(Clone, Debug, Default)]
pub struct Differences {
    /// The first ones.
    pub listed: Vec<String>,
    /// All of them.
    pub count: usize,
    /// Paths that both trees have.
    pub compared: usize,
}

impl Differences {
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn add(&mut self, path: &[u8], what: impl fmt::Display) {
        self.count += 1;
        if self.listed.len() < LISTED_MAX {
            self.listed.push(format!("/{}: {what}", path.escape_ascii()));
        }
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} differences over {} common paths", self.count, self.compared)?;
        for line in &self.listed {
            writeln!(f, "  {line}")?;
        }
        if self.count > self.listed.len() {
            writeln!(f, "  and {} more", self.count - self.listed.len())?;
        }
        Ok(())
    }
}

/// Compares two directories.
pub fn compare_directories(left: &Path, right: &Path, overlook: &Overlook) -> io::Result<Differences> {
    compare_trees(
        &FileTree::of_directory(left)?,
        &FileTree::of_directory(right)?,
        overlook,
    )
}

/// Compares two trees; an I/O error is one of reading contents.
pub fn compare_trees(left: &FileTree, right: &FileTree, overlook: &Overlook) -> io::Result<Differences> {
    let mut out = Differences::default();
    for (path, l) in left.0.iter().filter(|(path, _)| !overlook.skips(path)) {
        match right.0.get(path) {
            None => out.add(path, format_args!("only on the left ({:?})", l.kind)),
            Some(r) => {
                out.compared += 1;
                nodes(path, l, r, overlook, &mut out)?;
            }
        }
    }
    for (path, r) in right.0.iter().filter(|(path, _)| !overlook.skips(path)) {
        if !left.0.contains_key(path) {
            out.add(path, format_args!("only on the right ({:?})", r.kind));
        }
    }
    Ok(out)
}

fn nodes(path: &[u8], l: &Node, r: &Node, overlook: &Overlook, out: &mut Differences) -> io::Result<()> {
    let looks = |field| overlook.looks_at(path, field);
    if l.kind != r.kind {
        if looks(Field::Kind) {
            out.add(path, format_args!("kind {:?} | {:?}", l.kind, r.kind));
        }
        return Ok(());
    }
    // A whiteout is a fact about another file, and an implied directory nobody's statement: no metadata.
    if !l.implied && !r.implied && l.kind != NodeKind::Whiteout {
        if l.mode != r.mode && looks(Field::Mode) {
            out.add(path, format_args!("mode {:04o} | {:04o}", l.mode, r.mode));
        }
        if (l.uid, l.gid) != (r.uid, r.gid) && looks(Field::Owner) {
            out.add(path, format_args!("owner {}:{} | {}:{}", l.uid, l.gid, r.uid, r.gid));
        }
        if l.mtime != r.mtime && looks(Field::Mtime) {
            out.add(path, format_args!("mtime {:?} | {:?}", l.mtime, r.mtime));
        }
        if looks(Field::Xattrs) {
            xattrs(path, l, r, overlook, out);
        }
    }
    if l.first_name != r.first_name && looks(Field::Links) {
        let (a, b) = (l.first_name.escape_ascii(), r.first_name.escape_ascii());
        out.add(path, format_args!("one inode with {a} | {b}"));
    }
    if l.size != r.size {
        if looks(Field::Size) {
            out.add(path, format_args!("size {} | {}", l.size, r.size));
        }
        return Ok(());
    }
    if looks(Field::Content)
        && let Some(at) = first_difference(&l.content, &r.content)
            .map_err(|e| io::Error::new(e.kind(), format!("reading /{}: {e}", path.escape_ascii())))?
    {
        out.add(path, format_args!("content differs from byte {at} of {}", l.size));
    }
    Ok(())
}

fn xattrs(path: &[u8], l: &Node, r: &Node, overlook: &Overlook, out: &mut Differences) {
    let names: HashSet<&Vec<u8>> = l.xattrs.keys().chain(r.xattrs.keys()).collect();
    for name in names {
        let skipped = overlook.xattr_prefixes.iter().any(|p| name.starts_with(p));
        let (a, b) = (l.xattrs.get(name), r.xattrs.get(name));
        if !skipped && a != b {
            let show = |v: Option<&Vec<u8>>| v.map_or("absent".to_owned(), |v| v.escape_ascii().to_string());
            out.add(
                path,
                format_args!("xattr {}: {} | {}", name.escape_ascii(), show(a), show(b)),
            );
        }
    }
}

/// Offset of the first byte that differs; `None` if none does or one side is not at hand.
fn first_difference(l: &Content, r: &Content) -> io::Result<Option<u64>> {
    let (Some(mut l), Some(mut r)) = (open(l)?, open(r)?) else {
        return Ok(None);
    };
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let mut offset = 0;
    loop {
        a.clear();
        b.clear();
        l.by_ref().take(1 << 18).read_to_end(&mut a)?;
        r.by_ref().take(1 << 18).read_to_end(&mut b)?;
        if a != b {
            let same = a.iter().zip(&b).take_while(|(x, y)| x == y).count();
            return Ok(Some(offset + same as u64));
        }
        if a.is_empty() {
            return Ok(None);
        }
        offset += a.len() as u64;
    }
}

fn open(content: &Content) -> io::Result<Option<Box<dyn Read + '_>>> {
    Ok(match content {
        Content::None | Content::Size(_) => None,
        Content::Disk(path) => Some(Box::new(File::open(path)?)),
        Content::Memory(bytes) => Some(Box::new(bytes.as_ref())),
    })
}
