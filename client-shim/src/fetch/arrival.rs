//! A chunk whose frame arrives without anybody having asked for it alone.
//!
//! In: a chunk that no run fetches, then its frame. Out: the chunk, in the sink; readers that came meanwhile wait for this
//! frame instead of fetching it again. Invariant: dropped before its frame came, readers fetch for themselves.
//! Not here: where frames come from (`profile/stream.rs`).

use std::sync::Arc;

use bytes::Bytes;
use headstart_layer_format::toc::Chunk;

use super::error::FetchError;
use super::run::Claim;

/// The only one that brings this chunk.
#[derive(Debug)]
pub(crate) struct Arrival {
    chunk: Chunk,
    claim: Arc<Claim>,
}

impl Arrival {
    pub(super) fn new(chunk: Chunk, claim: Arc<Claim>) -> Self {
        Self { chunk, claim }
    }

    /// Checks the frame and keeps the chunk. Blocks: CPU and disk.
    pub(crate) fn accept(self, frame: &Bytes) -> Result<(), FetchError> {
        self.claim.accept(self.chunk, frame)
    }
}
