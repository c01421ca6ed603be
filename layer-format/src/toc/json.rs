//! The TOC as JSON, for people and tools.
//!
//! In: a [`Toc`]. Out: [`TocView`], serialisable. Invariant: says everything but the skeleton's bytes; names that are
//! not UTF-8 are not lost (`*_hex` beside the lossy text).
//! Not here: a JSON decoder. Nodes use the binary form.

use serde::Serialize;

use super::Toc;
use super::tree::{EntryId, Kind};
use crate::digest::{BlobDigest, ChunkDigest, DiffId, hex};
use crate::offset::{BlobRange, FileOffset, LayerRange};

#[derive(Debug, Serialize)]
pub struct TocView {
    pub version: u8,
    pub layer_digest: BlobDigest,
    pub diff_id: DiffId,
    pub tar_size: u64,
    pub data_size: u64,
    pub blob_size: u64,
    pub skeleton: SkeletonView,
    pub entries: Vec<EntryView>,
    pub chunks: Vec<ChunkView>,
}

#[derive(Debug, Serialize)]
pub struct SkeletonView {
    pub size: u64,
    pub compressed_size: u64,
    pub bodies: u64,
}

#[derive(Debug, Serialize)]
pub struct ChunkView {
    pub digest: ChunkDigest,
    pub range: LayerRange,
    pub frame: BlobRange,
}

#[derive(Debug, Serialize)]
pub struct EntryView {
    /// Relative to the root; the root's own is empty.
    pub path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    pub inode: u32,
    pub kind: &'static str,
    /// Octal.
    pub mode: String,
    pub uid: u32,
    pub gid: u32,
    pub mtime_secs: i64,
    pub mtime_nanos: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extents: Vec<ExtentView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<[u32; 2]>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub opaque: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub implied: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub xattrs: Vec<XattrView>,
}

#[derive(Debug, Serialize)]
pub struct ExtentView {
    pub offset: FileOffset,
    pub range: LayerRange,
}

#[derive(Debug, Serialize)]
pub struct XattrView {
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_hex: Option<String>,
    pub value_hex: String,
}

/// Text, and the exact bytes in hex when they are not text.
fn text(bytes: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(t) => (t.to_owned(), None),
        Err(_) => (String::from_utf8_lossy(bytes).into_owned(), Some(hex(bytes))),
    }
}

impl Toc {
    /// The JSON view.
    pub fn view(&self) -> TocView {
        TocView {
            version: super::TOC_VERSION,
            layer_digest: self.layer_digest,
            diff_id: self.diff_id,
            tar_size: self.skeleton.tar_size(),
            data_size: self.chunks.data_size(),
            blob_size: self.chunks.blob_size(),
            skeleton: SkeletonView {
                size: self.skeleton.size(),
                compressed_size: self.skeleton.frame().len() as u64,
                bodies: self.skeleton.bodies().len() as u64,
            },
            entries: (0..self.tree.entries().len() as u32)
                .filter_map(|i| self.entry_view(EntryId(i)))
                .collect(),
            chunks: self
                .chunks
                .iter()
                .map(|c| ChunkView {
                    digest: c.digest,
                    range: c.range,
                    frame: c.frame,
                })
                .collect(),
        }
    }

    fn entry_view(&self, id: EntryId) -> Option<EntryView> {
        let entry = self.tree.entry(id)?;
        let inode = self.tree.inode(entry.inode)?;
        let (path, path_hex) = text(&self.tree.path(id));
        let mut view = EntryView {
            path,
            path_hex,
            inode: entry.inode.0,
            kind: "",
            mode: format!("{:04o}", inode.mode),
            uid: inode.uid,
            gid: inode.gid,
            mtime_secs: inode.mtime.secs,
            mtime_nanos: inode.mtime.nanos,
            size: None,
            extents: Vec::new(),
            target: None,
            target_hex: None,
            device: None,
            opaque: false,
            implied: false,
            xattrs: inode
                .xattrs
                .iter()
                .map(|x| {
                    let (name, name_hex) = text(&x.name);
                    XattrView {
                        name,
                        name_hex,
                        value_hex: hex(&x.value),
                    }
                })
                .collect(),
        };
        view.kind = match &inode.kind {
            Kind::Directory { opaque, implied } => {
                (view.opaque, view.implied) = (*opaque, *implied);
                "directory"
            }
            Kind::Regular(content) => {
                view.size = Some(content.size());
                view.extents = content
                    .extents()
                    .iter()
                    .map(|e| ExtentView {
                        offset: e.offset,
                        range: e.range,
                    })
                    .collect();
                "regular"
            }
            Kind::Symlink { target } => {
                let (text, hex) = text(target);
                (view.target, view.target_hex) = (Some(text), hex);
                "symlink"
            }
            Kind::CharDevice { major, minor } => {
                view.device = Some([*major, *minor]);
                "char-device"
            }
            Kind::BlockDevice { major, minor } => {
                view.device = Some([*major, *minor]);
                "block-device"
            }
            Kind::Fifo => "fifo",
            Kind::Whiteout => "whiteout",
        };
        Some(view)
    }
}
