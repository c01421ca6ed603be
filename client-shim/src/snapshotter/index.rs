//! Which snapshots exist, in memory.
//!
//! In: records. Out: lookups, and verdicts on what may happen next. Invariant: names are unique; a parent is committed
//! and stays as long as a child or a child in the making stands on it; a *busy* snapshot changes by nobody but the call
//! that made it busy. Nothing here waits or touches a disk, so its lock is held for microseconds.
//! Not here: making it durable ([`super::store`]).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use headstart_layer_format::ChainId;

use super::error::SnapshotError;
use super::labels;
use super::record::{Kind, Record, SnapshotId};

/// Deepest chain of snapshots: a bound for walks, above what overlayfs stacks.
const DEPTH_MAX: usize = 1024;

/// All records.
#[derive(Debug)]
pub struct Index {
    by_name: BTreeMap<String, Arc<Record>>,
    /// Parent name -> names of its children.
    children: HashMap<String, BTreeSet<String>>,
    /// Names promised to a call in progress.
    reserved: HashSet<String>,
    busy: HashSet<String>,
    next_id: SnapshotId,
}

impl Index {
    pub fn new(next_id: SnapshotId) -> Self {
        Self {
            by_name: BTreeMap::new(),
            children: HashMap::new(),
            reserved: HashSet::new(),
            busy: HashSet::new(),
            next_id,
        }
    }

    pub fn get(&self, name: &str) -> Result<Arc<Record>, SnapshotError> {
        let found = self.by_name.get(name);
        found.cloned().ok_or_else(|| SnapshotError::NotFound(name.into()))
    }

    pub fn contains(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Record>> {
        self.by_name.values()
    }

    /// Whether `name` is promised, and nobody knows yet whether the promise is kept.
    pub fn is_promised(&self, name: &str) -> bool {
        self.reserved.contains(name)
    }

    /// Promises `name` to a snapshot on `parent`, and a number for it.
    pub fn reserve(&mut self, name: &str, parent: &str) -> Result<SnapshotId, SnapshotError> {
        if name.is_empty() {
            return Err(SnapshotError::Invalid("a snapshot needs a key".into()));
        }
        self.check_free(name)?;
        if !parent.is_empty() {
            if !self.get(parent)?.is_committed() {
                return Err(SnapshotError::Invalid(format!("parent {parent:?} is not committed")));
            }
            if self.busy.contains(parent) {
                return Err(is_busy(parent));
            }
            self.adopt_child(parent, name);
        }
        self.reserved.insert(name.into());
        let id = self.next_id;
        self.next_id.0 += 1;
        Ok(id)
    }

    /// Keeps or drops the promise of [`Self::reserve`].
    pub fn settle(&mut self, name: &str, parent: &str, record: Option<Arc<Record>>) {
        self.reserved.remove(name);
        match record {
            Some(record) => self.insert(record),
            None => self.drop_child(parent, name),
        }
    }

    /// Adds a record that is on disk.
    pub fn insert(&mut self, record: Arc<Record>) {
        if !record.parent.is_empty() {
            self.adopt_child(&record.parent, &record.name);
        }
        self.by_name.insert(record.name.clone(), record);
    }

    /// Starts committing `key` as `name`: both are this call's alone until [`Self::end_commit`].
    pub fn begin_commit(&mut self, key: &str, name: &str) -> Result<Arc<Record>, SnapshotError> {
        if name.is_empty() {
            return Err(SnapshotError::Invalid("a committed snapshot needs a name".into()));
        }
        let record = self.get(key)?;
        if record.kind != Kind::Active {
            return Err(precondition(key, "is not active"));
        }
        self.check_free(name)?;
        self.begin_change(key)?;
        self.reserved.insert(name.into());
        Ok(record)
    }

    /// `committed`: the record under its new name, or `None` if nothing changed.
    pub fn end_commit(&mut self, key: &str, name: &str, committed: Option<Arc<Record>>) {
        self.busy.remove(key);
        self.reserved.remove(name);
        if let Some(record) = committed {
            self.by_name.remove(key);
            self.drop_child(&record.parent, key);
            self.insert(record);
        }
    }

    /// Makes `name` busy.
    pub fn begin_change(&mut self, name: &str) -> Result<Arc<Record>, SnapshotError> {
        let record = self.get(name)?;
        if !self.busy.insert(name.into()) {
            return Err(is_busy(name));
        }
        Ok(record)
    }

    pub fn end_change(&mut self, name: &str) {
        self.busy.remove(name);
    }

    /// Makes `name` busy for removal.
    pub fn begin_remove(&mut self, name: &str) -> Result<Arc<Record>, SnapshotError> {
        self.get(name)?;
        if self.children.get(name).is_some_and(|c| !c.is_empty()) {
            return Err(precondition(name, "has children and cannot be removed"));
        }
        self.begin_change(name)
    }

    /// `removed`: whether it is gone.
    pub fn end_remove(&mut self, name: &str, removed: bool) {
        self.busy.remove(name);
        if removed && let Some(record) = self.by_name.remove(name) {
            self.drop_child(&record.parent, name);
            self.children.remove(name);
        }
    }

    /// The snapshot and those below it, top first.
    pub fn ancestry(&self, name: &str) -> Result<Vec<Arc<Record>>, SnapshotError> {
        let mut out = Vec::new();
        let mut next = name.to_owned();
        while !next.is_empty() {
            if out.len() == DEPTH_MAX {
                return Err(precondition(name, "stands on too many snapshots"));
            }
            let record = self.get(&next)?;
            next.clone_from(&record.parent);
            out.push(record);
        }
        Ok(out)
    }

    /// A committed snapshot that containerd would adopt for `chain` on `parent`: exactly its filter.
    pub fn adoptable(&self, chain: &ChainId, parent: &str) -> Option<Arc<Record>> {
        let chain = chain.to_string();
        let fits = |r: &&Arc<Record>| {
            r.is_committed() && r.parent == parent && r.labels.get(labels::SNAPSHOT_REF) == Some(&chain)
        };
        if parent.is_empty() {
            return self.iter().find(fits).cloned();
        }
        let children = self.children.get(parent)?;
        children
            .iter()
            .filter_map(|name| self.by_name.get(name))
            .find(fits)
            .cloned()
    }

    fn check_free(&self, name: &str) -> Result<(), SnapshotError> {
        if self.by_name.contains_key(name) || self.reserved.contains(name) {
            return Err(SnapshotError::AlreadyExists(name.into()));
        }
        Ok(())
    }

    fn adopt_child(&mut self, parent: &str, child: &str) {
        self.children.entry(parent.into()).or_default().insert(child.into());
    }

    fn drop_child(&mut self, parent: &str, child: &str) {
        if let Some(children) = self.children.get_mut(parent) {
            children.remove(child);
            if children.is_empty() {
                self.children.remove(parent);
            }
        }
    }
}

fn precondition(name: &str, why: &'static str) -> SnapshotError {
    SnapshotError::Precondition { name: name.into(), why }
}

fn is_busy(name: &str) -> SnapshotError {
    precondition(name, "is being changed by another call")
}
