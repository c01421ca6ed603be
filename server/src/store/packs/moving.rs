//! What a sweep does to the log: records that are written once more at its end, packs that go.
//!
//! In: records that still count. Out: the same, later in the log. Invariant: only the latest of a key moves, so a move never
//! overtakes what was written meanwhile.
//! Not here: what counts, and in which order a pack goes ([`crate::store::sweep`]).

use std::io;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use headstart_layer_format::{BlobDigest, ChunkDigest};

use super::{Packs, Row, Writer};
use crate::store::index::{Batch, Index};
use crate::store::pack::{Location, PackId};
use crate::store::record::RecordKind;
use crate::store::{StoreError, keys};

/// The only one that may append.
pub struct Alone<'a> {
    packs: &'a Packs,
    writer: MutexGuard<'a, Writer>,
}

impl Alone<'_> {
    /// The pack that is written: everything before is in this one, or an earlier one.
    pub fn pack(&self) -> PackId {
        self.writer.pack.id
    }

    /// Appends a fact, whose rows are the caller's to write.
    pub fn append_fact(&mut self, payload: &[u8]) -> Result<Location, StoreError> {
        let appended = self.packs.append(&mut self.writer, RecordKind::Fact, &[], 0, payload);
        appended.map_err(StoreError::io("write a fact"))
    }
}

impl Packs {
    /// The oldest of the other packs, the one that is written included, and those that cannot be read at the moment.
    pub fn oldest_beside(&self, id: PackId) -> io::Result<PackId> {
        // In this order: what is sealed meanwhile is the current one here.
        let (current, _) = self.current();
        let strange = self.strangers()?.into_iter().find(|other| *other != id);
        let sealed = self.lengths().keys().copied().find(|other| *other != id);
        Ok([sealed, strange].into_iter().flatten().fold(current, PackId::min))
    }

    /// Says that a pack is doomed, and in the same step forgets those of `states` and of `pins` (keys of targets that are not
    /// pinned) that are still in it.
    pub fn doom(&self, index: &Index, id: PackId, states: &[BlobDigest], pins: &[Vec<u8>]) -> Result<(), StoreError> {
        // A later state, whose row is on its way, comes before or after this; so does a pin.
        let _order = self.committing();
        let _nobody = self.writer();
        let mut batch = Batch::default();
        batch.doom(id);
        for layer in states {
            if index.layer_row(layer)?.is_some_and(|(at, _)| at.pack == id) {
                batch.forget_layer(layer);
            }
        }
        for target in pins {
            if index.pin(target)?.is_some_and(|(_, at)| at.pack == id) {
                batch.forget(keys::pin(target));
            }
        }
        Ok(index.apply(batch)?)
    }

    /// Deletes the file of a sealed pack that nothing points into any more. Whoever has it open reads on.
    pub fn delete(&self, id: PackId) -> io::Result<()> {
        match self.disk.remove(&id.path(&self.dir)) {
            // Lost, and read through the open file only.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.gone(id)
    }

    /// A pack's name is gone from the directory.
    pub(super) fn gone(&self, id: PackId) -> io::Result<()> {
        self.disk.sync_dir(&self.dir)?;
        self.sealed.forget(&id);
        if let Some(len) = self.lengths().remove(&id) {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Runs while nobody else can append.
    pub fn alone<T>(&self, work: impl FnOnce(&mut Alone<'_>) -> T) -> T {
        work(&mut Alone {
            packs: self,
            writer: self.writer(),
        })
    }

    /// Writes a chunk's record once more, at the end of the log; its row follows with the next commit.
    pub fn move_chunk(&self, digest: &ChunkDigest, raw_len: u32, frame: &[u8]) -> Result<(), StoreError> {
        let mut w = self.writer();
        let at = self
            .append(&mut w, RecordKind::Chunk, digest.as_bytes(), raw_len, frame)
            .map_err(StoreError::io("move a chunk"))?;
        w.rows.push(Row::Chunk(*digest, at));
        Ok(())
    }

    /// The same for a layer's state, if the one at `from` is still the latest.
    pub fn move_layer(&self, index: &Index, layer: &BlobDigest, from: &Location) -> Result<bool, StoreError> {
        // A commit under way has rows that neither the writer nor the index shows: a later state may be among them, and
        // must not be overtaken.
        let _order = self.committing();
        let mut w = self.writer();
        if w.rows.iter().any(|row| matches!(row, Row::Layer(l, ..) if l == layer)) {
            return Ok(false);
        }
        let Some((at, record)) = index.layer_row(layer)?.filter(|(at, _)| at == from) else {
            return Ok(false);
        };
        debug_assert_eq!(at, *from);
        let payload = serde_json::to_vec(&record).map_err(|_| StoreError::Encode)?;
        let at = self
            .append(&mut w, RecordKind::LayerState, &keys::blob(layer), 0, &payload)
            .map_err(StoreError::io("move a layer state"))?;
        w.rows.push(Row::Layer(*layer, record, at));
        Ok(true)
    }

    /// The same for a fact, if `still` (asked while nothing else can be appended) says that it counts.
    pub fn move_fact(
        &self,
        payload: &[u8],
        still: impl FnOnce() -> Result<bool, StoreError>,
        index: impl FnOnce(Location) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let mut w = self.writer();
        if !still()? {
            return Ok(false);
        }
        let at = self
            .append(&mut w, RecordKind::Fact, &[], 0, payload)
            .map_err(StoreError::io("move a fact"))?;
        index(at)?;
        Ok(true)
    }
}
