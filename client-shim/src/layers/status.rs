//! How the layers of this node stand.
//!
//! In: layers. Out: numbers for `status`, metrics and logs. Invariant: counted from what is in memory; nothing is asked, and
//! nothing waits.
//! Not here: how they are shown to people (`cli/status.rs`, `observe`).

use std::sync::Arc;

use headstart_layer_format::BlobDigest;

use crate::cache::Layer;
use crate::counters::Counters;
use crate::presentation::How;
use crate::profile::ImagePrefetch;

/// How the lazy half stands.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// "erofs" or "fuse".
    pub presentation: &'static str,
    pub counters: Arc<Counters>,
    pub layers: Vec<LayerProgress>,
    /// Bytes of layers that the kernel reads by itself.
    pub lent_bytes: u64,
    /// Images that were prepared lately, the latest first.
    pub prefetches: Vec<ImagePrefetch>,
}

/// How much of a layer is here.
#[derive(Clone, Debug)]
pub struct LayerProgress {
    pub digest: BlobDigest,
    pub slot: u32,
    /// `None` while its tree is made.
    pub how: Option<How>,
    pub chunks_present: u32,
    pub chunks: u32,
    pub disk_bytes: u64,
    /// Compressed, of the chunks that the kernel has read through this process.
    pub read_bytes: u64,
    /// All of it was here, and is what its image names.
    pub verified: bool,
    /// All of it was here, and is not.
    pub quarantined: bool,
}

impl LayerProgress {
    pub(super) fn of(layer: &Layer, how: Option<How>) -> LayerProgress {
        let chunks = layer.contents().chunks();
        let read = layer.recorder().touched().into_iter().filter_map(|i| chunks.chunk(i));
        LayerProgress {
            digest: *layer.digest(),
            slot: layer.slot(),
            how,
            chunks_present: layer.file().chunk_count(),
            chunks: chunks.len(),
            disk_bytes: layer.file().disk_bytes(),
            read_bytes: read.map(|chunk| chunk.frame.len).sum(),
            verified: layer.file().is_verified(),
            quarantined: layer.file().is_quarantined(),
        }
    }
}
