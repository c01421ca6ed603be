//! What a layer's tar must turn into.
//!
//! In: entries in tar order, as [`super::LayerBuilder`] writes them. Out: the final names, one each.
//! Invariant: follows what containerd's unpacker does: the last entry of a path wins, a directory entry on a directory
//! changes its metadata and keeps its children, a hard link shares the inode its target has *at that point*, missing
//! parents are implied. Whiteouts are facts of the layer, not applied.
//! Not here: stacking of layers, and the comparison with a directory or a TOC ([`crate::check`]).

use std::collections::BTreeMap;

use bytes::Bytes;
use headstart_layer_format::BlobDigest;

/// Metadata of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Permission bits, set-id and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime_secs: i64,
    pub mtime_nanos: u32,
    /// Name and value, as bytes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Default for Meta {
    fn default() -> Self {
        Self {
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime_secs: 1_700_000_000,
            mtime_nanos: 0,
            xattrs: Vec::new(),
        }
    }
}

impl Meta {
    pub fn mode(mode: u32) -> Self {
        Self {
            mode,
            ..Self::default()
        }
    }

    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn mtime(mut self, secs: i64, nanos: u32) -> Self {
        (self.mtime_secs, self.mtime_nanos) = (secs, nanos);
        self
    }

    pub fn xattr(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self.xattrs.sort();
        self
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OracleKind {
    Directory {
        /// Marked `.wh..wh..opq`.
        opaque: bool,
        /// The tar has no entry for it, so its metadata is nobody's statement.
        implied: bool,
    },
    /// Content as a reader sees it, holes filled with zeros.
    File {
        content: Bytes,
    },
    Symlink {
        target: Vec<u8>,
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
    /// `.wh.NAME`; listed under NAME.
    Whiteout,
}

/// A name that exists after the layer's tar was applied to an empty directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OracleEntry {
    /// Relative to the root, no leading or trailing slash; empty for the root.
    pub path: Vec<u8>,
    pub kind: OracleKind,
    pub meta: Meta,
    /// Names with the same number are one inode; present when there are at least two.
    pub link_group: Option<u32>,
}

impl OracleEntry {
    /// SHA-256 of a file's content.
    pub fn content_digest(&self) -> Option<BlobDigest> {
        match &self.kind {
            OracleKind::File { content } => Some(BlobDigest::of(content)),
            _ => None,
        }
    }

    /// Size of a file's content.
    pub fn size(&self) -> Option<u64> {
        match &self.kind {
            OracleKind::File { content } => Some(content.len() as u64),
            _ => None,
        }
    }
}

/// The final names of a layer, ordered by path bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Oracle {
    pub entries: Vec<OracleEntry>,
}

impl Oracle {
    pub fn get(&self, path: impl AsRef<[u8]>) -> Option<&OracleEntry> {
        let path = path.as_ref();
        let at = self.entries.binary_search_by(|e| e.path.as_slice().cmp(path)).ok()?;
        self.entries.get(at)
    }
}

/// Applies entries one by one.
#[derive(Debug)]
pub(super) struct OracleBuilder {
    nodes: Vec<(OracleKind, Meta)>,
    names: BTreeMap<Vec<u8>, usize>,
}

const IMPLIED: OracleKind = OracleKind::Directory {
    opaque: false,
    implied: true,
};

impl OracleBuilder {
    pub(super) fn new() -> Self {
        Self {
            nodes: vec![(IMPLIED, Meta::mode(0o755))],
            names: BTreeMap::from([(Vec::new(), 0)]),
        }
    }

    pub(super) fn put(&mut self, path: &[u8], kind: OracleKind, meta: Meta) {
        self.imply_parents(path);
        if let OracleKind::Directory { .. } = kind
            && let Some(&node) = self.names.get(path)
            && let OracleKind::Directory { opaque, .. } = self.nodes[node].0
        {
            self.nodes[node] = (OracleKind::Directory { opaque, implied: false }, meta);
            return;
        }
        self.nodes.push((kind, meta));
        self.point(path, self.nodes.len() - 1);
    }

    pub(super) fn link(&mut self, path: &[u8], target: &[u8]) {
        self.imply_parents(path);
        let node = *self
            .names
            .get(target)
            .expect("a corpus links only to names it wrote before");
        self.point(path, node);
    }

    pub(super) fn opaque(&mut self, dir: &[u8]) {
        self.imply_parents(&[dir, b"/x"].concat());
        let node = self.names[dir];
        if let OracleKind::Directory { opaque, .. } = &mut self.nodes[node].0 {
            *opaque = true;
        }
    }

    pub(super) fn meta(&self, path: &[u8]) -> &Meta {
        &self.nodes[self.names[path]].1
    }

    pub(super) fn finish(self) -> Oracle {
        let mut uses = vec![0u32; self.nodes.len()];
        for &node in self.names.values() {
            uses[node] += 1;
        }
        let entries = self.names.into_iter().map(|(path, node)| OracleEntry {
            path,
            kind: self.nodes[node].0.clone(),
            meta: self.nodes[node].1.clone(),
            link_group: (uses[node] > 1).then_some(node as u32),
        });
        Oracle {
            entries: entries.collect(),
        }
    }

    /// A name that was a directory loses what was below it.
    fn point(&mut self, path: &[u8], node: usize) {
        let below = [path, b"/"].concat();
        // Looked for where they would be: a layer of 60,000 files took minutes when all names were looked at.
        let lost: Vec<Vec<u8>> = self
            .names
            .range(below.clone()..)
            .map(|(name, _)| name.clone())
            .take_while(|name| name.starts_with(&below))
            .collect();
        for name in lost {
            self.names.remove(&name);
        }
        self.names.insert(path.to_vec(), node);
    }

    fn imply_parents(&mut self, path: &[u8]) {
        for at in (0..path.len()).filter(|&i| path[i] == b'/') {
            if !self.names.contains_key(&path[..at]) {
                self.nodes.push((IMPLIED, Meta::mode(0o755)));
                self.names.insert(path[..at].to_vec(), self.nodes.len() - 1);
            }
        }
    }
}
