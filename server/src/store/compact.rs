//! Compacting the index: sled does not shrink, so its rows are copied into another one, which takes its place.
//!
//! In: an index in use. Out: the same rows in less space. Invariant: whoever reads or writes meanwhile notices nothing but
//! a pause of milliseconds: rows that change during the copy are copied again, the last of them while nobody comes; when
//! they are too many, it is given up. The
//! other one lies in `index.N` and counts, at an opening too, from the moment it is marked as whole; until then the old one
//! does. A crash at any moment leaves one of the two.
//! Not here: rows ([`super::index`]); when it is worth it is asked of [`Store::compact_index_over`] by the reclaimer.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::index::{DIR, Index, IndexError};
use super::{Store, StoreError};

/// In an `index.N` that has all rows.
const WHOLE: &str = "whole";
/// An index of no more than this is left alone: sled's own files are a good part of it.
pub const INDEX_SPARE_BYTES: u64 = 64 << 20;
/// What a row costs at most before a compaction is worth it; a compact one has some 150 bytes a row.
pub const ROW_BYTES_MAX: u64 = 600;
const ROWS_A_STEP: usize = 512;
/// Changed rows that are copied while nobody comes.
const LAST_ROWS_MAX: usize = 512;
/// Where rows change faster than they are copied, it is given up.
const ROUNDS_MAX: usize = 16;

/// `index.N` directories by number.
pub(super) fn others(parent: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("index."));
        if let Some(number) = number.and_then(|number| number.parse().ok()) {
            out.push((number, entry.path()));
        }
    }
    out.sort();
    Ok(out)
}

/// The directory that counts, if there is one.
pub(super) fn latest(parent: &Path) -> io::Result<Option<PathBuf>> {
    let whole = others(parent)?.into_iter().rfind(|(_, path)| path.join(WHOLE).exists());
    let usual = parent.join(DIR);
    Ok(whole.map(|(_, path)| path).or_else(|| usual.is_dir().then_some(usual)))
}

/// Gives the one that counts the usual name, and removes the others; whether there is one. Nobody uses them.
pub(super) fn settle(parent: &Path) -> io::Result<bool> {
    let (usual, latest) = (parent.join(DIR), latest(parent)?);
    if let Some(latest) = latest.filter(|latest| *latest != usual) {
        remove(&usual)?;
        fs::rename(&latest, &usual)?;
        File::open(parent)?.sync_all()?;
    }
    for (_, path) in others(parent)? {
        remove(&path)?;
    }
    Ok(usual.is_dir())
}

pub(super) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

impl Store {
    /// Compacts the index if it is larger than `spare_bytes` and [`ROW_BYTES_MAX`] a row; whether it was.
    pub fn compact_index_over(&self, spare_bytes: u64, go_on: &dyn Fn() -> bool) -> Result<bool, StoreError> {
        let index = &self.inner.index;
        // One that is not believed is rebuilt, which makes it small as well.
        let Some(_steady) = self.inner.steady().filter(|_| index.believed().is_ok()) else {
            return Ok(false);
        };
        let before = index.bytes()?;
        if before <= spare_bytes {
            return Ok(false);
        }
        // With so many rows it is as it should be: in most, a quarter of them are read.
        let enough = (before - spare_bytes).div_ceil(ROW_BYTES_MAX);
        if index.count(enough, go_on)?.is_none_or(|rows| rows >= enough) {
            return Ok(false);
        }
        let done = index.compact(go_on)?;
        if done {
            tracing::info!(before, after = index.bytes()?, "the index is compacted");
        }
        Ok(done)
    }

    /// Bytes of the index on the disk.
    pub fn index_bytes(&self) -> Result<u64, StoreError> {
        Ok(self.inner.index.bytes()?)
    }

    /// Rows of the index; reads all of them.
    pub fn index_rows(&self) -> Result<u64, StoreError> {
        Ok(self.inner.index.count(u64::MAX, &|| true)?.unwrap_or_default())
    }
}

impl Index {
    /// Whether it came to an end: it may be told to stop, or rows may change too fast.
    fn compact(&self, go_on: &dyn Fn() -> bool) -> Result<bool, IndexError> {
        let numbers = others(self.parent()).map_err(IndexError::Compact)?;
        let number = numbers.last().map_or(1, |(number, _)| number + 1);
        let name = format!("{DIR}.{number}");
        self.keep_changes(true);
        let outcome = self.copy_to(&name, go_on);
        if !matches!(outcome, Ok(Some(_))) {
            self.keep_changes(false);
            remove(&self.parent().join(&name)).map_err(IndexError::Compact)?;
        }
        match outcome? {
            // Whatever stays is removed at the next opening.
            Some(old) => remove(&old).map_err(IndexError::Compact).map(|()| true),
            None => Ok(false),
        }
    }

    /// The directory that is of no use any more.
    fn copy_to(&self, name: &str, go_on: &dyn Fn() -> bool) -> Result<Option<PathBuf>, IndexError> {
        let other = Self::open_sled(self.parent(), name)?;
        let mut after = Vec::new();
        loop {
            let rows = self.rows_after(&after, ROWS_A_STEP)?;
            let Some((last, _)) = rows.last() else { break };
            after.clone_from(last);
            for (key, row) in &rows {
                other.set_row(key, Some(row))?;
            }
            // Now and not at last, so that they stay few. What lies ahead is read later than it changed.
            let Some(changed) = self.take_changes() else {
                return Ok(None);
            };
            for key in changed.iter().filter(|key| **key <= after) {
                other.set_row(key, self.row(key)?.as_deref())?;
            }
            if !go_on() {
                return Ok(None);
            }
        }
        for _ in 0..ROUNDS_MAX {
            let Some(changed) = self.take_changes() else {
                return Ok(None);
            };
            let few = changed.len() <= LAST_ROWS_MAX;
            for key in changed {
                other.set_row(&key, self.row(&key)?.as_deref())?;
            }
            if !go_on() {
                return Ok(None);
            }
            if few {
                other.flush()?;
                return self.replace(other, |copy| seal(copy, copy.parent(), name));
            }
        }
        Ok(None)
    }
}

/// From here on the copy, which is in `name`, counts.
pub(super) fn seal(other: &Index, parent: &Path, name: &str) -> Result<(), IndexError> {
    other.flush()?;
    let write = || {
        let dir = parent.join(name);
        File::create_new(dir.join(WHOLE))?.sync_all()?;
        File::open(&dir)?.sync_all()?;
        File::open(parent)?.sync_all()
    };
    write().map_err(IndexError::Compact)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(index: &Index, rows: std::ops::Range<u32>, value: u8) {
        for n in rows {
            let key = [b"y".as_slice(), &n.to_be_bytes()].concat();
            index.set_row(&key, Some(&[value; 40])).unwrap();
        }
    }

    #[test]
    fn rows_that_change_meanwhile_are_as_they_were_left() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::fresh(dir.path()).unwrap().unwrap();
        index.seal_version().unwrap();
        fill(&index, 0..3000, 1);
        let asked = std::cell::Cell::new(0);
        // Between the steps of the copy, behind it and before it.
        let busy = || {
            let n = asked.replace(asked.get() + 1);
            fill(&index, n * 100..n * 100 + 50, 2);
            index
                .set_row(&[b"y".as_slice(), &(2900 - n).to_be_bytes()].concat(), None)
                .unwrap();
            true
        };
        for round in 1..=2 {
            asked.set(0);
            assert!(index.compact(&busy).unwrap());
            let steps = asked.get();
            assert!(steps > 3, "{steps}");
            for n in 0..steps {
                let row = |n: u32| index.row(&[b"y".as_slice(), &n.to_be_bytes()].concat()).unwrap();
                assert_eq!(row(n * 100), Some(vec![2; 40]), "round {round}");
                assert_eq!(row(2900 - n), None, "round {round}");
            }
            assert!(!dir.path().join(DIR).exists() && dir.path().join(format!("index.{round}")).exists());
        }
        let count = index.count(u64::MAX, &|| true).unwrap();
        drop(index);
        let index = Index::open(dir.path()).unwrap();
        assert_eq!(index.count(u64::MAX, &|| true).unwrap(), count);
        assert!(others(dir.path()).unwrap().is_empty(), "it has the usual name again");
        assert!(!index.compact(&|| false).unwrap(), "it was told to stop");
        assert!(others(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_crash_leaves_the_old_one_or_the_whole_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let of = |value: u8, name: &str| {
            let index = Index::open_sled(dir.path(), name).unwrap();
            index.seal_version().unwrap();
            fill(&index, 0..1, value);
            index.flush().unwrap();
        };
        let opened = || {
            let index = Index::open(dir.path()).unwrap();
            index.row(&[b"y".as_slice(), &[0; 4]].concat()).unwrap().unwrap()[0]
        };
        of(1, DIR);
        of(2, "index.1");
        assert_eq!(opened(), 1, "it was not whole");
        assert!(!dir.path().join("index.1").exists());
        of(3, "index.7");
        fs::write(dir.path().join("index.7").join(WHOLE), b"").unwrap();
        of(4, "index.8");
        assert_eq!(opened(), 3);
        // Between the removal of the old one and the renaming.
        of(5, "index.2");
        fs::write(dir.path().join("index.2").join(WHOLE), b"").unwrap();
        fs::remove_dir_all(dir.path().join(DIR)).unwrap();
        assert_eq!(opened(), 5);
        assert!(others(dir.path()).unwrap().is_empty());
    }
}
