//! A read of a file, in terms of the layer's data space.
//!
//! In: a file's extents (or the whole data space), an offset and a length. Out: [`ReadPlan`]: ranges to read and where they go; zeros elsewhere.
//! Invariant: the plan covers exactly the bytes the file has there; a hole is never a range, a range never a hole.
//! Not here: fetching (the layer's reader), replies.

use std::io;
use std::sync::Arc;

use headstart_layer_format::{LayerOffset, LayerRange};

use super::tree_file::Extents;
use crate::cache::{Found, Layer};
use crate::fetch::FetchError;

/// Most bytes one request may ask for; the kernel's own bound is 1 MiB (256 pages).
pub const READ_SIZE_MAX: u32 = 1 << 20;

/// A chunk may go again before its reader was here: when it is given back just then.
const TRIES: u32 = 5;

#[derive(Debug)]
pub struct ReadPlan {
    layer: Arc<Layer>,
    /// What is fetched with it, or ahead of it.
    bodies: Vec<LayerRange>,
    len: usize,
    /// Where in the answer, and from where in the data space; the same ranges twice, so that both can be sliced.
    places: Vec<usize>,
    ranges: Vec<LayerRange>,
}

/// Each text completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("read the cache: {0}")]
    Cache(#[from] io::Error),
    #[error("read the cache: a chunk that was just stored is gone")]
    Lost,
}

impl ReadPlan {
    /// A read from `offset` to `end`, which is in the file and at most [`READ_SIZE_MAX`] behind it. `found`: for these.
    pub(super) fn of_file(layer: Arc<Layer>, found: Extents, offset: u64, end: u64) -> Self {
        let place = |at: &u64| at.saturating_sub(offset) as usize;
        Self {
            layer,
            bodies: found.bodies,
            len: end.saturating_sub(offset) as usize,
            places: found.touched.iter().map(|(at, _)| place(at)).collect(),
            ranges: found.touched.into_iter().map(|(_, range)| range).collect(),
        }
    }

    /// A read of the data space as one file.
    pub(super) fn of_device(layer: Arc<Layer>, offset: u64, size: u32) -> Self {
        let end = layer.contents().chunks().data_size();
        let start = offset.min(end);
        let range = LayerRange {
            start: LayerOffset(start),
            len: u64::from(size.min(READ_SIZE_MAX)).min(end - start),
        };
        let bodies = layer.contents().bodies().touched(range);
        Self {
            layer,
            bodies,
            len: range.len as usize,
            places: vec![0; usize::from(range.len > 0)],
            ranges: if range.len > 0 { vec![range] } else { Vec::new() },
        }
    }

    /// The bytes, if they are all here. Local file reads only.
    pub fn read_cached(&self) -> io::Result<Option<Vec<u8>>> {
        let mut out = vec![0; self.len];
        Ok(self.fill_cached(&mut out)?.then_some(out))
    }

    /// The same, into a buffer that may have been used before; see [`ReadPlan::answer`].
    pub fn read_cached_into(&self, buffer: &mut Vec<u8>) -> io::Result<bool> {
        self.fill_cached(self.room(buffer))
    }

    /// The same, if nothing must be waited for.
    pub fn read_now(&self, buffer: &mut Vec<u8>) -> io::Result<Found> {
        let out = self.room(buffer);
        for (place, range) in self.places.iter().zip(&self.ranges) {
            let part = &mut out[*place..*place + range.len as usize];
            match self.layer.reader().read_now(*range, part)? {
                Found::Here => {}
                not_now => return Ok(not_now),
            }
        }
        Ok(Found::Here)
    }

    /// What was read into a buffer.
    pub fn answer<'a>(&self, buffer: &'a [u8]) -> &'a [u8] {
        &buffer[..self.len]
    }

    /// Zeros where no range goes.
    fn room<'a>(&self, buffer: &'a mut Vec<u8>) -> &'a mut [u8] {
        if buffer.len() < self.len {
            buffer.resize(self.len, 0);
        }
        let out = &mut buffer[..self.len];
        if self.ranges.iter().fold(0, |sum, r| sum + r.len) < self.len as u64 {
            out.fill(0);
        }
        out
    }

    fn fill_cached(&self, out: &mut [u8]) -> io::Result<bool> {
        for (place, range) in self.places.iter().zip(&self.ranges) {
            let part = &mut out[*place..*place + range.len as usize];
            if !self.layer.reader().read_cached(*range, part)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Keeps a sequential reader's next stretch coming; for a read that was a hit.
    pub fn read_ahead(&self) {
        if let [only] = self.bodies[..] {
            self.layer.reader().read_ahead(&self.ranges, &[only]);
        }
    }

    /// The bytes, after fetching what is missing.
    pub async fn read(self) -> Result<Vec<u8>, ReadError> {
        let _wanted = self.layer.reader().want(&self.ranges);
        let plan = Arc::new(self);
        for _ in 0..TRIES {
            plan.layer.reader().fetch(&plan.ranges, &plan.bodies).await?;
            // The bytes were just written, so this is a copy from the page cache; still not for an async thread.
            let reader = Arc::clone(&plan);
            let read = tokio::task::spawn_blocking(move || reader.read_cached()).await;
            if let Some(bytes) = read.map_err(|_| ReadError::Lost)?? {
                return Ok(bytes);
            }
        }
        Err(ReadError::Lost)
    }

    /// Tells whoever records a start.
    pub fn note(&self) {
        let (recorder, table) = (self.layer.recorder(), self.layer.contents().chunks());
        recorder.touch(table, &self.ranges);
        if recorder.is_listening() {
            recorder.note(table, &self.bodies, &self.ranges);
        }
    }

    pub fn layer(&self) -> &Layer {
        &self.layer
    }
}
