//! Which reads of a layer were first needs.
//!
//! In: every read of the kernel, hit or miss. Out: notes in the [`Recording`]s of the starts that go on. Invariant: a read
//! with nobody recording costs three atomic looks; what was read since the layer was shown is known, one bit a chunk, since a
//! later start's reads of it may be answered by the kernel's page cache and never come here.
//! Not here: whose start it is (`profile/starts.rs`).

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Instant;

use headstart_layer_format::LayerRange;
use headstart_layer_format::toc::ChunkTable;

use super::explore::Explorer;
use super::recording::Recording;
use crate::cache::bitmap::ChunkBitmap;

/// One of these a layer.
#[derive(Debug)]
pub struct Recorder {
    touched: ChunkBitmap,
    /// Also by processes before this one: what was touched is not known.
    blind: bool,
    count: AtomicUsize,
    listening: RwLock<Vec<(Weak<Recording>, u32)>>,
    /// Who fetches what lies near, and the position of this layer in that image.
    explorer: RwLock<Option<(Weak<Explorer>, usize)>>,
    is_explored: AtomicBool,
    /// Until then a start may begin that wants to see all reads.
    expected: Mutex<Option<Instant>>,
}

impl Recorder {
    /// `blind`: the layer was shown before this process was there.
    pub fn new(chunks: u32, blind: bool) -> Self {
        Self {
            touched: ChunkBitmap::new(chunks),
            blind,
            count: AtomicUsize::new(0),
            listening: RwLock::default(),
            explorer: RwLock::default(),
            is_explored: AtomicBool::new(false),
            expected: Mutex::default(),
        }
    }

    /// The kernel reads these ranges.
    pub fn touch(&self, table: &ChunkTable, ranges: &[LayerRange]) {
        for index in ranges.iter().flat_map(|range| table.covering(*range)) {
            self.touched.set(index);
        }
        if self.is_explored.load(Ordering::Acquire) {
            self.tell_explorer(table, ranges);
        }
    }

    fn tell_explorer(&self, table: &ChunkTable, ranges: &[LayerRange]) {
        let explorer = self.explorer.read().unwrap_or_else(PoisonError::into_inner);
        let explorer = explorer
            .as_ref()
            .and_then(|(e, position)| Some((e.upgrade()?, *position)));
        let Some((explorer, position)) = explorer else { return };
        for index in ranges.iter().flat_map(|range| table.covering(*range)) {
            explorer.read(position, index);
        }
    }

    /// Reads are told to `explorer` from now on, and to no other.
    pub(super) fn explore(&self, explorer: &Arc<Explorer>, position: usize) {
        let mut now = self.explorer.write().unwrap_or_else(PoisonError::into_inner);
        *now = Some((Arc::downgrade(explorer), position));
        self.is_explored.store(true, Ordering::Release);
    }

    pub(super) fn explored(&self, explorer: &Arc<Explorer>) {
        let mut now = self.explorer.write().unwrap_or_else(PoisonError::into_inner);
        if now
            .as_ref()
            .is_some_and(|(other, _)| other.as_ptr() == Arc::as_ptr(explorer))
        {
            *now = None;
            self.is_explored.store(false, Ordering::Release);
        }
    }

    /// Whether [`Recorder::note`] is worth its while.
    pub fn is_listening(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// The kernel reads these ranges of these bodies.
    pub fn note(&self, table: &ChunkTable, bodies: &[LayerRange], ranges: &[LayerRange]) {
        let listening = self.listening.read().unwrap_or_else(PoisonError::into_inner);
        for (recording, position) in listening.iter() {
            if let Some(recording) = recording.upgrade() {
                recording.note(*position, table, bodies, ranges);
            }
        }
    }

    /// Reads are told to `recording` from now on. `position`: of this layer in its image.
    pub(super) fn listen(&self, recording: &Arc<Recording>, position: u32) {
        let mut listening = self.listening.write().unwrap_or_else(PoisonError::into_inner);
        listening.retain(|(other, _)| other.strong_count() > 0);
        listening.push((Arc::downgrade(recording), position));
        self.count.store(listening.len(), Ordering::Release);
    }

    pub(super) fn leave(&self, recording: &Arc<Recording>) {
        let mut listening = self.listening.write().unwrap_or_else(PoisonError::into_inner);
        listening.retain(|(other, _)| other.strong_count() > 0 && other.as_ptr() != Arc::as_ptr(recording));
        self.count.store(listening.len(), Ordering::Release);
    }

    /// Chunks that were read since the layer is shown, ascending.
    pub(crate) fn touched(&self) -> Vec<u32> {
        self.touched.set_bits()
    }

    pub(super) fn is_blind(&self) -> bool {
        self.blind
    }

    /// A container is likely to start until then.
    pub(super) fn expect(&self, until: Instant) {
        *self.lock_expected() = Some(until);
    }

    /// Whether reads should keep coming here, although all of the layer may be here.
    pub fn is_wanted(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0 || self.lock_expected().is_some_and(|until| Instant::now() < until)
    }

    pub(super) fn unexpect(&self) {
        *self.lock_expected() = None;
    }

    fn lock_expected(&self) -> MutexGuard<'_, Option<Instant>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
