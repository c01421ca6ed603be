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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Store;

    #[test]
    fn a_chunk_that_is_stored_is_hashed_and_not_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let storing = Storing {
            store: Arc::new(store.begin_conversion()),
            progress: Progress::new(Duration::from_secs(60)),
        };
        let mut tools = Tools {
            compressor: frame::compressor(3).unwrap(),
            out: Vec::new(),
        };
        let raw = b"compresses well ".repeat(1000);
        let first = storing.piece(&raw, &mut tools).unwrap();
        assert_eq!(tools.out.len(), first.frame_len as usize);

        tools.out = b"untouched".to_vec();
        let again = storing.piece(&raw, &mut tools).unwrap();
        assert_eq!((again, tools.out.as_slice()), (first, &b"untouched"[..]));
        let read = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        let counted = (
            read(&storing.progress.new_chunks),
            read(&storing.progress.reused_chunks),
        );
        assert_eq!(counted, (raw.len() as u64, raw.len() as u64));
    }
}
