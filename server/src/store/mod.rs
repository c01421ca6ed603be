//! The store: packs are the truth, sled is the index over them. `STORE.md` has the layout and the crash argument.
//!
//! In: facts from served manifests, chunks and TOCs from conversions. Out: the same, verified, also after a crash, and
//! also without the index. Invariant: what an answer says was once written to a pack whole; losing the index costs time.
//! Everything here is synchronous. Facts cost a write into the page cache; publishing a layer syncs, so it belongs on a
//! thread that may wait.
//! Not here: original blobs (`originals.rs`), and who may see what (`read`).

mod at_hand;
pub mod audit;
pub mod bell;
mod bulk;
mod compact;
pub mod conversion;
#[cfg(test)]
pub(crate) mod crash;
pub(crate) mod disk;
pub mod facts;
pub mod forget;
pub(crate) mod fuzz;
pub mod hasher;
mod heal;
pub mod hot;
mod in_flight;
mod index;
pub mod intact;
mod keys;
mod layer_use;
mod layers;
mod learned;
pub mod leftovers;
pub mod members;
pub mod mend;
mod notes;
mod open;
pub mod opened;
pub mod originals;
mod pack;
mod packs;
pub mod partial;
pub mod pins;
pub mod plan;
mod record;
mod recover;
pub mod refusal;
mod seal;
pub mod sweep;
pub mod units;
mod untag;
pub mod usage;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

use headstart_layer_format::{ChunkDigest, TocError};

use crate::metrics::Metrics;
use bell::Bell;
pub use compact::INDEX_SPARE_BYTES;
use in_flight::InFlight;
use index::Index;
pub use index::{IndexError, Why};
pub use layer_use::LayerHold;
use layer_use::LayerUse;
pub use layers::{CONVERTER_VERSION, LayerRecord};
/// A pack without a record.
pub use pack::PACK_HEADER_LEN as EMPTY_PACK_BYTES;
pub use pack::PackId;
use packs::Packs;

/// A pack is rolled at this size: large enough that few files are open, small enough to be copied as one object.
pub const PACK_SIZE_MAX: u64 = 1 << 30;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("another process uses the store in {0}")]
    Locked(PathBuf),
    #[error("find a store in {0}")]
    NoStore(PathBuf),
    #[error("encode a record")]
    Encode,
    #[error("encode the TOC: {0}")]
    Toc(TocError),
    #[error("publish a layer: chunk {0} is not stored")]
    MissingChunk(ChunkDigest),
    #[error("pin one more: there are {max} pins, which is the most")]
    TooManyPins { max: usize },
    #[error("store a chunk: packs exceed their budget, and nothing could be reclaimed in time")]
    OverBudget,
    /// For good, as long as the budget is what it is.
    #[error("store a chunk: the layer alone needs more than {bytes_max} bytes, half of the budget")]
    LayerOverBudget { bytes_max: u64 },
}

impl From<io::Error> for StoreError {
    fn from(source: io::Error) -> Self {
        Self::Io {
            what: "read a pack",
            source,
        }
    }
}

impl StoreError {
    /// For `map_err`: what was being done.
    fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// Cheap to clone; closed when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    packs: Packs,
    index: Index,
    in_flight: InFlight,
    layer_use: LayerUse,
    /// Bytes of packs; `u64::MAX`: no limit.
    bytes_max: AtomicU64,
    /// Conversions that wait for the reclaimer.
    waiting_for_room: AtomicU64,
    /// Rung when the packs come near that.
    bell: OnceLock<Bell>,
    /// Tells the committer thread to stop, by being dropped.
    _committer: std::sync::mpsc::Sender<()>,
    /// What opening found; reported when metrics are attached.
    opened: OpenReport,
    metrics: OnceLock<Metrics>,
    at_hand: at_hand::AtHand,
    asked: forget::Asked,
    /// Who pins looks how many there are before: one at a time.
    pinning: Mutex<()>,
    /// See [`Store::doubt_manifests`].
    doubts_manifests: AtomicBool,
    /// Held to read by who deletes packs by what the index says, or compacts it, and to write while it is rebuilt.
    steady: RwLock<()>,
    /// See [`Store::heal_index`].
    heals: AtomicBool,
    /// The copy of the index, when this is only a look.
    _copy: Option<open::Copied>,
    /// Released last: fields are dropped in order.
    _lock: std::fs::File,
}

/// What opening a store found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The index was built anew from the packs.
    pub index_rebuilt: bool,
    /// The index knew records that no pack had.
    pub packs_lack: bool,
    /// Records found damaged while packs were scanned.
    pub damaged_records: u64,
    /// Bytes of torn tail that were cut.
    pub cut_bytes: u64,
}

impl Store {
    /// Opens or creates the store below `dir`. Rebuilds the index if it is missing, foreign or broken.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        Self::open_with(dir, PACK_SIZE_MAX)
    }

    /// As [`Store::open`], with another size at which packs are rolled.
    pub fn open_with(dir: &Path, pack_size_max: u64) -> Result<Self, StoreError> {
        Self::open_on(disk::Disk::default(), dir, pack_size_max)
    }

    pub(crate) fn open_on(disk: disk::Disk, dir: &Path, pack_size_max: u64) -> Result<Self, StoreError> {
        let inner = open::open(disk, dir, pack_size_max)?;
        Ok(Self { inner })
    }

    /// For a look at what is there: packs, and a copy of the index, which is gone afterwards. Nothing is cut, deleted or
    /// rebuilt but in that copy, and nobody may write.
    pub fn open_to_check(dir: &Path) -> Result<Self, StoreError> {
        let inner = open::open_to_check(dir)?;
        Ok(Self { inner })
    }

    /// Where damage and rebuilds are counted from now on; what opening found is counted at once.
    pub fn observe(&self, metrics: Metrics) {
        let opened = self.inner.opened;
        if self.inner.metrics.set(metrics.clone()).is_err() {
            return;
        }
        if opened.index_rebuilt {
            metrics.index_rebuilt("opening");
        }
        for _ in 0..opened.damaged_records {
            metrics.corruption("record");
        }
    }

    /// The budget of packs, and whom to wake when it is nearly used up.
    pub fn set_bytes_max(&self, bytes_max: u64, bell: Bell) {
        self.inner.bytes_max.store(bytes_max, Ordering::Relaxed);
        // Set once, by the one reclaimer.
        let _ = self.inner.bell.set(bell);
    }

    /// The budget of packs; `u64::MAX`: no limit.
    pub fn bytes_max(&self) -> u64 {
        self.inner.bytes_max.load(Ordering::Relaxed)
    }

    /// Reclaiming starts above this: one pack below the budget.
    pub fn reclaim_above(&self) -> u64 {
        match self.bytes_max() {
            u64::MAX => u64::MAX,
            max => max.saturating_sub(self.inner.packs.pack_size_max()),
        }
    }

    /// What opening found.
    pub fn open_report(&self) -> OpenReport {
        self.inner.opened
    }

    /// Makes everything appended so far durable and indexed.
    pub fn commit(&self) -> Result<(), StoreError> {
        self.inner.packs.commit(&self.inner.index)?;
        if self.inner.packs.bytes() > self.reclaim_above()
            && let Some(bell) = self.inner.bell.get()
        {
            bell.ring(|rung| rung.over_budget = true);
        }
        Ok(())
    }

    /// For a clean stop: commits, and flushes the index, so that the next opening replays nothing.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.commit()?;
        Ok(self.inner.index.flush()?)
    }
}

impl Store {
    /// What the index cannot say is a miss: it is being rebuilt.
    fn or_miss<T: Default>(&self, said: Result<T, StoreError>) -> Result<T, StoreError> {
        match said {
            Err(StoreError::Index(_)) => {
                self.inner.count_corruption("index");
                Ok(T::default())
            }
            said => said,
        }
    }
}

impl Inner {
    fn count_corruption(&self, what: &'static str) {
        if let Some(metrics) = self.metrics.get() {
            metrics.corruption(what);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = self.packs.commit(&self.index) {
            tracing::error!(%error, "failed to commit the store while closing it");
        }
    }
}
