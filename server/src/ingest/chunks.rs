//! Hashing, compressing and storing chunks on a few threads.
//!
//! In: raw chunks in order. Out: their table entries, in order; frames of new chunks in the store.
//! Invariant: a chunk's digest is that of the bytes its frame decompresses to; a chunk the store has is not compressed
//! again; at most [`QUEUE`] chunks wait, so memory is bounded by queue and threads.
//! Not here: where chunks begin and end ([`super::cut`]), publishing (`store`).

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Scope, ScopedJoinHandle};

use headstart_layer_format::ChunkDigest;
use headstart_layer_format::toc::ChunkEntry;

use super::error::{ConvertError, Failure};
use super::progress::Progress;
use crate::store::conversion::Conversion;

/// Chunks waiting for a thread: some 4 MiB.
const QUEUE: usize = 8;

type Job = (usize, Vec<u8>);
type Done = Vec<(usize, ChunkEntry)>;

/// The pool of one conversion.
#[derive(Debug)]
pub struct ChunkPool<'scope> {
    jobs: Option<SyncSender<Job>>,
    workers: Vec<ScopedJoinHandle<'scope, Result<Done, Failure>>>,
    count: usize,
}

impl<'scope> ChunkPool<'scope> {
    pub fn start<'env>(
        scope: &'scope Scope<'scope, 'env>,
        threads: usize,
        level: i32,
        store: &'env Conversion,
        progress: &'env Progress,
    ) -> Self {
        let (sender, receiver) = sync_channel(QUEUE);
        let receiver = Arc::new(Mutex::new(receiver));
        let workers = (0..threads.max(1))
            .map(|_| {
                let jobs = Arc::clone(&receiver);
                scope.spawn(move || progress.count_cpu(|| work(&jobs, level, store, progress)))
            })
            .collect();
        Self {
            jobs: Some(sender),
            workers,
            count: 0,
        }
    }

    /// Hands over the next chunk; waits while the queue is full.
    pub fn push(&mut self, raw: Vec<u8>) -> Result<(), ConvertError> {
        let job = (self.count, raw);
        self.count += 1;
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(job));
        // The receivers are gone only when every worker failed; `finish` says why.
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(Failure::WorkerGone.into()),
        }
    }

    /// Waits for the workers; the entries in order.
    pub fn finish(mut self) -> Result<Vec<ChunkEntry>, ConvertError> {
        self.jobs = None;
        let mut done: Done = Vec::with_capacity(self.count);
        for worker in self.workers {
            done.extend(worker.join().map_err(|_| Failure::WorkerGone)??);
        }
        done.sort_unstable_by_key(|(at, _)| *at);
        if done.len() != self.count {
            return Err(Failure::WorkerGone.into());
        }
        Ok(done.into_iter().map(|(_, entry)| entry).collect())
    }
}

fn work(jobs: &Mutex<Receiver<Job>>, level: i32, store: &Conversion, progress: &Progress) -> Result<Done, Failure> {
    let mut compressor = zstd::bulk::Compressor::new(level).map_err(Failure::Compress)?;
    let mut done = Done::new();
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((at, raw)) = job else { return Ok(done) };
        let digest = ChunkDigest::of(&raw);
        let raw_len = raw.len() as u32;
        let (frame_len, new) = match store.chunk_frame_len(&digest)? {
            Some(frame_len) => (frame_len, false),
            None => {
                let frame = compressor.compress(&raw).map_err(Failure::Compress)?;
                store.append_chunk(&digest, raw_len, &frame)?
            }
        };
        let counter = if new {
            progress.new_frames.fetch_add(u64::from(frame_len), Ordering::Relaxed);
            &progress.new_chunks
        } else {
            &progress.reused_chunks
        };
        counter.fetch_add(u64::from(raw_len), Ordering::Relaxed);
        done.push((
            at,
            ChunkEntry {
                digest,
                raw_len,
                frame_len,
            },
        ));
    }
}
