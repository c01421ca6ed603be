//! Pins: what eviction leaves alone.
//!
//! In: a tag or a digest, and whether it is pinned. Out: the targets, and every digest they stand for.
//! Invariant: a pin is a fact in the packs and survives the index; it protects the whole image: manifests, configs, the
//! layers' originals and their chunks. A pinned tag protects what the tag points at *now*, so it follows the tag.
//! Not here: what pins protect from ([`crate::reclaim`], [`super::plan`]).

use std::collections::HashSet;
use std::sync::PoisonError;

use headstart_layer_format::BlobDigest;
use serde::{Deserialize, Serialize};

use super::facts::Source;
use super::learned::Fact;
use super::{Store, StoreError};

/// Index -> image -> config and layers; one more for an index of indexes.
const DEPTH_MAX: u32 = 4;
/// Digests under one target; an index of a hundred platforms with a hundred layers each.
const DIGESTS_MAX: usize = 20_000;

/// Targets: what is pinned is looked up at each round of reclaiming, and never forgotten.
pub const PINS_MAX: usize = 10_000;

/// What was pinned.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PinTarget {
    Digest(BlobDigest),
    Tag { source: Source, tag: String },
}

impl PinTarget {
    /// The key of its row.
    pub(super) fn key(&self) -> Vec<u8> {
        // Digests and strings always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Store {
    /// Pins or unpins; whether that changed anything. Durable when it returns. There are no more than [`PINS_MAX`]
    /// pins, but for those of an earlier version.
    pub fn set_pin(&self, target: &PinTarget, pinned: bool) -> Result<bool, StoreError> {
        // There is nothing in it that a panic could leave half done.
        let _alone = self.inner.pinning.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.inner.index.pin(&target.key())?.is_some_and(|(pinned, _)| pinned);
        if before == pinned {
            // Whoever said so may have failed to make it durable.
            self.commit()?;
            return Ok(false);
        }
        if pinned && self.pins()?.len() >= PINS_MAX {
            return Err(StoreError::TooManyPins { max: PINS_MAX });
        }
        self.append_fact(&Fact::Pin {
            target: target.clone(),
            pinned,
        })?;
        self.commit()?;
        Ok(true)
    }

    /// Targets of which it is remembered that they are not pinned any more: until the oldest pack has that record.
    pub fn unpinned_count(&self) -> Result<usize, StoreError> {
        Ok(self
            .inner
            .index
            .pins()?
            .iter()
            .filter(|(_, pinned, _)| !*pinned)
            .count())
    }

    /// What is pinned.
    pub fn pins(&self) -> Result<Vec<PinTarget>, StoreError> {
        let rows = self.inner.index.pins()?;
        let pinned = rows.iter().filter(|(_, pinned, _)| *pinned);
        Ok(pinned
            .filter_map(|(key, ..)| serde_json::from_slice(key).ok())
            .collect())
    }

    /// Every digest that a pin protects.
    pub fn pinned(&self) -> Result<HashSet<BlobDigest>, StoreError> {
        let mut out = HashSet::new();
        for target in self.pins()? {
            if let Some(root) = self.target_digest(&target)? {
                out.extend(self.closure(&root)?);
            }
        }
        Ok(out)
    }

    /// The digest a target means now; `None` for a tag that is not known.
    pub fn target_digest(&self, target: &PinTarget) -> Result<Option<BlobDigest>, StoreError> {
        Ok(match target {
            PinTarget::Digest(digest) => Some(*digest),
            PinTarget::Tag { source, tag } => self.sure_tag(source, tag)?.map(|fact| fact.digest),
        })
    }

    /// A digest and everything below it, as far as manifests were served here.
    pub fn closure(&self, root: &BlobDigest) -> Result<HashSet<BlobDigest>, StoreError> {
        let mut out = HashSet::from([*root]);
        let mut level = vec![*root];
        for _ in 0..DEPTH_MAX {
            let mut next = Vec::new();
            for digest in level {
                let Some(fact) = self.sure_manifest(&digest)? else {
                    continue;
                };
                for member in fact.members {
                    if out.len() < DIGESTS_MAX && out.insert(member) {
                        next.push(member);
                    }
                }
            }
            level = next;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::plan::Live;

    fn target(n: usize) -> PinTarget {
        PinTarget::Digest(BlobDigest::of(&n.to_le_bytes()))
    }

    /// As [`Store::set_pin`], without a sync for each.
    fn set(store: &Store, n: usize, pinned: bool) {
        let target = target(n);
        store.append_fact(&Fact::Pin { target, pinned }).unwrap();
    }

    fn sweep_all(store: &Store) {
        store.seal_current_pack().unwrap();
        for (pack, _) in store.sealed_packs() {
            let swept = store.sweep_pack(&store.cycle(), pack, &Live::everything(), &mut |_| true);
            swept.unwrap().unwrap();
        }
    }

    #[test]
    fn there_are_no_more_pins_than_their_bound() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (0..PINS_MAX).for_each(|n| set(&store, n, true));
        let refused = store.set_pin(&target(PINS_MAX), true).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "pin one more: there are 10000 pins, which is the most"
        );
        assert!(!store.set_pin(&target(7), true).unwrap(), "it is pinned already");
        assert!(store.set_pin(&target(7), false).unwrap());
        assert!(store.set_pin(&target(PINS_MAX), true).unwrap());
    }

    /// Each looked how many there were before any of them was.
    #[test]
    fn there_are_no_more_pins_than_their_bound_when_many_come_at_once() {
        const ROOM: usize = 3;
        const COMING: usize = 12;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (ROOM..PINS_MAX).for_each(|n| set(&store, n, true));
        let barrier = std::sync::Barrier::new(COMING);
        let come = |n: usize| {
            barrier.wait();
            store.set_pin(&target(PINS_MAX + n), true).is_ok()
        };
        let pinned = std::thread::scope(|scope| {
            let come = &come;
            let all: Vec<_> = (0..COMING).map(|n| scope.spawn(move || come(n))).collect();
            all.into_iter()
                .map(|one| one.join().unwrap())
                .filter(|done| *done)
                .count()
        });
        assert_eq!((pinned, store.pins().unwrap().len()), (ROOM, PINS_MAX));
    }

    /// What takes a pin back stayed for ever, row and record.
    #[test]
    fn what_was_unpinned_is_forgotten_when_no_pack_says_that_it_was_pinned() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (0..20).for_each(|n| set(&store, n, true));
        store.seal_current_pack().unwrap();
        (0..19).for_each(|n| set(&store, n, false));
        store.seal_current_pack().unwrap();
        // The later of the two: what it says must not be lost.
        let (later, _) = store.sealed_packs()[1];
        let swept = store.sweep_pack(&store.cycle(), later, &Live::everything(), &mut |_| true);
        swept.unwrap().unwrap();
        assert_eq!(
            (store.unpinned_count().unwrap(), store.pins().unwrap()),
            (19, vec![target(19)])
        );
        // Pinned again, it is so.
        set(&store, 3, true);
        (0..2).for_each(|_| sweep_all(&store));
        assert_eq!(store.unpinned_count().unwrap(), 0);
        let bytes = store.pack_bytes();
        let pins = |store: &Store| {
            let mut pins = store.pins().unwrap();
            pins.sort();
            pins
        };
        let mut expected = vec![target(3), target(19)];
        expected.sort();
        assert_eq!(pins(&store), expected);
        store.flush().unwrap();
        drop(store);
        std::fs::remove_dir_all(dir.path().join("index")).unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(pins(&store), expected);
        assert_eq!(store.unpinned_count().unwrap(), 0);
        assert!(bytes < 1500, "two records in {bytes}");
    }
}
