//! Which layers are here, and who may change that.
//!
//! In: layers that come and go. Out: those that are presented, those that can be filled (which they can be before, while
//! their trees are made), and a lock for each. Invariant: whoever makes a layer come or go
//! holds its lock, also when nobody waits for him any more; the table keeps only locks that somebody holds.
//! Not here: what coming and going means ([`super::NodeLayers`]).

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, Weak};

use headstart_layer_format::BlobDigest;
use tokio::sync::{OwnedMutexGuard, watch};

use super::Presented;
use crate::cache::Layer;

/// A layer, and where it is to be seen.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub layer: Arc<Layer>,
    pub lowerdir: PathBuf,
}

impl Known {
    pub fn presented(&self) -> Presented {
        Presented {
            lowerdir: self.lowerdir.clone(),
            digest: *self.layer.digest(),
            diff_id: *self.layer.contents().diff_id(),
            slot: self.layer.slot(),
            data_size: self.layer.contents().chunks().data_size(),
            entry_count: self.layer.contents().entries(),
        }
    }
}

/// A layer whose tree is being made.
#[derive(Debug)]
pub(super) struct Coming<'a> {
    table: &'a Table,
    digest: BlobDigest,
}

impl Coming<'_> {
    /// It is presented.
    pub fn came(self, known: Known) {
        let mut all = self.table.known.write().unwrap_or_else(|p| p.into_inner());
        all.insert(self.digest, known);
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.table.lock_coming().remove(&self.digest);
        self.table.changes.send_modify(|n| *n += 1);
    }
}

#[derive(Debug)]
pub(super) struct Table {
    known: RwLock<HashMap<BlobDigest, Known>>,
    /// Stored, and about to be presented: they can be filled.
    coming: Mutex<HashMap<BlobDigest, Arc<Layer>>>,
    /// Counts layers that can be filled, and those that were presented since.
    changes: watch::Sender<u64>,
    changing: Mutex<HashMap<BlobDigest, Weak<tokio::sync::Mutex<()>>>>,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            known: RwLock::default(),
            coming: Mutex::default(),
            changes: watch::Sender::new(0),
            changing: Mutex::default(),
        }
    }
}

impl Table {
    pub fn get(&self, layer: &BlobDigest) -> Option<Known> {
        self.read().get(layer).cloned()
    }

    pub fn all(&self) -> Vec<Known> {
        self.read().values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// One that is presented, or about to be.
    pub fn layer(&self, layer: &BlobDigest) -> Option<Arc<Layer>> {
        // First those that come: one that was presented meanwhile was put into the other table before it left this one.
        let coming = self.lock_coming().get(layer).cloned();
        coming.or_else(|| self.get(layer).map(|known| known.layer))
    }

    /// All that can be filled.
    pub fn layers(&self) -> Vec<Arc<Layer>> {
        let coming: Vec<_> = self.lock_coming().values().cloned().collect();
        let known = self.all().into_iter().map(|known| known.layer);
        let mut all: Vec<_> = known
            .filter(|l| !coming.iter().any(|c| c.digest() == l.digest()))
            .collect();
        all.extend(coming);
        all
    }

    /// It is stored, and will be presented, which takes tens of milliseconds for a large one. Until then, or until the
    /// answer is dropped, it can be filled.
    pub fn comes(&self, layer: &Arc<Layer>) -> Coming<'_> {
        self.lock_coming().insert(*layer.digest(), Arc::clone(layer));
        self.changes.send_modify(|n| *n += 1);
        let digest = *layer.digest();
        Coming { table: self, digest }
    }

    pub fn remove(&self, layer: &BlobDigest) -> Option<Known> {
        self.known.write().unwrap_or_else(|p| p.into_inner()).remove(layer)
    }

    /// Changes whenever a layer can be filled, and when it is presented.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until nobody else makes this layer come or go.
    pub async fn change(&self, layer: &BlobDigest) -> OwnedMutexGuard<()> {
        self.lock_of(layer).lock_owned().await
    }

    fn lock_of(&self, layer: &BlobDigest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.changing.lock().unwrap_or_else(|p| p.into_inner());
        locks.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = locks.get(layer).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        locks.insert(*layer, Arc::downgrade(&lock));
        lock
    }

    fn lock_coming(&self) -> MutexGuard<'_, HashMap<BlobDigest, Arc<Layer>>> {
        self.coming.lock().unwrap_or_else(|p| p.into_inner())
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<BlobDigest, Known>> {
        self.known.read().unwrap_or_else(|p| p.into_inner())
    }
}
