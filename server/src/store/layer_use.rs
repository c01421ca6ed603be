//! When converted layers were used, and by whom they are being read.
//!
//! In: uses, holds. Out: an order for eviction. Invariant: a layer that is held is not evicted, so a stream of its frames
//! ends whole; a use costs one short lock. Last uses are written to the index now and then; a lost row costs only order.
//! Not here: which layers there are (the index).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use headstart_layer_format::BlobDigest;

use super::index::Batch;
use super::usage::now_ms;
use super::{Store, StoreError};

/// Some sixty bytes for every layer used since the start.
#[derive(Debug, Default)]
pub struct LayerUse(Mutex<HashMap<BlobDigest, Use>>);

#[derive(Clone, Copy, Debug, Default)]
pub struct Use {
    pub used_unix_ms: u64,
    saved_unix_ms: u64,
    holders: u32,
    /// Its eviction is being recorded: nobody may begin to read it.
    going: bool,
}

impl Use {
    pub fn is_held(self) -> bool {
        self.holders > 0
    }
}

impl LayerUse {
    /// Decides that a layer goes, unless it is held; `force` does not ask. From now on it cannot be held.
    pub fn let_go(&self, layer: &BlobDigest, force: bool) -> bool {
        let mut uses = self.lock();
        let entry = uses.entry(*layer).or_default();
        entry.going = force || !entry.is_held();
        entry.going
    }

    /// Whether somebody is reading the layer.
    pub fn is_held(&self, layer: &BlobDigest) -> bool {
        self.lock().get(layer).is_some_and(|entry| entry.is_held())
    }

    /// The eviction was recorded, or failed.
    pub fn gone(&self, layer: &BlobDigest) {
        let mut uses = self.lock();
        match uses.get_mut(layer) {
            Some(entry) if entry.is_held() => entry.going = false,
            Some(_) => drop(uses.remove(layer)),
            None => {}
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, HashMap<BlobDigest, Use>> {
        // Counters only.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives, the layer is not evicted.
#[derive(Debug)]
pub struct LayerHold {
    store: Store,
    layer: BlobDigest,
}

impl Drop for LayerHold {
    fn drop(&mut self) {
        if let Some(entry) = self.store.inner.layer_use.lock().get_mut(&self.layer) {
            entry.holders = entry.holders.saturating_sub(1);
            entry.used_unix_ms = now_ms();
        }
    }
}

impl Store {
    /// A converted layer was used: its TOC, its data or chunks of it.
    pub fn touch_layer(&self, layer: &BlobDigest) {
        self.inner.layer_use.lock().entry(*layer).or_default().used_unix_ms = now_ms();
    }

    /// Counts as a use, and keeps the layer until dropped. Ask *afterwards* whether it is ready. `None`: it is going.
    pub fn hold_layer(&self, layer: &BlobDigest) -> Option<LayerHold> {
        let mut uses = self.inner.layer_use.lock();
        let entry = uses.entry(*layer).or_default();
        if entry.going {
            return None;
        }
        entry.holders += 1;
        entry.used_unix_ms = now_ms();
        drop(uses);
        Some(LayerHold {
            store: self.clone(),
            layer: *layer,
        })
    }

    /// When a layer was last used. One of which nothing is known (the index was rebuilt) counts as used now.
    pub fn layer_used_ms(&self, layer: &BlobDigest) -> Result<u64, StoreError> {
        if let Some(known) = self.inner.layer_use.lock().get(layer).filter(|u| u.used_unix_ms > 0) {
            return Ok(known.used_unix_ms);
        }
        let saved = self.inner.index.used(layer)?;
        let mut uses = self.inner.layer_use.lock();
        let entry = uses.entry(*layer).or_default();
        if entry.used_unix_ms == 0 {
            entry.used_unix_ms = saved.unwrap_or_else(now_ms);
            entry.saved_unix_ms = saved.unwrap_or(0);
        }
        Ok(entry.used_unix_ms)
    }

    /// Writes last uses to the index, where its rows lag by more than `lag_ms`.
    pub fn save_layer_uses(&self, lag_ms: u64) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (layer, entry) in self.inner.layer_use.lock().iter_mut() {
            if entry.used_unix_ms > entry.saved_unix_ms.saturating_add(lag_ms) {
                entry.saved_unix_ms = entry.used_unix_ms;
                batch.used(layer, entry.used_unix_ms);
            }
        }
        Ok(self.inner.index.apply(batch)?)
    }
}
