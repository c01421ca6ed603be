//! Hashing, compressing and storing the chunks of one conversion, on the shared threads.
//!
//! In: raw chunks. Out: their table entries; frames of new chunks in the store.
//! Invariant: a chunk's digest is that of the bytes its frame decompresses to; a chunk the store has is not compressed
//! again; one that compression would hardly shrink is stored plain.
//! Not here: where chunks begin and end ([`super::cut`]), whose turn it is ([`super::pool`]), publishing (`store`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use headstart_layer_format::ChunkDigest;
use headstart_layer_format::toc::ChunkEntry;

use super::assemble::Chunks;
use super::error::{ConvertError, Failure};
use super::frame;
use super::pool::{Lane, Tools, Work};
use super::progress::Progress;
use crate::store::conversion::Conversion;

/// What the pool does for one conversion.
#[derive(Debug)]
pub struct Storing {
    pub store: Arc<Conversion>,
    pub progress: Progress,
}

impl Work for Storing {
    fn piece(&self, raw: &[u8], tools: &mut Tools) -> Result<ChunkEntry, Failure> {
        self.progress.count_cpu(|| self.store_chunk(raw, tools))
    }
}

impl Storing {
    fn store_chunk(&self, raw: &[u8], tools: &mut Tools) -> Result<ChunkEntry, Failure> {
        // What is left of it is nobody's any more.
        if self.progress.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        let digest = ChunkDigest::of(raw);
        let raw_len = raw.len() as u32;
        let (frame_len, new) = match self.store.chunk_frame_len(&digest)? {
            Some(frame_len) => (frame_len, false),
            None => {
                let frame = frame::write(raw, &mut tools.compressor, &mut tools.out).map_err(Failure::Compress)?;
                self.store.append_chunk(&digest, raw_len, frame)?
            }
        };
        let counter = if new {
            self.progress
                .new_frames
                .fetch_add(u64::from(frame_len), Ordering::Relaxed);
            &self.progress.new_chunks
        } else {
            &self.progress.reused_chunks
        };
        counter.fetch_add(u64::from(raw_len), Ordering::Relaxed);
        Ok(ChunkEntry {
            digest,
            raw_len,
            frame_len,
        })
    }
}

impl Chunks for Lane {
    fn buffer(&mut self) -> Vec<u8> {
        Lane::buffer(self)
    }

    fn push(&mut self, raw: Vec<u8>) -> Result<(), ConvertError> {
        Ok(Lane::push(self, raw)?)
    }

    fn finish(self) -> Result<Vec<ChunkEntry>, ConvertError> {
        Ok(Lane::finish(self)?)
    }
}
