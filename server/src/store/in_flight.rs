//! What running conversions count on: chunks and TOCs that no layer refers to yet.
//!
//! In: digests, as conversions find or store them. Out: whether the sweep must leave one alone; all of them, which the plan
//! counts; who has been at it for longest.
//! Invariant: a digest is noted *before* it is looked up, and the sweep forgets a row only under the same lock, after it
//! has asked: so either the look-up misses (and the conversion stores the chunk anew), or the sweep sees the note. While
//! a reclaim cycle runs, the notes of conversions that end are kept until the cycle's end, because its plan may be older
//! than their layers.
//! Not here: the plan ([`super::plan`]) and the sweep ([`super::sweep`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The first 8 bytes of a digest. Two that collide keep each other: garbage stays, nothing is lost.
pub type Short = u64;

pub fn short(digest: &[u8; 32]) -> Short {
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    Short::from_le_bytes(first)
}

/// Notes of all running conversions: some 45 bytes a chunk, of as many layers as there are workers.
#[derive(Debug, Default)]
pub struct InFlight(Mutex<Notes>);

#[derive(Debug, Default)]
pub struct Notes {
    next: u64,
    /// By their beginning.
    conversions: BTreeMap<u64, HashMap<Short, [u8; 32]>>,
    /// Present while a reclaim cycle runs.
    ended: Option<HashSet<Short>>,
}

impl Notes {
    pub fn contains(&self, digest: Short) -> bool {
        self.conversions.values().any(|noted| noted.contains_key(&digest))
            || self.ended.as_ref().is_some_and(|set| set.contains(&digest))
    }
}

impl InFlight {
    /// The lock under which the sweep asks and forgets.
    pub fn lock(&self) -> MutexGuard<'_, Notes> {
        // Sets of numbers: a panic between two inserts leaves them usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn begin(&self) -> u64 {
        let mut notes = self.lock();
        notes.next += 1;
        let id = notes.next;
        notes.conversions.insert(id, HashMap::new());
        id
    }

    pub fn note(&self, conversion: u64, digest: &[u8; 32]) {
        if let Some(noted) = self.lock().conversions.get_mut(&conversion) {
            noted.insert(short(digest), *digest);
        }
    }

    /// Of all that run now; one may be in it more than once.
    pub fn all(&self) -> Vec<[u8; 32]> {
        let notes = self.lock();
        notes.conversions.values().flat_map(HashMap::values).copied().collect()
    }

    /// Whether none that runs has begun before.
    pub fn is_oldest(&self, conversion: u64) -> bool {
        self.lock()
            .conversions
            .first_key_value()
            .is_some_and(|(id, _)| *id == conversion)
    }

    pub fn end(&self, conversion: u64) {
        let mut notes = self.lock();
        let noted = notes.conversions.remove(&conversion).unwrap_or_default();
        if let Some(ended) = &mut notes.ended {
            ended.extend(noted.into_keys());
        }
    }

    /// From before the plan looks at the first layer.
    pub fn cycle_begins(&self) {
        self.lock().ended = Some(HashSet::new());
    }

    pub fn cycle_ends(&self) {
        self.lock().ended = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_outlives_its_conversion_until_the_cycle_ends() {
        let all = InFlight::default();
        let (early, late) = (all.begin(), all.begin());
        let [first, second] = [[1; 32], [2; 32]];
        let has = |digest| all.lock().contains(short(digest));
        assert!(all.is_oldest(early) && !all.is_oldest(late));
        all.note(early, &first);
        assert_eq!(all.all(), [first]);
        all.end(early);
        assert!(!has(&first), "no cycle runs");
        assert!(all.is_oldest(late));
        all.cycle_begins();
        all.note(late, &second);
        all.end(late);
        assert!(has(&second) && all.all().is_empty());
        all.cycle_ends();
        assert!(!has(&second));
    }
}
