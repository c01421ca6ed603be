//! Emptying a pack and deleting it: the sweeping half of reclaiming, and the compaction of facts.
//!
//! In: a sealed pack and what lives. Out: a pack less. Invariant, step by step: (1) what still counts is appended to the
//! current pack; (2) that is committed: synced, then indexed; (3) a row says that the old pack is doomed, and the index is
//! flushed; (4) the file is deleted; (5) the row goes. Killed before (3), the old pack is a pack like any other with some
//! records that are elsewhere too; after it, an opening deletes the file and never reads it. A record is dropped only
//! if nothing refers to it, or a later one with the same key is in the log, or it says that a layer is not ready and no
//! older pack is left that could say otherwise ([`GivenUp`]), or it is a fact that does not count any more ([`facts`]).
//! Readers are never disturbed: a record that moved is looked up again, and an open file outlives its name.
//! Not here: which packs, and when ([`crate::reclaim`]).

mod facts;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use headstart_layer_format::{BlobDigest, ChunkDigest, TocDigest};

use super::in_flight::short;
use super::index::{Batch, Since};
use super::layers::{CONVERTER_VERSION, LayerRecord};
use super::learned::Fact;
use super::pack::{Location, PACK_HEADER_LEN, PackId};
use super::plan::Live;
use super::record::RecordKind;
use super::recover::{Found, ScanEnd, read_sealed};
use super::{Store, StoreError, keys};
use facts::Said;

/// Where a sweep is; whoever runs it may pause or stop it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A record was looked at, and this many bytes were appended for it.
    Record {
        moved_bytes: u64,
    },
    Moved,
    Committed,
    Doomed,
    Deleted,
}

/// What became of one pack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Bytes of the pack that is gone.
    pub pack_bytes: u64,
    /// Bytes of it that live on elsewhere.
    pub moved_bytes: u64,
}

/// Bytes of a pack that no eviction frees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Overhead {
    /// Facts that are not forgotten.
    pub facts: u64,
    /// States, the footer, and what must wait for the pack's turn.
    pub others: u64,
}

impl Overhead {
    pub fn bytes(&self) -> u64 {
        self.facts + self.others
    }
}

/// States that go with their pack. A state that is not there says what `unconverted` says, as long as no earlier `ready` of
/// that layer is in the log: so only the oldest pack's go. Refusals are worth keeping, up to a number.
#[derive(Debug)]
struct GivenUp<'a> {
    pack: PackId,
    /// The oldest of the others: any may go only if that is a later one.
    beside: PackId,
    refusals: &'a AtomicU64,
    layers: Vec<BlobDigest>,
    /// The same for what is not pinned any more, by the keys of its targets; those that went elsewhere stay.
    pins: Vec<Vec<u8>>,
}

impl GivenUp<'_> {
    fn takes(&mut self, layer: &BlobDigest, record: &LayerRecord) -> bool {
        let goes = self.pack < self.beside
            && match record {
                LayerRecord::Ready { .. } => false,
                LayerRecord::Unconverted => true,
                LayerRecord::Refused { converter, .. } if *converter != CONVERTER_VERSION => true,
                LayerRecord::Refused { .. } => {
                    let one_less = |over: u64| over.checked_sub(1);
                    self.refusals.fetch_update(Relaxed, Relaxed, one_less).is_ok()
                }
            };
        if goes {
            self.layers.push(*layer);
        }
        goes
    }
}

enum Stop {
    Asked,
    Failed(StoreError),
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(StoreError::io("scan a pack")(error))
    }
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl From<super::IndexError> for Stop {
    fn from(error: super::IndexError) -> Self {
        Self::Failed(error.into())
    }
}

impl Store {
    /// From before the plan is made until its sweeps are over: what running conversions counted on stays.
    pub fn cycle(&self) -> Cycle {
        self.inner.in_flight.cycle_begins();
        Cycle {
            store: self.clone(),
            began: self.inner.index.now(),
            said: Said::default(),
        }
    }

    /// Bytes of all packs.
    pub fn pack_bytes(&self) -> u64 {
        self.inner.packs.bytes()
    }

    /// Packs that may be swept, with their lengths.
    pub fn sealed_packs(&self) -> Vec<(PackId, u64)> {
        self.inner.packs.sealed()
    }

    /// The pack being written, and its length.
    pub fn current_pack(&self) -> (PackId, u64) {
        self.inner.packs.current()
    }

    /// Begins a new pack, so that the current one can be swept.
    pub fn seal_current_pack(&self) -> Result<(), StoreError> {
        self.inner.packs.seal_current()
    }

    /// Facts and states of a pack that still count, and its footer.
    pub fn overhead(&self, pack: PackId, len: u64, go_on: &dyn Fn() -> bool) -> Result<Overhead, StoreError> {
        let mut out = Overhead::default();
        let Some(file) = self.inner.packs.pack(pack)? else {
            return Ok(out);
        };
        // The next pack will have one as well: no sweep frees it.
        if let Some((footer_at, _)) = file.contents(len)? {
            out.others += len - footer_at;
        }
        let beside = self.oldest_beside(pack)?;
        let scanned = read_sealed(&file, PACK_HEADER_LEN, len, |found| {
            if !go_on() {
                return Err(Stop::Asked);
            }
            let bytes = found.header.record_len();
            match found.header.kind {
                RecordKind::Chunk | RecordKind::Toc | RecordKind::Footer => {}
                RecordKind::LayerState if self.state_counts(&found)? => out.others += bytes,
                RecordKind::LayerState => {}
                RecordKind::Fact => match serde_json::from_slice(&found.payload) {
                    Ok(fact) if !self.fact_counts(&fact, &found.location, beside)? => {}
                    // To forget more would not free it.
                    Ok(Fact::Untagged { .. }) => out.others += bytes,
                    Ok(_) => out.facts += bytes,
                    Err(_) => out.others += bytes,
                },
            }
            Ok(())
        });
        match scanned {
            Ok(_) | Err(Stop::Asked) => Ok(out),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    /// Moves what counts out of a sealed pack and deletes it. `step` is asked whether to go on; `None`: it said no.
    pub fn sweep_pack(
        &self,
        cycle: &Cycle,
        pack: PackId,
        live: &Live,
        step: &mut dyn FnMut(Step) -> bool,
    ) -> Result<Option<Swept>, StoreError> {
        debug_assert!(std::sync::Arc::ptr_eq(&cycle.store.inner, &self.inner));
        match self.sweep(pack, live, cycle, step) {
            Ok(swept) => Ok(Some(swept)),
            Err(Stop::Asked) => Ok(None),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    fn sweep(
        &self,
        pack: PackId,
        live: &Live,
        cycle: &Cycle,
        step: &mut dyn FnMut(Step) -> bool,
    ) -> Result<Swept, Stop> {
        let inner = &self.inner;
        let Some((_, len)) = inner.packs.sealed().into_iter().find(|(id, _)| *id == pack) else {
            return Err(Stop::Asked);
        };
        // Every record of the pack has its rows now, and what superseded one is durable.
        self.commit()?;
        let mut swept = Swept {
            pack_bytes: len,
            moved_bytes: 0,
        };
        let mut given_up = GivenUp {
            pack,
            beside: self.oldest_beside(pack)?,
            refusals: &live.refusals_over,
            layers: Vec::new(),
            pins: Vec::new(),
        };
        let mut go_on = |at| if step(at) { Ok(()) } else { Err(Stop::Asked) };
        let scanned = match inner.packs.pack(pack)? {
            Some(file) => {
                let mut states = HashSet::new();
                read_sealed(&file, PACK_HEADER_LEN, len, |found| {
                    let moved_bytes = self.carry_over(&found, live, &cycle.said, &mut states, &mut given_up)?;
                    swept.moved_bytes += moved_bytes;
                    go_on(Step::Record { moved_bytes })
                })?
            }
            None => ScanEnd { end: 0, damaged: 1 },
        };
        if scanned.damaged > 0 {
            let damaged = scanned.damaged;
            tracing::error!(pack = pack.0, damaged, "a swept pack has damaged records");
            // What the index knows of those goes to the log again, before the pack goes.
            self.restore_of(pack)?;
            self.restore(&|| true)?;
        }
        go_on(Step::Moved)?;
        self.commit()?;
        go_on(Step::Committed)?;
        // What was dropped was dropped by this index's word, and one that is rebuilt must not find the pack half gone.
        let _steady = inner.steady_since(cycle.began)?;
        inner.packs.doom(&inner.index, pack, &given_up.layers, &given_up.pins)?;
        // A kill loses what sled has not written; it must not lose this and find the file gone.
        inner.index.flush()?;
        go_on(Step::Doomed)?;
        inner.packs.delete(pack).map_err(StoreError::io("delete a pack"))?;
        go_on(Step::Deleted)?;
        let mut bury = Batch::default();
        bury.bury(pack);
        inner.index.apply(bury)?;
        Ok(swept)
    }

    /// Appends the record once more if it counts, or sees to it that nothing refers to it. Bytes appended.
    fn carry_over(
        &self,
        found: &Found,
        live: &Live,
        said: &Said,
        states: &mut HashSet<BlobDigest>,
        given_up: &mut GivenUp<'_>,
    ) -> Result<u64, Stop> {
        let len = found.header.record_len();
        let moved = match found.header.kind {
            RecordKind::Chunk => self.carry_chunk(found, live)?,
            RecordKind::Toc => self.carry_toc(found, live, states)?,
            RecordKind::LayerState => match keys::blob_from(&found.header.key) {
                Some(layer) => self.carry_state(&layer, &found.location, given_up)?,
                None => false,
            },
            RecordKind::Fact => self.carry_fact(found, given_up, said)?,
            RecordKind::Footer => false,
        };
        Ok(if moved { len } else { 0 })
    }

    fn carry_state(&self, layer: &BlobDigest, at: &Location, given_up: &mut GivenUp<'_>) -> Result<bool, Stop> {
        let inner = &self.inner;
        let latest = inner.index.layer_row(layer)?;
        match latest.filter(|(latest, _)| latest == at) {
            Some((_, record)) if given_up.takes(layer, &record) => Ok(false),
            Some(_) => Ok(inner.packs.move_layer(&inner.index, layer, at)?),
            None => Ok(false),
        }
    }

    fn carry_chunk(&self, found: &Found, live: &Live) -> Result<bool, Stop> {
        let inner = &self.inner;
        let Ok(key) = <[u8; 32]>::try_from(found.header.key.as_slice()) else {
            return Ok(false);
        };
        let digest = ChunkDigest::from_bytes(key);
        if inner.index.chunk(&digest)? != Some(found.location) {
            return Ok(false);
        }
        if !live.contains(&key) {
            let notes = inner.in_flight.lock();
            if !notes.contains(short(&key)) {
                inner.index.forget_chunk(&digest, &found.location)?;
                return Ok(false);
            }
        }
        match self.payload(found)? {
            Some(frame) => {
                inner.packs.move_chunk(&digest, found.header.raw_len, &frame)?;
                Ok(true)
            }
            None => {
                inner.count_corruption("chunk");
                inner.index.forget_chunk(&digest, &found.location)?;
                Ok(false)
            }
        }
    }

    fn carry_toc(&self, found: &Found, live: &Live, states: &mut HashSet<BlobDigest>) -> Result<bool, Stop> {
        let inner = &self.inner;
        let Ok(key) = <[u8; 32]>::try_from(found.header.key.as_slice()) else {
            return Ok(false);
        };
        let digest = TocDigest::from_bytes(key);
        if inner.index.toc(&digest)? != Some(found.location) {
            return Ok(false);
        }
        if !live.contains(&key) {
            let notes = inner.in_flight.lock();
            if !notes.contains(short(&key)) {
                inner.index.forget_toc_at(&digest, &found.location)?;
                return Ok(false);
            }
        }
        let Some(encoded) = self.payload(found)? else {
            inner.count_corruption("toc");
            inner.index.forget_toc_at(&digest, &found.location)?;
            return Ok(false);
        };
        inner.packs.append_toc(&digest, &encoded)?;
        // A rebuild believes `ready` only after its TOC: the state follows the TOC to the end of the log.
        if let Ok(toc) = headstart_layer_format::Toc::decode(&encoded) {
            let layer = *toc.layer_digest();
            let state = inner.index.layer_row(&layer)?;
            if let Some((at, LayerRecord::Ready { toc, .. })) = state
                && toc.digest == digest
                && states.insert(layer)
            {
                inner.packs.move_layer(&inner.index, &layer, &at)?;
            }
        }
        Ok(true)
    }

    fn oldest_beside(&self, pack: PackId) -> Result<PackId, StoreError> {
        let beside = self.inner.packs.oldest_beside(pack);
        beside.map_err(StoreError::io("list the packs"))
    }

    fn state_counts(&self, found: &Found) -> Result<bool, StoreError> {
        let Some(layer) = keys::blob_from(&found.header.key) else {
            return Ok(false);
        };
        let row = self.inner.index.layer_row(&layer)?;
        Ok(row.is_some_and(|(at, _)| at == found.location))
    }

    /// `None`: it is damaged.
    fn payload(&self, found: &Found) -> Result<Option<Bytes>, StoreError> {
        let (at, header) = (found.location, &found.header);
        Ok(self.inner.packs.read(at, header.kind, &header.key)?)
    }
}

/// While it lives, what conversions counted on is remembered beyond their end.
#[derive(Debug)]
pub struct Cycle {
    store: Store,
    /// The index that the plan was made by, and is swept by.
    began: Since,
    said: Said,
}

impl Drop for Cycle {
    fn drop(&mut self) {
        self.store.inner.in_flight.cycle_ends();
    }
}
