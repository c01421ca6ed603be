//! What changes while the index is copied, and the copy that takes its place.
//!
//! In: keys of rows that were written. Out: those to be copied again; another index for whoever comes next, which is a copy
//! or was rebuilt. Invariant:
//! a key is kept after its row has changed, and nobody writes while the index changes place: so the copy lacks nothing.
//! Not here: copying ([`crate::store::compact`]).

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use super::{Index, IndexError, Live};
use crate::store::keys;

/// Keys of rows that were written since they were asked for last.
#[derive(Debug, Default)]
pub(super) struct Changes {
    keys: HashSet<Vec<u8>>,
    /// There were too many, and some are not among them.
    lost: bool,
}

/// More changed rows than this are not remembered (some 10 MB): the compaction is given up, and tried again later.
const CHANGES_MAX: usize = 100_000;

impl Index {
    fn changed(&self) -> MutexGuard<'_, Option<Changes>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called after the rows have changed, and before anybody may take the index's place: a compaction that has
    /// read an old row reads it again. Said before, it could be told, read the old row, and never hear of it again.
    pub(super) fn note_changes<'k>(&self, keys: impl IntoIterator<Item = &'k [u8]>) {
        if let Some(changed) = &mut *self.changed() {
            for key in keys {
                if changed.keys.len() >= CHANGES_MAX {
                    (changed.keys, changed.lost) = (HashSet::new(), true);
                }
                if !changed.lost {
                    changed.keys.insert(key.to_vec());
                }
            }
        }
    }

    /// From now on changed keys are kept; `false`: not any more.
    pub(in crate::store) fn keep_changes(&self, keep: bool) {
        // Whoever is changing something now has not told, and is waited for.
        let _nobody = self.live.write().unwrap_or_else(PoisonError::into_inner);
        *self.changed() = keep.then(Changes::default);
    }

    /// Those that were kept since they were taken last; `None`: there were too many.
    pub(in crate::store) fn take_changes(&self) -> Option<HashSet<Vec<u8>>> {
        let mut changed = self.changed();
        let changed = changed.as_mut()?;
        (!changed.lost).then(|| std::mem::take(&mut changed.keys))
    }

    /// Gives the rows of `other` to whoever comes from now on; `last` is asked while nobody comes. The directory that
    /// is of no use any more; `None`: too many rows changed at last.
    pub(in crate::store) fn replace(
        &self,
        other: Self,
        last: impl FnOnce(&Self) -> Result<(), IndexError>,
    ) -> Result<Option<PathBuf>, IndexError> {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let what = "copy the last rows";
        let Some(changed) = self.take_changes() else {
            return Ok(None);
        };
        for key in changed {
            let row = match catch_unwind(AssertUnwindSafe(|| live.db.get(&key))) {
                Ok(row) => row.map_err(|source| IndexError::Sled { what, source })?,
                Err(_) => return Err(IndexError::Panicked(what)),
            };
            other.set_row(&key, row.as_deref())?;
        }
        last(&other)?;
        *self.changed() = None;
        let other = other.live.into_inner().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *live, other);
        // To close it takes sled a while.
        drop(live);
        drop(old.db);
        Ok(Some(old.dir))
    }

    /// Copies rows that no pack has ([`keys::is_nowhere_else`]) into `other`, as far as they can be read.
    pub(in crate::store) fn copy_own_rows(&self, other: &Self) -> Result<(), IndexError> {
        const ROWS_A_STEP: usize = 512;
        for prefix in keys::NOWHERE_ELSE {
            let mut after = vec![prefix];
            // The row `g` is all of its key. If nobody can tell, facts may have been forgotten.
            match self.row(&after) {
                Ok(Some(row)) => other.set_row(&after, Some(&row))?,
                Err(_) if after == keys::FORGETTING => other.note_forgetting()?,
                _ => {}
            }
            while let Ok(rows) = self.rows_after(&after, ROWS_A_STEP) {
                let rows: Vec<_> = rows.into_iter().take_while(|(key, _)| key[0] == prefix).collect();
                let Some((last, _)) = rows.last() else { break };
                after.clone_from(last);
                for (key, row) in &rows {
                    other.set_row(key, Some(row))?;
                }
            }
        }
        Ok(())
    }

    /// As [`Index::replace`], of an index that is not believed by one that was rebuilt: what changed meanwhile is in that
    /// one already, but for rows that no pack has. What is to be closed.
    pub(in crate::store) fn supersede(&self, other: Self) -> Result<Superseded, IndexError> {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let changed = self.changed().take().unwrap_or_default();
        if changed.lost {
            return Err(IndexError::Suspect);
        }
        for key in changed.keys.iter().filter(|key| keys::is_nowhere_else(key)) {
            if let Ok(Ok(row)) = catch_unwind(AssertUnwindSafe(|| live.db.get(key))) {
                other.set_row(key, row.as_deref())?;
            }
        }
        let other = other.live.into_inner().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *live, other);
        // Nobody uses the old one any more, and so nobody doubts the new one for what it did.
        self.believe();
        Ok(Superseded(old))
    }
}

/// An index that is of no use any more.
#[derive(Debug)]
pub(in crate::store) struct Superseded(Live);

impl Superseded {
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// May take long, and of a sled that has failed may not end at all.
    pub fn close(self) {
        // Whatever it says to that.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(self)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::index::Batch;

    /// It was kept before the row changed, so it could be taken, and the old row copied, before that.
    #[test]
    fn a_change_is_kept_after_the_row_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::fresh(dir.path()).unwrap().unwrap();
        index.keep_changes(true);
        let key: &[u8] = b"y1";
        let copied = index
            .change("write a row", [key], |db| {
                let row = db.get(key)?;
                let kept = index.take_changes().expect("few");
                db.insert(key, b"new")?;
                Ok((row, kept))
            })
            .unwrap();
        assert_eq!((copied.0, copied.1.len()), (None, 0));
        assert_eq!(index.take_changes().expect("one"), HashSet::from([key.to_vec()]));
    }

    #[test]
    fn changes_are_bounded_and_rows_are_counted_as_far_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::fresh(dir.path()).unwrap().unwrap();
        index.keep_changes(true);
        let rows = CHANGES_MAX as u32 + 2;
        let mut batch = Batch::default();
        for n in 0..rows {
            batch.insert([b"y", &n.to_be_bytes()[..]].concat(), Vec::new());
        }
        index.apply(batch).unwrap();
        assert_eq!(index.take_changes(), None);
        let other = Index::open_sled(dir.path(), "index.1").unwrap();
        let superseded = index.supersede(other).map(|old| old.dir().to_owned());
        assert!(
            superseded.is_err(),
            "what nobody else has may have changed: {superseded:?}"
        );
        index.keep_changes(true);
        (0..=CHANGES_MAX).for_each(|n| index.note_changes([&n.to_le_bytes()[..]]));
        index.set_row(b"y", Some(b"")).unwrap();
        assert_eq!(index.take_changes(), None, "until they are kept anew");
        index.keep_changes(true);
        assert_eq!(index.take_changes().map(|keys| keys.len()), Some(0));

        let all = u64::from(rows) + 1;
        assert_eq!(index.count(u64::MAX, &|| true).unwrap(), Some(all));
        let some = index.count(10_000, &|| true).unwrap().unwrap();
        assert!((10_000..20_000).contains(&some), "{some}");
        assert_eq!(index.count(u64::MAX, &|| false).unwrap(), None);
    }
}
