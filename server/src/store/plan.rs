//! What to keep of the converted layers: the marking half of reclaiming.
//!
//! In: a budget, an age, what is pinned. Out: a [`Plan`]: who goes, which chunks live, and how much of each pack does.
//! Invariant: layers are taken most recently used first, each costs the bytes that no kept one already needs, and the
//! first that does not fit ends the list: an exact LRU although layers share chunks. Pinned and held layers are always
//! kept, and what running conversions count on comes before all of them: they could wait for its room for ever. Everything
//! a kept layer refers to is in [`Live`]; doubt (a truncated digest that collides) keeps.
//! Memory: some 16 bytes for each distinct chunk of the kept layers (160 MB for a terabyte of packs), while it runs.
//! Not here: the sweep ([`super::sweep`]).

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicU64;

use headstart_layer_format::{BlobDigest, ChunkDigest, Toc};

use super::in_flight::{Short, short};
use super::index::Batch;
use super::layers::{LayerRecord, RECORD_OVERHEAD};
use super::pack::PackId;
use super::{Store, StoreError};

/// Evictions recorded with one sync.
const EVICT_BATCH: usize = 64;

/// Why a layer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The bytes do not fit the budget.
    Budget,
    /// Nobody used it for too long.
    Age,
    /// The operator said so.
    Removed,
    /// The disk is full or nearly so.
    DiskFull,
}

impl Reason {
    /// For logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Age => "age",
            Self::Removed => "removed",
            Self::DiskFull => "disk_full",
        }
    }
}

/// What to keep.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Bytes of chunks and TOCs that may live; `u64::MAX`: all.
    pub bytes_max: u64,
    /// What `bytes_max` is about.
    pub reason: Reason,
    /// Layers last used before this go (Unix milliseconds; 0: none).
    pub used_before_unix_ms: u64,
    pub pinned: HashSet<BlobDigest>,
    /// Go in any case, pinned or not.
    pub removed: HashSet<BlobDigest>,
    /// Refusals that are remembered at least.
    pub refusals_max: u64,
}

/// Chunks and TOCs that some kept layer refers to, and what they hold of each pack.
#[derive(Debug, Default)]
pub struct Live {
    digests: HashSet<Short>,
    everything: bool,
    pub bytes: u64,
    pub by_pack: HashMap<PackId, u64>,
    /// Refusals too many; sweeps count it down.
    pub refusals_over: AtomicU64,
}

impl Live {
    /// Whatever has a row, for a pack that is rewritten because it is damaged.
    pub fn everything() -> Self {
        Self {
            everything: true,
            ..Self::default()
        }
    }

    pub fn contains(&self, digest: &[u8; 32]) -> bool {
        self.everything || self.digests.contains(&short(digest))
    }
}

/// One layer that goes.
#[derive(Clone, Copy, Debug)]
pub struct Victim {
    pub layer: BlobDigest,
    pub reason: Reason,
    /// Of its seekable blob and TOC; what sweeping frees may be less, because layers share.
    pub bytes: u64,
}

#[derive(Debug, Default)]
pub struct Plan {
    pub victims: Vec<Victim>,
    pub live: Live,
    pub kept: u64,
    /// Layers of which it is remembered that they are refused or not converted any more.
    pub unready: u64,
}

impl Store {
    /// Who stays and who goes. Changes nothing. `go_on` is asked for each layer; a plan that was stopped is `None`.
    pub fn plan(&self, wanted: &Wanted, go_on: &dyn Fn() -> bool) -> Result<Option<Plan>, StoreError> {
        // A layer whose commit failed becomes ready with the next one: it must be known before its chunks are judged.
        self.commit()?;
        let mut layers = Vec::new();
        let (mut refused, mut unready) = (0u64, 0);
        for (layer, record) in self.inner.index.layers()? {
            refused += u64::from(matches!(record, LayerRecord::Refused { .. }));
            unready += u64::from(!matches!(record, LayerRecord::Ready { .. }));
            if let LayerRecord::Ready { toc, .. } = record {
                let used = self.layer_used_ms(&layer)?;
                let held = self.inner.layer_use.is_held(&layer);
                let removed = wanted.removed.contains(&layer);
                let stays = !removed && (held || wanted.pinned.contains(&layer));
                layers.push((stays, used, layer, toc.size + toc.blob_size, removed));
            }
        }
        layers.sort_unstable_by_key(|(stays, used, layer, ..)| (!*stays, std::cmp::Reverse(*used), *layer));
        let mut plan = Plan {
            unready,
            ..Plan::default()
        };
        plan.live.refusals_over = refused.saturating_sub(wanted.refusals_max).into();
        self.add_in_flight(&mut plan.live)?;
        let mut full = false;
        for (stays, used, layer, bytes, removed) in layers {
            if !go_on() {
                return Ok(None);
            }
            let goes = |reason| Victim { layer, reason, bytes };
            if removed {
                plan.victims.push(goes(Reason::Removed));
            } else if !stays && used < wanted.used_before_unix_ms {
                plan.victims.push(goes(Reason::Age));
            } else if full {
                plan.victims.push(goes(wanted.reason));
            } else {
                let added = self.add_live(&layer, &mut plan.live, |total| stays || total <= wanted.bytes_max)?;
                if added {
                    plan.kept += 1;
                } else {
                    full = true;
                    plan.victims.push(goes(wanted.reason));
                }
            }
        }
        Ok(Some(plan))
    }

    /// Adds what conversions have stored or found, and no layer may refer to yet.
    fn add_in_flight(&self, live: &mut Live) -> Result<(), StoreError> {
        for digest in self.inner.in_flight.all() {
            // (Or a TOC, which is published at once.)
            if let Some(at) = self.inner.index.chunk(&ChunkDigest::from_bytes(digest))?
                && live.digests.insert(short(&digest))
            {
                let bytes = u64::from(at.payload_len) + RECORD_OVERHEAD;
                live.bytes += bytes;
                *live.by_pack.entry(at.pack).or_default() += bytes;
            }
        }
        Ok(())
    }

    /// Adds what a layer refers to, if `fits` agrees with the total then. A layer that turns out to be damaged adds
    /// nothing and is unconverted by the look at it.
    fn add_live(&self, layer: &BlobDigest, live: &mut Live, fits: impl Fn(u64) -> bool) -> Result<bool, StoreError> {
        let Some((summary, encoded)) = self.sure_toc(layer)? else {
            return Ok(true);
        };
        let Ok(toc) = Toc::decode(&encoded) else {
            self.unconvert_layer(layer, "its TOC does not decode")?;
            return Ok(true);
        };
        let mut new: HashSet<Short> = HashSet::new();
        let mut at = Vec::new();
        let mut bytes = summary.size + RECORD_OVERHEAD;
        let toc_at = self.inner.index.toc(&summary.digest)?;
        at.extend(toc_at.map(|at| (at.pack, bytes)));
        new.insert(short(summary.digest.as_bytes()));
        for chunk in toc.chunks().entries() {
            let key = short(chunk.digest.as_bytes());
            if live.digests.contains(&key) || !new.insert(key) {
                continue;
            }
            let len = u64::from(chunk.frame_len) + RECORD_OVERHEAD;
            bytes += len;
            if let Some(place) = self.inner.index.chunk(&chunk.digest)? {
                at.push((place.pack, len));
            }
        }
        if !fits(live.bytes + bytes) {
            return Ok(false);
        }
        live.bytes += bytes;
        live.digests.extend(new);
        for (pack, len) in at {
            *live.by_pack.entry(pack).or_default() += len;
        }
        Ok(true)
    }

    /// Records that the victims are unconverted, durably, before anything of them goes. One that somebody holds by now
    /// stays and is added to `live`. One that the operator removed goes all the same, but what a reader of it still
    /// needs stays until the next cycle. Returns who went.
    pub fn evict(&self, plan: &mut Plan) -> Result<Vec<Victim>, StoreError> {
        let mut gone = Vec::new();
        for batch in std::mem::take(&mut plan.victims).chunks(EVICT_BATCH) {
            let uses = &self.inner.layer_use;
            let (going, held): (Vec<Victim>, Vec<Victim>) = batch
                .iter()
                .partition(|v| uses.let_go(&v.layer, v.reason == Reason::Removed));
            let read: Vec<_> = going.iter().filter(|v| uses.is_held(&v.layer)).collect();
            let kept = read
                .iter()
                .try_for_each(|v| self.add_live(&v.layer, &mut plan.live, |_| true).map(drop));
            let recorded = kept.and_then(|()| self.record_eviction(&going));
            for victim in &going {
                uses.gone(&victim.layer);
            }
            recorded?;
            gone.extend(going);
            for victim in held {
                self.add_live(&victim.layer, &mut plan.live, |_| true)?;
                plan.kept += 1;
            }
        }
        Ok(gone)
    }

    /// See [`Plan::unready`].
    pub fn unready_layers(&self) -> Result<u64, StoreError> {
        let unready = |(_, record): &(_, LayerRecord)| !matches!(record, LayerRecord::Ready { .. });
        Ok(self.inner.index.layers()?.iter().filter(|layer| unready(layer)).count() as u64)
    }

    fn record_eviction(&self, victims: &[Victim]) -> Result<(), StoreError> {
        let mut rows = Batch::default();
        for victim in victims {
            let packs = &self.inner.packs;
            packs.append_layer(&victim.layer, &LayerRecord::Unconverted)?;
            rows.forget_used(&victim.layer);
        }
        self.commit()?;
        Ok(self.inner.index.apply(rows)?)
    }

    /// Forgets that a layer was refused, so that it is tried again. Whether it was.
    pub fn forget_refusal(&self, layer: &BlobDigest) -> Result<bool, StoreError> {
        if !matches!(self.inner.index.layer(layer)?, Some(LayerRecord::Refused { .. })) {
            return Ok(false);
        }
        self.record_layer(layer, &LayerRecord::Unconverted)?;
        Ok(true)
    }
}
