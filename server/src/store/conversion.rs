//! A conversion's hold on the store: what it counts on stays, and it stays within the budget.
//!
//! In: chunks and at last a TOC, from one conversion. Out: the same as from [`Store`].
//! Invariant: nothing that this conversion was told is stored goes away before it has ended ([`super::in_flight`]).
//! While packs exceed their budget, it waits for the reclaimer, for a bounded time. A layer that alone would need more
//! than half the budget is refused: it would drive everything else out, again at every try.
//! Not here: how a layer is taken apart (`ingest`).

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headstart_layer_format::api::TocSummary;
use headstart_layer_format::{BlobDigest, ChunkDigest, Toc};

use super::layers::RECORD_OVERHEAD;
use super::{Store, StoreError};

/// How long a conversion waits for the reclaimer; a sweep of one pack takes some seconds. The one that has run for longest
/// waits twice as long.
pub(crate) const ROOM_WAIT: Duration = Duration::from_secs(30);
/// The bell may be taken while a cycle that freed nothing has its pause.
const RING_AGAIN: Duration = Duration::from_secs(1);
const ROOM_POLL: Duration = Duration::from_millis(20);

/// Ends when dropped.
#[derive(Debug)]
pub struct Conversion {
    store: Store,
    id: u64,
    /// Of chunks of this layer, new or not.
    bytes: AtomicU64,
}

impl Store {
    /// Whether a conversion waits for room at the moment.
    pub fn is_waited_for(&self) -> bool {
        self.inner.waiting_for_room.load(Ordering::Relaxed) > 0
    }

    /// For one conversion.
    pub fn begin_conversion(&self) -> Conversion {
        Conversion {
            store: self.clone(),
            id: self.inner.in_flight.begin(),
            bytes: AtomicU64::new(0),
        }
    }
}

impl Conversion {
    /// As [`Store::chunk_frame_len`]; the chunk then stays.
    pub fn chunk_frame_len(&self, digest: &ChunkDigest) -> Result<Option<u32>, StoreError> {
        self.store.inner.in_flight.note(self.id, digest.as_bytes());
        let known = self.store.chunk_frame_len(digest)?;
        if let Some(len) = known {
            self.count(len)?;
        }
        Ok(known)
    }

    /// As [`Store::append_chunk`].
    pub fn append_chunk(&self, digest: &ChunkDigest, raw_len: u32, frame: &[u8]) -> Result<(u32, bool), StoreError> {
        self.store.inner.in_flight.note(self.id, digest.as_bytes());
        self.wait_for_room()?;
        let appended = self.store.append_chunk(digest, raw_len, frame);
        if let Err(StoreError::Io { source, .. }) = &appended
            && matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
            && let Some(bell) = self.store.inner.bell.get()
        {
            bell.ring(|rung| rung.disk_full = true);
        }
        let (len, new) = appended?;
        self.count(len)?;
        Ok((len, new))
    }

    /// As [`Store::publish_layer`].
    pub fn publish_layer(&self, layer: &BlobDigest, toc: &Toc) -> Result<TocSummary, StoreError> {
        self.store.publish(layer, toc, |digest| {
            self.store.inner.in_flight.note(self.id, digest.as_bytes());
        })
    }

    fn count(&self, frame_len: u32) -> Result<(), StoreError> {
        let len = u64::from(frame_len) + RECORD_OVERHEAD;
        let bytes = self.bytes.fetch_add(len, Ordering::Relaxed) + len;
        let bytes_max = self.store.bytes_max() / 2;
        if bytes > bytes_max {
            return Err(StoreError::LayerOverBudget { bytes_max });
        }
        Ok(())
    }

    fn wait_for_room(&self) -> Result<(), StoreError> {
        let inner = &self.store.inner;
        if inner.packs.bytes() <= self.store.bytes_max() {
            return Ok(());
        }
        let _waiting = Waiting::begin(&inner.waiting_for_room);
        let begun = Instant::now();
        // Several may want more than there is: they must not all give up at once, and come again at once.
        let is_over = || {
            let times = if inner.in_flight.is_oldest(self.id) { 2 } else { 1 };
            begun.elapsed() > ROOM_WAIT * times
        };
        let mut ring_at = Instant::now();
        while inner.packs.bytes() > self.store.bytes_max() {
            let Some(bell) = inner.bell.get() else { return Ok(()) };
            if bell.is_stopping() || is_over() {
                return Err(StoreError::OverBudget);
            }
            if Instant::now() >= ring_at {
                ring_at = Instant::now() + RING_AGAIN;
                bell.ring(|rung| rung.over_budget = true);
            }
            std::thread::sleep(ROOM_POLL);
        }
        Ok(())
    }
}

/// One more that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Conversion {
    fn drop(&mut self) {
        self.store.inner.in_flight.end(self.id);
    }
}
