//! The `sources` file: in which repositories a layer's original may be had.
//!
//! In/out: JSON, atomically replaced. Invariant: a few sources, each well formed; a missing or damaged file is none, which
//! costs the last resort only. Not here: what is done with them (`fetch/original`).

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::atomic_file;
use crate::fetch::original::{BlobSource, Sources};

const FILE: &str = "sources";
/// Eight references of at most 600 bytes.
const FILE_SIZE_MAX: u64 = 16 << 10;

pub(super) fn load(dir: &Path) -> Arc<Sources> {
    let bytes = atomic_file::read_bounded(&dir.join(FILE), FILE_SIZE_MAX).unwrap_or_default();
    Arc::new(Sources::new(serde_json::from_slice(&bytes).unwrap_or_default()))
}

pub(super) fn save(dir: &Path, sources: &[BlobSource]) -> io::Result<()> {
    let json = serde_json::to_vec(sources).map_err(io::Error::other)?;
    atomic_file::put(dir, FILE, &json)
}
