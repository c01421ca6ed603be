//! A file tree as facts, wherever it comes from.
//!
//! In: a directory, an [`Oracle`] or a [`Toc`]. Out: a [`FileTree`] of [`Node`]s by path.
//! Invariant: everything `lstat`, `llistxattr` and `readlink` say is in a node, with names as bytes; files stay where
//! they are until contents are compared.
//! Not here: the comparison ([`super::compare`]).

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use headstart_layer_format::Toc;
use headstart_layer_format::toc::{EntryId, Kind as TocKind};

use crate::corpus::{Oracle, OracleKind};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    Directory,
    File,
    Symlink { target: Vec<u8> },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
    Socket,
    Whiteout,
}

/// Where a file's bytes are.
#[derive(Clone, Debug)]
pub enum Content {
    None,
    Disk(PathBuf),
    Memory(Bytes),
    /// Only the size is known.
    Size(u64),
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: NodeKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, u32),
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path, in byte order, of the same inode; itself when it has one name.
    pub first_name: Vec<u8>,
    pub content: Content,
    pub size: u64,
    /// Metadata is nobody's statement (a parent that no tar entry mentions).
    pub implied: bool,
}

/// How whiteouts and opaque marks of an oracle appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marks {
    /// As the tar has them: empty files `.wh.NAME` and `.wh..wh..opq`.
    Files,
    /// As overlayfs wants them: character device 0:0, and `trusted.overlay.opaque=y`.
    Overlay,
    /// As [`NodeKind::Whiteout`]; opaque marks are left out.
    Facts,
}

/// Paths relative to the root, which is the empty path.
#[derive(Clone, Debug, Default)]
pub struct FileTree(pub BTreeMap<Vec<u8>, Node>);

impl FileTree {
    /// Everything below `root`, without following links.
    pub fn of_directory(root: &Path) -> io::Result<Self> {
        let mut tree = Self::default();
        let mut first_names: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        let mut todo = vec![Vec::new()];
        while let Some(path) = todo.pop() {
            let full = join(root, &path);
            let node = disk_node(&full)?;
            if node.kind == NodeKind::Directory {
                for entry in std::fs::read_dir(&full)? {
                    let name = entry?.file_name().into_vec();
                    let child = if path.is_empty() {
                        name
                    } else {
                        [&path, &b"/"[..], &name].concat()
                    };
                    todo.push(child);
                }
            }
            let meta = std::fs::symlink_metadata(&full)?;
            if node.kind != NodeKind::Directory && meta.nlink() > 1 {
                let first = first_names
                    .entry((meta.dev(), meta.ino()))
                    .or_insert_with(|| path.clone());
                if path < *first {
                    first.clone_from(&path);
                }
            }
            tree.0.insert(path, node);
        }
        for (path, node) in &mut tree.0 {
            let meta = std::fs::symlink_metadata(join(root, path))?;
            let first = first_names.get(&(meta.dev(), meta.ino()));
            node.first_name = first
                .filter(|_| node.kind != NodeKind::Directory)
                .unwrap_or(path)
                .clone();
        }
        Ok(tree)
    }

    /// Holds the contents in memory, so that the files may go.
    pub fn read_contents(&mut self) -> io::Result<()> {
        for node in self.0.values_mut() {
            if let Content::Disk(path) = &node.content {
                node.content = Content::Memory(std::fs::read(path)?.into());
            }
        }
        Ok(())
    }

    /// What an oracle says.
    pub fn of_oracle(oracle: &Oracle, marks: Marks) -> Self {
        let mut tree = Self::default();
        let mut first_names: HashMap<u32, Vec<u8>> = HashMap::new();
        for e in &oracle.entries {
            let mut path = e.path.clone();
            let mut implied = false;
            let mut xattrs: BTreeMap<_, _> = e.meta.xattrs.iter().cloned().collect();
            let (kind, content) = match &e.kind {
                OracleKind::Directory { opaque, implied: i } => {
                    implied = *i;
                    match marks {
                        Marks::Overlay if *opaque => {
                            xattrs.insert(b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
                        }
                        Marks::Files if *opaque => {
                            let mark = [&path, &b"/.wh..wh..opq"[..]].concat();
                            tree.0.insert(mark.clone(), mark_file(mark));
                        }
                        _ => {}
                    }
                    (NodeKind::Directory, Content::None)
                }
                OracleKind::File { content } => (NodeKind::File, Content::Memory(content.clone())),
                OracleKind::Symlink { target } => (NodeKind::Symlink { target: target.clone() }, Content::None),
                OracleKind::CharDevice { major, minor } => (char_device(*major, *minor), Content::None),
                OracleKind::BlockDevice { major, minor } => (
                    NodeKind::BlockDevice {
                        major: *major,
                        minor: *minor,
                    },
                    Content::None,
                ),
                OracleKind::Fifo => (NodeKind::Fifo, Content::None),
                OracleKind::Whiteout => match marks {
                    Marks::Facts => (NodeKind::Whiteout, Content::None),
                    Marks::Overlay => (char_device(0, 0), Content::None),
                    Marks::Files => {
                        let cut = path.iter().rposition(|&b| b == b'/').map_or(0, |i| i + 1);
                        path = [&path[..cut], b".wh.", &path[cut..]].concat();
                        tree.0.insert(path.clone(), mark_file(path));
                        continue;
                    }
                },
            };
            let first_name = match e.link_group {
                Some(group) => first_names.entry(group).or_insert_with(|| path.clone()).clone(),
                None => path.clone(),
            };
            let node = Node {
                kind,
                mode: e.meta.mode,
                uid: e.meta.uid,
                gid: e.meta.gid,
                mtime: (e.meta.mtime_secs, e.meta.mtime_nanos),
                xattrs,
                first_name,
                size: e.size().unwrap_or(0),
                content,
                implied,
            };
            tree.0.insert(path, node);
        }
        tree
    }

    /// A TOC as overlayfs is shown it: with contents from its data space, whiteouts and opaque marks in overlayfs's form,
    /// and without the attributes that neither a runtime unpacks nor the shim shows. Comparable with the upper directory
    /// that a runtime's unpacker filled.
    pub fn of_toc_shown(toc: &Toc, data: &[u8]) -> Self {
        let mut tree = Self::of_toc(toc);
        for (path, node) in &mut tree.0 {
            node.xattrs.retain(|name, _| !name.starts_with(b"trusted."));
            let found = toc.tree().find(path).and_then(|id| toc.tree().entry(id));
            match found.and_then(|e| toc.tree().inode(e.inode)).map(|i| &i.kind) {
                Some(TocKind::Directory { opaque: true, .. }) => {
                    let mark = (b"trusted.overlay.opaque".to_vec(), b"y".to_vec());
                    node.xattrs.extend([mark]);
                }
                Some(TocKind::Regular(content)) => {
                    let mut bytes = vec![0; content.size() as usize];
                    for e in content.extents() {
                        let (at, from, len) = (e.offset.0 as usize, e.range.start.0 as usize, e.range.len as usize);
                        bytes[at..at + len].copy_from_slice(&data[from..from + len]);
                    }
                    node.content = Content::Memory(bytes.into());
                }
                Some(TocKind::Whiteout) => {
                    (node.kind, node.mode) = (char_device(0, 0), 0);
                }
                _ => {}
            }
        }
        tree
    }

    /// What a TOC says; sizes but no contents. Comparable with an oracle under [`Marks::Facts`].
    pub fn of_toc(toc: &Toc) -> Self {
        let mut tree = Self::default();
        let mut first_names: HashMap<u32, Vec<u8>> = HashMap::new();
        let entries = toc.tree().entries().iter().enumerate();
        let mut paths: Vec<(Vec<u8>, u32)> = entries
            .map(|(i, e)| (toc.tree().path(EntryId(i as u32)), e.inode.0))
            .collect();
        paths.sort();
        for (path, inode) in paths {
            let first_name = first_names.entry(inode).or_insert_with(|| path.clone()).clone();
            let Some(inode) = toc.tree().inodes().get(inode as usize) else {
                continue;
            };
            let (mut size, mut content, mut implied) = (0, Content::None, false);
            let kind = match &inode.kind {
                TocKind::Directory { implied: i, .. } => {
                    implied = *i;
                    NodeKind::Directory
                }
                TocKind::Regular(c) => {
                    (size, content) = (c.size(), Content::Size(c.size()));
                    NodeKind::File
                }
                TocKind::Symlink { target } => NodeKind::Symlink {
                    target: target.to_vec(),
                },
                TocKind::CharDevice { major, minor } => char_device(*major, *minor),
                TocKind::BlockDevice { major, minor } => NodeKind::BlockDevice {
                    major: *major,
                    minor: *minor,
                },
                TocKind::Fifo => NodeKind::Fifo,
                TocKind::Whiteout => NodeKind::Whiteout,
            };
            let xattrs = inode.xattrs.iter().map(|x| (x.name.to_vec(), x.value.to_vec()));
            let node = Node {
                kind,
                mode: u32::from(inode.mode),
                uid: inode.uid,
                gid: inode.gid,
                mtime: (inode.mtime.secs, inode.mtime.nanos),
                xattrs: xattrs.collect(),
                first_name,
                content,
                size,
                implied,
            };
            tree.0.insert(path, node);
        }
        tree
    }
}

pub(super) fn join(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() {
        root.to_owned()
    } else {
        root.join(OsStr::from_bytes(path))
    }
}

fn char_device(major: u32, minor: u32) -> NodeKind {
    NodeKind::CharDevice { major, minor }
}

/// A mark as [`crate::corpus::LayerBuilder`] writes it.
fn mark_file(path: Vec<u8>) -> Node {
    let meta = crate::corpus::Meta::mode(0);
    Node {
        kind: NodeKind::File,
        mode: meta.mode,
        uid: meta.uid,
        gid: meta.gid,
        mtime: (meta.mtime_secs, meta.mtime_nanos),
        xattrs: BTreeMap::new(),
        first_name: path,
        content: Content::Memory(Bytes::new()),
        size: 0,
        implied: false,
    }
}

fn disk_node(full: &Path) -> io::Result<Node> {
    let meta = std::fs::symlink_metadata(full)?;
    let file_type = meta.file_type();
    let device = (libc::major(meta.rdev()), libc::minor(meta.rdev()));
    let mut content = Content::None;
    let kind = if file_type.is_dir() {
        NodeKind::Directory
    } else if file_type.is_file() {
        content = Content::Disk(full.to_owned());
        NodeKind::File
    } else if file_type.is_symlink() {
        NodeKind::Symlink {
            target: std::fs::read_link(full)?.into_os_string().into_vec(),
        }
    } else if file_type.is_char_device() {
        char_device(device.0, device.1)
    } else if file_type.is_block_device() {
        NodeKind::BlockDevice {
            major: device.0,
            minor: device.1,
        }
    } else if file_type.is_fifo() {
        NodeKind::Fifo
    } else {
        NodeKind::Socket
    };
    Ok(Node {
        size: if file_type.is_file() { meta.len() } else { 0 },
        kind,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec() as u32),
        xattrs: xattrs(full)?,
        first_name: Vec::new(),
        content,
        implied: false,
    })
}

fn xattrs(full: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let names = match xattr::list(full) {
        Ok(names) => names,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTSUP | libc::EPERM)) => return Ok(BTreeMap::new()),
        Err(e) => return Err(e),
    };
    let mut out = BTreeMap::new();
    for name in names {
        if let Some(value) = xattr::get(full, &name)? {
            out.insert(name.into_vec(), value);
        }
    }
    Ok(out)
}
