//! A layer's TOC on this node's disk.
//!
//! In: an encoded TOC, stored as it was served. Out: the decoded TOC. Invariant: it is decoded only when its digest is
//! the one recorded and it describes the layer recorded. Not here: where it came from.

use std::io;
use std::path::Path;
use std::sync::Arc;

use headstart_layer_format::limits::TOC_SIZE_MAX;
use headstart_layer_format::{BlobDigest, Toc, TocDigest};

use crate::atomic_file;

const FILE: &str = "toc";

/// Durable only when it is settled.
pub(super) fn save(dir: &Path, encoded: &[u8]) -> io::Result<()> {
    atomic_file::put(dir, FILE, encoded)
}

pub(super) fn settle(dir: &Path) -> io::Result<()> {
    atomic_file::settle(dir, FILE)
}

/// `None` when it is missing or damaged: the caller starts the layer over.
pub(super) fn load(dir: &Path, digest: &TocDigest, layer: &BlobDigest) -> Option<Arc<Toc>> {
    let bytes = atomic_file::read_bounded(&dir.join(FILE), TOC_SIZE_MAX).ok()?;
    if Toc::digest(&bytes) != *digest {
        return None;
    }
    let toc = Toc::decode(&bytes).ok()?;
    (toc.layer_digest() == layer).then(|| Arc::new(toc))
}
