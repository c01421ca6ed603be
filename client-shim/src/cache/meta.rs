//! The `layer` file: which layer a cache directory is, and its slot.
//!
//! In/out: JSON, atomically replaced. Invariant: written last when a layer is admitted, so a directory that has an intact
//! one is complete (after power loss it may not be: the TOC is checked against its digest here). Not here: the TOC and the bytes it names.

use std::io;
use std::path::Path;

use crate::atomic_file;
use headstart_layer_format::{BlobDigest, TocDigest};
use serde::{Deserialize, Serialize};

pub(super) const FILE: &str = "layer";
/// Two digests and a number take about 300 bytes.
const FILE_SIZE_MAX: u64 = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Meta {
    pub(super) version: u32,
    pub(super) layer: BlobDigest,
    pub(super) toc: TocDigest,
    pub(super) slot: u32,
}

impl Meta {
    pub(super) const VERSION: u32 = 1;

    /// Durable only when it is settled.
    pub(super) fn save(&self, dir: &Path) -> io::Result<()> {
        let json = serde_json::to_vec(self).map_err(io::Error::other)?;
        atomic_file::put(dir, FILE, &json)
    }

    /// `None` when the directory is not a complete layer.
    pub(super) fn load(dir: &Path) -> Option<Self> {
        let bytes = atomic_file::read_bounded(&dir.join(FILE), FILE_SIZE_MAX).ok()?;
        let meta: Self = serde_json::from_slice(&bytes).ok()?;
        (meta.version == Self::VERSION && meta.slot > 0).then_some(meta)
    }
}
