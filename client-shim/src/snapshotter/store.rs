//! The snapshots of this node: the index and the disk moved in step.
//!
//! In: the operations of containerd's contract. Out: records; directories. Invariant: disk first, memory second, so a
//! record that anyone has seen is durable. Everything here is synchronous; slow parts (measuring, flushing) run outside
//! every lock, and `remove` is one rename.
//! Not here: mounts ([`super::mounts`]), laziness ([`super::adopt`]), async ([`super::service`]).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use headstart_layer_format::ChainId;

use super::disk::Disk;
use super::error::SnapshotError;
use super::index::Index;
use super::record::{Kind, Labels, LazyLayer, RECORD_VERSION, Record, SnapshotId, TimeNs, Usage};
use super::usage::disk_usage;

/// Longest wait for another call that makes the same name: a commit may have to flush much.
const SETTLE_WAIT: Duration = Duration::from_secs(10);

/// Index and disk.
#[derive(Debug)]
pub struct SnapshotStore {
    disk: Disk,
    index: Mutex<Index>,
    /// Rung when a promised name is there, or is free again.
    settled: Condvar,
    /// Updates are rare and small: they take turns instead of failing because the other made the snapshot busy.
    update_turn: Mutex<()>,
    sync_on_commit: bool,
}

impl SnapshotStore {
    /// Loads what is below `root`. Snapshots whose name is taken or whose parent is gone are set aside.
    pub fn open(root: &Path, sync_on_commit: bool) -> Result<Self, SnapshotError> {
        let disk = Disk::open(root).map_err(SnapshotError::io("open the snapshot directory"))?;
        let loaded = disk.load().map_err(SnapshotError::io("load snapshots"))?;
        let mut index = Index::new(loaded.next_id);
        for record in loaded.records {
            let taken = index.contains(&record.name);
            // A parent has the smaller number: it was made before its child, and keeps its number when committed.
            let orphan = !record.parent.is_empty() && !index.get(&record.parent).is_ok_and(|p| p.is_committed());
            if taken || orphan {
                tracing::error!(name = record.name, taken, orphan, "damaged snapshot set aside");
                disk.set_aside(record.id);
            } else {
                index.insert(Arc::new(record));
            }
        }
        Ok(Self {
            disk,
            index: Mutex::new(index),
            settled: Condvar::new(),
            update_turn: Mutex::new(()),
            sync_on_commit,
        })
    }

    /// A panic while the lock was held cannot have left a half-made change that matters: each is a few map updates.
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index, when no other call is about to make `name`: who is told "already exists" may look at it at once.
    fn index_when_settled(&self, name: &str) -> MutexGuard<'_, Index> {
        let waited = self
            .settled
            .wait_timeout_while(self.index(), SETTLE_WAIT, |index| index.is_promised(name));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    pub fn stat(&self, name: &str) -> Result<Arc<Record>, SnapshotError> {
        self.index().get(name)
    }

    pub fn all(&self) -> Vec<Arc<Record>> {
        self.index().iter().cloned().collect()
    }

    /// The snapshot and those below it, top first; empty for an empty name.
    pub fn ancestry(&self, name: &str) -> Result<Vec<Arc<Record>>, SnapshotError> {
        self.index().ancestry(name)
    }

    /// See [`Index::adoptable`].
    pub fn adoptable(&self, chain: &ChainId, parent: &str) -> Option<Arc<Record>> {
        self.index().adoptable(chain, parent)
    }

    /// Makes an active snapshot or a view. `like` as in [`Disk::create`].
    pub fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: Labels,
        like: Option<PathBuf>,
    ) -> Result<Arc<Record>, SnapshotError> {
        self.make(key, parent, like, |id| new_record(id, key, parent, kind, labels))
    }

    /// Makes a committed snapshot that shows a lazy layer. Its name is the chain ID; if another parent's snapshot has
    /// that name (the same layers below, unpacked by containerd under another name), the number tells them apart:
    /// containerd adopts whatever name it finds.
    pub fn create_lazy(&self, parent: &str, labels: Labels, lazy: LazyLayer) -> Result<Arc<Record>, SnapshotError> {
        let chain = lazy.chain_id.to_string();
        let name = if self.index().contains(&chain) && self.adoptable(&lazy.chain_id, parent).is_none() {
            format!("{chain} on {}", ChainId::of(parent.as_bytes()).hex())
        } else {
            chain
        };
        self.make(&name, parent, None, |id| Record {
            lazy: Some(lazy),
            ..new_record(id, &name, parent, Kind::Committed, labels)
        })
    }

    fn make(
        &self,
        name: &str,
        parent: &str,
        like: Option<PathBuf>,
        record: impl FnOnce(SnapshotId) -> Record,
    ) -> Result<Arc<Record>, SnapshotError> {
        let id = self.index_when_settled(name).reserve(name, parent)?;
        let record = Arc::new(record(id));
        let made = self.disk.create(&record, like.as_deref());
        let kept = made.is_ok().then(|| record.clone());
        self.index().settle(name, parent, kept);
        self.settled.notify_all();
        made.map_err(SnapshotError::io("make a snapshot"))?;
        Ok(record)
    }

    /// Turns the active snapshot `key` into the committed snapshot `name`. Labels are replaced, not inherited.
    pub fn commit(&self, key: &str, name: &str, labels: Labels) -> Result<(), SnapshotError> {
        let active = self.index_when_settled(name).begin_commit(key, name)?;
        let committed = self.write_commit(&active, name, labels);
        let kept = committed.as_ref().ok().cloned();
        self.index().end_commit(key, name, kept);
        self.settled.notify_all();
        committed.map(|_| ())
    }

    fn write_commit(&self, active: &Record, name: &str, labels: Labels) -> Result<Arc<Record>, SnapshotError> {
        let upper = self.disk.upper(active.id);
        let usage = disk_usage(&upper).map_err(SnapshotError::io("measure a snapshot"))?;
        if self.sync_on_commit {
            self.disk
                .sync(active.id)
                .map_err(SnapshotError::io("flush a snapshot"))?;
        }
        let now = TimeNs::now();
        let record = Record {
            name: name.into(),
            kind: Kind::Committed,
            labels: without_empty(labels),
            created: now,
            updated: now,
            usage,
            ..active.clone()
        };
        self.disk
            .replace(&record)
            .map_err(SnapshotError::io("commit a snapshot"))?;
        Ok(Arc::new(record))
    }

    /// Removes a snapshot that nothing stands on; returns what it was.
    pub fn remove(&self, name: &str) -> Result<Arc<Record>, SnapshotError> {
        let record = self.index().begin_remove(name)?;
        let gone = self.disk.discard(record.id);
        self.index().end_remove(name, gone.is_ok());
        gone.map_err(SnapshotError::io("remove a snapshot"))?;
        Ok(record)
    }

    /// Changes labels. `paths` empty: all of them; otherwise `labels` or `labels.<key>`. An empty value removes a label.
    pub fn update(&self, name: &str, labels: &Labels, paths: &[String]) -> Result<Arc<Record>, SnapshotError> {
        let _turn = self.update_turn.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.index().begin_change(name)?;
        let new = updated(&old, labels, paths).and_then(|record| {
            self.disk
                .replace(&record)
                .map_err(SnapshotError::io("update a snapshot"))?;
            Ok(Arc::new(record))
        });
        let mut index = self.index();
        index.end_change(name);
        let new = new?;
        index.insert(new.clone());
        Ok(new)
    }

    /// What an ordinary snapshot occupies: measured now for an active one, else as of its commit.
    pub fn usage(&self, record: &Record) -> Result<Usage, SnapshotError> {
        match record.kind {
            Kind::Active => disk_usage(&self.disk.upper(record.id)).map_err(SnapshotError::io("measure a snapshot")),
            Kind::View | Kind::Committed => Ok(record.usage),
        }
    }
}

fn new_record(id: SnapshotId, name: &str, parent: &str, kind: Kind, labels: Labels) -> Record {
    let now = TimeNs::now();
    Record {
        version: RECORD_VERSION,
        id,
        name: name.into(),
        parent: parent.into(),
        kind,
        labels: without_empty(labels),
        created: now,
        updated: now,
        usage: Usage::default(),
        lazy: None,
    }
}

/// containerd's own snapshotters keep no label without a value.
fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

fn updated(old: &Record, labels: &Labels, paths: &[String]) -> Result<Record, SnapshotError> {
    let mut new = old.clone();
    if paths.is_empty() {
        new.labels.clone_from(labels);
    }
    for path in paths {
        if let Some(key) = path.strip_prefix("labels.") {
            let value = labels.get(key).cloned().unwrap_or_default();
            new.labels.insert(key.into(), value);
        } else if path == "labels" {
            new.labels.clone_from(labels);
        } else {
            return Err(SnapshotError::Invalid(format!("field {path:?} cannot be updated")));
        }
    }
    new.labels = without_empty(new.labels);
    new.updated = TimeNs::now();
    Ok(new)
}
