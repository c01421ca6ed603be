//! Which object counts for what, when it was used, and which goes when there are too many.
//!
//! In: objects. Out: the latest one of each key. Invariant: objects are the truth, rows of the index only say which is
//! whose: an opening compares both and believes the objects, of two for a key the later. An object is durable before its
//! row says so, and the one before it goes after that: killed anywhere, one of the two is found.
//! Bounded: profiles in number and bytes, the least used goes; pins in number.
//! Not here: what is in objects.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use headstart_layer_format::{BlobDigest, profile::Class};
use serde::{Deserialize, Serialize};

use super::{
    object::{Key, Object},
    shelf::{Name, Shelf},
};
use crate::store::{Store, StoreError, facts::Source, usage::now_ms};

/// A last use is written down so often; a lost one costs only order.
const USE_SAVED_MS: u64 = 3_600_000;
/// Repositories with pinned files.
const PINS_MAX: usize = 1024;

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub object: Name,
    pub bytes: u64,
    pub generation: u64,
    pub learned_unix_ms: u64,
    pub used_unix_ms: u64,
    pub nodes: usize,
    pub starts: usize,
    pub sources: Vec<Source>,
}

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub profiles_max: usize,
    pub bytes_max: u64,
    pub classes_max: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("keep a profile: {0}")]
    Io(#[from] io::Error),
    #[error("keep a profile: {0}")]
    Store(#[from] StoreError),
    #[error("keep a profile: it is over its bound")]
    TooLarge,
    #[error("pin files: {PINS_MAX} repositories have pinned files already")]
    TooManyPins,
}

#[derive(Debug)]
pub struct Catalog {
    shelf: Shelf,
    store: Store,
    bounds: Bounds,
    rows: Mutex<HashMap<Key, Entry>>,
}

#[derive(Debug)]
struct Entry {
    row: Row,
    /// The use that its note says.
    saved_unix_ms: u64,
}

impl Row {
    fn of(object: &Object, name: Name, bytes: u64, used_unix_ms: u64) -> Self {
        let (learned_unix_ms, nodes, starts, sources) = match object {
            Object::Profile(learned) => (
                learned.starts.last().map_or(0, |start| start.unix_ms),
                learned.nodes(),
                learned.starts.len(),
                learned.sources.clone(),
            ),
            Object::Pins(pins) => (0, 0, 0, vec![pins.source.clone()]),
        };
        Self {
            object: name,
            bytes,
            generation: object.generation(),
            learned_unix_ms,
            used_unix_ms,
            nodes,
            starts,
            sources,
        }
    }
}

impl Catalog {
    /// Compares notes with objects. What no note knows is read.
    pub fn open(data_dir: &Path, store: Store, bounds: Bounds) -> Result<Self, CatalogError> {
        let shelf = Shelf::open(data_dir)?;
        let mut strangers: HashMap<Name, u64> = shelf.list()?.into_iter().collect();
        let mut rows: HashMap<Key, Entry> = HashMap::new();
        for (key, row) in store.notes()? {
            let parsed = serde_json::from_slice::<Key>(&key)
                .ok()
                .zip(serde_json::from_slice::<Row>(&row).ok());
            match parsed {
                Some((key, row)) if strangers.remove(&row.object).is_some() => {
                    let saved_unix_ms = row.used_unix_ms;
                    rows.insert(key, Entry { row, saved_unix_ms });
                }
                // Its object is gone, or it is of a later version.
                _ => store.set_note(&key, None)?,
            }
        }
        let catalog = Self {
            shelf,
            store,
            bounds,
            rows: Mutex::new(rows),
        };
        for (name, bytes) in strangers {
            catalog.adopt(name, bytes)?;
        }
        catalog.evict(None);
        Ok(catalog)
    }

    /// An object that no note knows: the one before or after the one that a note knows, or the index was lost.
    fn adopt(&self, name: Name, bytes: u64) -> Result<(), CatalogError> {
        let Some(object) = self.shelf.get(&name)?.and_then(|bytes| Object::decode(&bytes)) else {
            return Ok(self.shelf.remove(&name)?);
        };
        let key = object.key();
        let row = Row::of(&object, name, bytes, now_ms());
        let before = match self.rows().get(&key) {
            Some(known) if known.row.generation >= row.generation => return Ok(self.shelf.remove(&row.object)?),
            known => known.map(|known| known.row.object.clone()),
        };
        self.note(&key, &row)?;
        self.rows().insert(
            key,
            Entry {
                saved_unix_ms: row.used_unix_ms,
                row,
            },
        );
        before.map_or(Ok(()), |before| Ok(self.shelf.remove(&before)?))
    }

    /// Keeps `object` in place of the one before. Callers are one at a time.
    pub fn put(&self, object: &Object) -> Result<(), CatalogError> {
        let key = object.key();
        let is_new = !self.rows().contains_key(&key);
        if is_new && matches!(key, Key::Pins { .. }) {
            let pins = self.rows().keys().filter(|key| matches!(key, Key::Pins { .. })).count();
            if pins >= PINS_MAX {
                return Err(CatalogError::TooManyPins);
            }
        }
        let bytes = object.encode().ok_or(CatalogError::TooLarge)?;
        let name = self.shelf.put(&bytes)?;
        let row = Row::of(object, name.clone(), bytes.len() as u64, now_ms());
        // Without its note it is found by an opening.
        if let Err(error) = self.note(&key, &row) {
            tracing::warn!(%error, "failed to write a profile into the index");
        }
        let saved_unix_ms = row.used_unix_ms;
        let before = self.rows().insert(key.clone(), Entry { row, saved_unix_ms });
        if let Some(before) = before.filter(|before| before.row.object != name) {
            self.shelf.remove(&before.row.object)?;
        }
        self.evict(Some(&key));
        Ok(())
    }

    /// The object of a key, and its name.
    pub fn get(&self, key: &Key) -> Option<(Name, Object)> {
        let name = self.rows().get(key)?.row.object.clone();
        let object = match self.shelf.get(&name) {
            Ok(bytes) => bytes.and_then(|bytes| Object::decode(&bytes)),
            Err(error) => {
                tracing::warn!(%error, "failed to read a profile");
                return None;
            }
        };
        match object {
            Some(object) if object.key() == *key => Some((name, object)),
            // Replaced a moment ago, or damaged.
            _ => {
                let mut rows = self.rows();
                if rows.get(key).is_some_and(|entry| entry.row.object == name) {
                    rows.remove(key);
                    drop(rows);
                    self.forget(key, &name);
                }
                None
            }
        }
    }

    pub fn row(&self, key: &Key) -> Option<Row> {
        self.rows().get(key).map(|entry| entry.row.clone())
    }

    /// Kinds of starts of one image.
    pub fn classes(&self, config: &BlobDigest) -> Vec<(Class, Row)> {
        self.profiles(|of, _| of == config)
            .into_iter()
            .map(|(_, class, row)| (class, row))
            .collect()
    }

    /// Profiles that were taught from one of these repositories.
    pub fn of_sources(&self, sources: &[Source]) -> Vec<(BlobDigest, Class, Row)> {
        self.profiles(|_, row| row.sources.iter().any(|source| sources.contains(source)))
    }

    /// All of them: some thousands at most.
    pub fn profiles(&self, wanted: impl Fn(&BlobDigest, &Row) -> bool) -> Vec<(BlobDigest, Class, Row)> {
        let rows = self.rows();
        let profiles = rows.iter().filter_map(|(key, entry)| match key {
            Key::Profile { config, class } if wanted(config, &entry.row) => {
                Some((*config, class.clone(), entry.row.clone()))
            }
            _ => None,
        });
        profiles.collect()
    }

    /// It was given to somebody.
    pub fn touch(&self, key: &Key) {
        let now = now_ms();
        let save = {
            let mut rows = self.rows();
            let Some(entry) = rows.get_mut(key) else { return };
            entry.row.used_unix_ms = now;
            let due = now.saturating_sub(entry.saved_unix_ms) >= USE_SAVED_MS;
            if due {
                entry.saved_unix_ms = now;
            }
            due.then(|| entry.row.clone())
        };
        if let Some(row) = save
            && let Err(error) = self.note(key, &row)
        {
            tracing::warn!(%error, "failed to write a profile's use into the index");
        }
    }

    pub fn remove(&self, key: &Key) -> bool {
        let Some(entry) = self.rows().remove(key) else {
            return false;
        };
        self.forget(key, &entry.row.object);
        true
    }

    /// Count and bytes of profiles.
    pub fn held(&self) -> (usize, u64) {
        let rows = self.rows();
        let profiles = rows.iter().filter(|(key, _)| matches!(key, Key::Profile { .. }));
        profiles.fold((0, 0), |(count, bytes), (_, entry)| {
            (count + 1, bytes + entry.row.bytes)
        })
    }

    /// Drops what is too much, but not `new`.
    fn evict(&self, new: Option<&Key>) {
        if let Some(Key::Profile { config, .. }) = new {
            // Whoever makes up classes pushes out those that as few nodes start, and not what the fleet does.
            let mut classes = self.classes(config);
            classes.sort_by_key(|(_, row)| (row.nodes, row.used_unix_ms));
            let surplus = classes.len().saturating_sub(self.bounds.classes_max);
            let keys = classes
                .into_iter()
                .map(|(class, _)| Key::Profile { config: *config, class });
            for key in keys.filter(|key| Some(key) != new).take(surplus) {
                self.remove(&key);
            }
        }
        loop {
            let (count, bytes) = self.held();
            if count <= self.bounds.profiles_max && bytes <= self.bounds.bytes_max {
                return;
            }
            let least = {
                let rows = self.rows();
                let others = rows
                    .iter()
                    .filter(|(key, _)| matches!(key, Key::Profile { .. }) && Some(*key) != new);
                others
                    .min_by_key(|(_, entry)| entry.row.used_unix_ms)
                    .map(|(key, _)| key.clone())
            };
            match least {
                Some(key) => drop(self.remove(&key)),
                None => return,
            }
        }
    }

    fn forget(&self, key: &Key, name: &Name) {
        let note = serde_json::to_vec(key)
            .map_err(io::Error::from)
            .map(|key| self.store.set_note(&key, None));
        if let Ok(Err(error)) = note {
            tracing::warn!(%error, "failed to remove a profile from the index");
        }
        if let Err(error) = self.shelf.remove(name) {
            tracing::warn!(%error, "failed to remove a profile");
        }
    }

    fn note(&self, key: &Key, row: &Row) -> Result<(), CatalogError> {
        let (key, row) = (serde_json::to_vec(key), serde_json::to_vec(row));
        let (key, row) = (key.map_err(io::Error::from)?, row.map_err(io::Error::from)?);
        Ok(self.store.set_note(&key, Some(&row))?)
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<Key, Entry>> {
        // Entries are put and taken whole.
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::learned::{Learned, tests::trace};
    use super::*;

    const BOUNDS: Bounds = Bounds {
        profiles_max: 4,
        bytes_max: 1 << 20,
        classes_max: 3,
    };

    fn learned(config: &[u8], class: &str, node: &str) -> Object {
        let mut learned = Learned::new(BlobDigest::of(config), class.parse().unwrap());
        learned.add(trace(1, node, &[1, 2]), &[], 16);
        Object::Profile(learned)
    }

    fn open(dir: &Path) -> Catalog {
        Catalog::open(dir, Store::open(dir).unwrap(), BOUNDS).unwrap()
    }

    #[test]
    fn the_index_may_be_lost_and_may_be_behind() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = open(dir.path());
        let old = learned(b"c", "", "a");
        catalog.put(&old).unwrap();
        let Object::Profile(mut newer) = old.clone() else {
            unreachable!()
        };
        newer.add(trace(2, "b", &[2]), &[], 16);
        let newer = Object::Profile(newer);
        catalog.put(&newer).unwrap();
        assert_eq!(catalog.shelf.list().unwrap().len(), 1);
        // Killed between the new object and its note: both are there, the note says the old one.
        catalog.shelf.put(&old.encode().unwrap()).unwrap();
        let row = Row::of(&old, Name::of(&old.encode().unwrap()), 1, 1);
        catalog.note(&old.key(), &row).unwrap();
        drop(catalog);
        let catalog = open(dir.path());
        assert_eq!(catalog.get(&old.key()).unwrap().1, newer);
        assert_eq!(catalog.shelf.list().unwrap().len(), 1);
        drop(catalog);
        std::fs::remove_dir_all(dir.path().join("index")).unwrap();
        let catalog = open(dir.path());
        assert_eq!(catalog.get(&old.key()).unwrap().1, newer);
        // And an object that is lost is a miss, and no more.
        for (name, _) in catalog.shelf.list().unwrap() {
            catalog.shelf.remove(&name).unwrap();
        }
        assert!(catalog.get(&old.key()).is_none());
        assert!(catalog.row(&old.key()).is_none());
        drop(catalog);
        assert_eq!(open(dir.path()).held(), (0, 0));
    }

    #[test]
    fn the_least_used_go_and_made_up_classes_push_out_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let catalog = open(dir.path());
        let mut fleet = Learned::new(BlobDigest::of(b"c"), Class::default());
        for id in 1..4 {
            fleet.add(trace(id, &format!("n{id}"), &[1]), &[], 16);
        }
        let fleet = Object::Profile(fleet);
        catalog.put(&fleet).unwrap();
        for class in 0..20 {
            catalog.put(&learned(b"c", &format!("{class:x}"), "evil")).unwrap();
        }
        assert_eq!(catalog.classes(&BlobDigest::of(b"c")).len(), BOUNDS.classes_max);
        assert!(catalog.row(&fleet.key()).is_some());
        for n in 0..9u8 {
            std::thread::sleep(std::time::Duration::from_millis(2));
            catalog.touch(&fleet.key());
            catalog.put(&learned(&[n], "", "a")).unwrap();
        }
        assert_eq!(catalog.held().0, BOUNDS.profiles_max);
        assert!(catalog.row(&fleet.key()).is_some());
        assert_eq!(catalog.shelf.list().unwrap().len(), BOUNDS.profiles_max);
    }
}
