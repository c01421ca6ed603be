//! The index: sled, and nothing else knows that it is sled.
//!
//! In: rows. Out: rows. Invariant: every row can be rebuilt from the packs, so any doubt about the index (an error or a
//! panic of sled, another version) ends in replaying them into another: at the opening, or while everybody goes on
//! ([`super::heal`]). One tree, small values: a batch over it is atomic, and rows and progress cannot disagree.
//! Not here: what rows say, by kind ([`rows`], [`batch`]); the copy that takes its place ([`changes`]); whether it is
//! believed ([`trust`]); what is written to packs, and when ([`super::packs`]).

mod batch;
mod changes;
#[cfg(test)]
mod doubt;
mod rows;
mod trust;

use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use super::keys;
pub use batch::Batch;
use changes::Changes;
pub(super) use changes::Superseded;
pub use rows::{ChainRow, TagRow};
pub(super) use rows::{is_chain, layer_row, member_row};
use trust::Trust;
pub use trust::{Since, Why};

/// Changes when rows change shape; another version is rebuilt, never migrated.
const INDEX_VERSION: u32 = 4;
/// sled's page cache: rows are tens of bytes, so this holds the hot part of a million chunks.
const CACHE_BYTES_MAX: u64 = 64 << 20;
/// The store's own lock says that nobody else has the index. What still has sled's is a thread of sled's that has not
/// ended yet since this process closed it, or a child of this process on its way to exec(2); it is no reason to
/// rebuild.
const LOCK_WAIT: Duration = Duration::from_secs(30);
const LOCK_LOOK: Duration = Duration::from_millis(10);
/// Rows that are counted before somebody else may take the index's place, or stop it.
const COUNTED_AT_ONCE: usize = 4096;
/// Exists from when an operation failed until another index has taken its place: an opening rebuilds.
const SUSPECT: &str = "index.suspect";
pub(super) const DIR: &str = "index";
pub(super) const ASIDE: &str = "index.aside";

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("{what}: {source}")]
    Sled { what: &'static str, source: sled::Error },
    #[error("{0}: the index panicked")]
    Panicked(&'static str),
    #[error("{0}: a row does not parse")]
    BadRow(&'static str),
    #[error("the index knows records that no pack has")]
    AheadOfPacks,
    #[error("the index lacks a pack, or the end of one, that is older than others it knows")]
    LacksPack,
    #[error("there is no index")]
    Missing,
    #[error("find the latest index: {0}")]
    Settle(std::io::Error),
    #[error("compact the index: {0}")]
    Compact(std::io::Error),
    #[error("the index is marked as suspect")]
    Suspect,
    #[error("the index has version {0:?}")]
    OtherVersion(Option<u32>),
}

#[derive(Debug)]
pub struct Index {
    /// Another one after a compaction ([`super::compact`]).
    live: RwLock<Live>,
    parent: PathBuf,
    /// While a compaction runs, or a rebuild.
    changed: Mutex<Option<Changes>>,
    trust: Trust,
}

#[derive(Debug)]
pub(super) struct Live {
    db: sled::Db,
    dir: PathBuf,
}

/// Key and value.
pub type RawRow = (Vec<u8>, Vec<u8>);

impl Index {
    /// Opens what is there; the caller rebuilds on any error.
    pub fn open(parent: &Path) -> Result<Self, IndexError> {
        if parent.join(SUSPECT).exists() {
            return Err(IndexError::Suspect);
        }
        if !super::compact::settle(parent).map_err(IndexError::Settle)? {
            return Err(IndexError::Missing);
        }
        let index = Self::open_sled(parent, DIR)?;
        let version = index
            .get("read the version", keys::VERSION)?
            .and_then(|v| v[..].try_into().ok().map(u32::from_le_bytes));
        if version != Some(INDEX_VERSION) {
            return Err(IndexError::OtherVersion(version));
        }
        Ok(index)
    }

    /// Moves whatever is there aside (the last one is kept, for a look) and starts an empty index.
    pub fn fresh(parent: &Path) -> std::io::Result<Result<Self, IndexError>> {
        let (dir, aside) = (parent.join(DIR), parent.join(ASIDE));
        super::compact::settle(parent)?;
        if dir.exists() {
            if aside.exists() {
                std::fs::remove_dir_all(&aside)?;
            }
            std::fs::rename(&dir, &aside)?;
        }
        match std::fs::remove_file(parent.join(SUSPECT)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(Self::open_sled(parent, DIR))
    }

    /// Copies an index that nobody uses, as it is. There may be none.
    pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
        if from.join(SUSPECT).exists() {
            std::fs::write(to.join(SUSPECT), b"")?;
        }
        match super::compact::latest(from)? {
            Some(latest) => copy_dir(&latest, &to.join(DIR)),
            None => Ok(()),
        }
    }

    pub(super) fn open_sled(parent: &Path, name: &str) -> Result<Self, IndexError> {
        let dir = parent.join(name);
        let config = sled::Config::new()
            .path(&dir)
            .cache_capacity(CACHE_BYTES_MAX)
            .mode(sled::Mode::HighThroughput);
        let what = "open the index";
        let until = Instant::now() + LOCK_WAIT;
        let opened = loop {
            match catch_unwind(AssertUnwindSafe(|| config.open())) {
                Ok(Err(error)) if is_locked(&error) && Instant::now() < until => std::thread::sleep(LOCK_LOOK),
                opened => break opened,
            }
        };
        match opened {
            Ok(Ok(db)) => Ok(Self {
                live: RwLock::new(Live { db, dir }),
                parent: parent.to_owned(),
                changed: Mutex::default(),
                trust: Trust::default(),
            }),
            Ok(Err(source)) => Err(IndexError::Sled { what, source }),
            Err(_) => Err(IndexError::Panicked(what)),
        }
    }

    /// Marks a rebuilt index as complete.
    pub fn seal_version(&self) -> Result<(), IndexError> {
        self.put(
            "write the version",
            keys::VERSION.to_vec(),
            &INDEX_VERSION.to_le_bytes(),
        )
    }

    fn guard<T>(&self, what: &'static str, op: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, IndexError> {
        let live = self.live();
        self.guard_of(what, || op(&live.db))
    }

    fn guard_of<T>(&self, what: &'static str, op: impl FnOnce() -> sled::Result<T>) -> Result<T, IndexError> {
        let error = match catch_unwind(AssertUnwindSafe(op)) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(source)) => IndexError::Sled { what, source },
            Err(_) => IndexError::Panicked(what),
        };
        self.mark_suspect(&error);
        Err(error)
    }

    /// As [`Index::guard`], for what changes the rows of `keys`.
    fn change<'k, T>(
        &self,
        what: &'static str,
        keys: impl IntoIterator<Item = &'k [u8]>,
        op: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, IndexError> {
        self.guard(what, |db| {
            let done = op(db);
            self.note_changes(keys);
            done
        })
    }

    fn live(&self) -> RwLockReadGuard<'_, Live> {
        // What a panic of sled leaves is distrusted by whoever caught it.
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn parent(&self) -> &Path {
        &self.parent
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.live().dir.clone()
    }

    /// Bytes on the disk.
    pub fn bytes(&self) -> Result<u64, IndexError> {
        self.guard("measure the index", |db| db.size_on_disk())
    }

    /// How many rows there are, up to about `enough`. Reads as many. `None`: `go_on` said no.
    pub fn count(&self, enough: u64, go_on: &dyn Fn() -> bool) -> Result<Option<u64>, IndexError> {
        use std::ops::Bound::{Excluded, Unbounded};
        let (mut count, mut after) = (0, Vec::new());
        while count < enough {
            let step = self.guard("count rows", |db| {
                let mut seen: (u64, Option<sled::IVec>) = (0, None);
                let rows = db.range::<&[u8], _>((Excluded(&after[..]), Unbounded));
                for key in rows.keys().take(COUNTED_AT_ONCE) {
                    seen = (seen.0 + 1, Some(key?));
                }
                Ok(seen)
            })?;
            let (seen, Some(last)) = step else { break };
            count += seen;
            after = last.to_vec();
            if !go_on() {
                return Ok(None);
            }
        }
        Ok(Some(count))
    }

    pub(super) fn row(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.get("look up a row", key)?.map(|row| row.to_vec()))
    }

    /// Writes or removes a row as it is.
    pub(super) fn set_row(&self, key: &[u8], row: Option<&[u8]>) -> Result<(), IndexError> {
        match row {
            Some(row) => self.put("write a row", key.to_vec(), row),
            None => self.change("remove a row", [key], |db| db.remove(key)).map(drop),
        }
    }

    fn get(&self, what: &'static str, key: &[u8]) -> Result<Option<impl Deref<Target = [u8]> + use<>>, IndexError> {
        self.guard(what, |db| db.get(key))
    }

    fn put(&self, what: &'static str, key: Vec<u8>, value: &[u8]) -> Result<(), IndexError> {
        self.change(what, [&key[..]], |db| db.insert(&key, value)).map(drop)
    }

    fn bad_row(&self, what: &'static str) -> IndexError {
        let error = IndexError::BadRow(what);
        self.mark_suspect(&error);
        error
    }

    pub fn apply(&self, batch: Batch) -> Result<(), IndexError> {
        let keys = batch.0.iter().map(|(key, _)| &key[..]);
        self.change("write a batch", keys, |db| {
            let mut rows = sled::Batch::default();
            for (key, row) in &batch.0 {
                match row {
                    Some(row) => rows.insert(&key[..], &row[..]),
                    None => rows.remove(&key[..]),
                }
            }
            db.apply_batch(rows)
        })
    }

    /// To disk; slow. Whoever takes the index's place does not wait for it: of sled's that has failed, it may not end.
    pub fn flush(&self) -> Result<(), IndexError> {
        let db = self.live().db.clone();
        self.guard_of("flush the index", || db.flush()).map(drop)
    }

    /// Removes a row if it says this, in one step: a row that a commit has just replaced stays.
    fn forget_if(&self, what: &'static str, key: &[u8], row: &[u8]) -> Result<(), IndexError> {
        // Whether it was the row is nobody's concern.
        self.change(what, [key], |db| db.compare_and_swap(key, Some(row), None::<&[u8]>))
            .map(drop)
    }

    /// Writes a row if it says `row` still, in one step.
    fn replace_if(&self, what: &'static str, key: &[u8], row: &[u8], new: &[u8]) -> Result<(), IndexError> {
        // Whether it did is nobody's concern.
        self.change(what, [key], |db| db.compare_and_swap(key, Some(row), Some(new)))
            .map(drop)
    }

    /// Rows as they are, in order, after `after`; at most `max`.
    pub fn rows_after(&self, after: &[u8], max: usize) -> Result<Vec<RawRow>, IndexError> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.guard("list rows", |db| {
            let rows = db.range::<&[u8], _>((Excluded(after), Unbounded)).take(max);
            rows.map(|row| row.map(|(k, v)| (k.to_vec(), v.to_vec()))).collect()
        })
    }

    /// Whether a row is still what it was.
    pub fn is_row(&self, key: &[u8], row: &[u8]) -> Result<bool, IndexError> {
        Ok(self.get("look up a row", key)?.is_some_and(|now| &now[..] == row))
    }

    /// Rows with this prefix, at most `max`; a row that does not parse is an error. `parse` gets the key behind the
    /// prefix.
    fn collect<T>(
        &self,
        what: &'static str,
        prefix: &[u8],
        max: usize,
        parse: impl Fn(&[u8], &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, IndexError> {
        let rows = self.guard(what, |db| {
            let rows = db.scan_prefix(prefix).take(max);
            rows.map(|row| row.map(|(k, v)| parse(k.get(prefix.len()..)?, &v)))
                .collect::<sled::Result<Option<Vec<_>>>>()
        })?;
        rows.ok_or_else(|| self.bad_row(what))
    }
}

/// sled has no kind of its own for it.
fn is_locked(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"))
}

/// sled says that bytes are damaged, in one way or another.
fn is_damage(error: &sled::Error) -> bool {
    use sled::Error::{Corruption, ReportableBug, Unsupported};
    matches!(error, Corruption { .. } | ReportableBug(_) | Unsupported(_))
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_dir(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}
