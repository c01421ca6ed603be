//! The index heals while the store is in use: one that failed is rebuilt from the packs beside it, and takes its place.
//!
//! In: an index in doubt. Out: one that says what the packs say. Invariant: readers go on with the old one (what it cannot
//! say is a miss), appends go on, and everything appended has its rows in the new one before anybody asks it: the last
//! stretch is replayed while nobody appends or commits. No pack goes meanwhile (`steady`), nor by what the old one said
//! (`Since`). The mark of doubt on the disk goes last, when the new one is durable: a crash before that has the next opening
//! rebuild it. Bounded: one at a time, not more often than once in [`PAUSE`], and not while the disk has no room for it;
//! in memory what an opening needs, and sled's cache twice.
//! Not here: what is read of packs ([`super::open::replay`]), the doubt ([`super::index`]).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::RwLockReadGuard;
use std::sync::TryLockError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::bulk::Bulk;
use super::compact::{others, remove, seal};
use super::index::{ASIDE, DIR, Index, IndexError, Since, Superseded};
use super::open::replay::{Stretch, replay_stretch};
use super::pack::{PACK_HEADER_LEN, PackId};
use super::{Inner, OpenReport, Store, StoreError};

/// After a rebuild, before the next: what failed at once again costs the server no more than this.
const PAUSE: Duration = Duration::from_secs(60);
/// Free bytes wanted beside what the old index takes: sled begins with half a MiB, and facts are still appended.
const ROOM_BYTES: u64 = 4 << 20;
/// So much is replayed while nobody appends.
const LAST_BYTES: u64 = 4 << 20;
/// Where more is appended than is replayed, the rest is as long as it is.
const ROUNDS_MAX: usize = 8;

/// When the next rebuild may be.
#[derive(Debug, Default)]
pub(super) struct Healing {
    not_before: Option<Instant>,
    is_waiting: bool,
}

/// What was replayed so far.
struct Replayed {
    ends: HashMap<PackId, u64>,
    report: OpenReport,
    told: Instant,
}

impl Store {
    /// From now on the index is rebuilt when it fails, also while the store is in use. Without it that is left to the next
    /// opening.
    pub fn heal_index(&self) {
        self.inner.heals.store(true, Relaxed);
    }
}

impl Inner {
    /// While it is held, the index is not rebuilt. `None`: it is being rebuilt.
    pub(super) fn steady(&self) -> Option<RwLockReadGuard<'_, ()>> {
        match self.steady.try_read() {
            Ok(held) => Some(held),
            // There is nothing in it.
            Err(TryLockError::Poisoned(held)) => Some(held.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// The same, for whoever deletes by what the index has said since a moment.
    pub(super) fn steady_since(&self, since: Since) -> Result<RwLockReadGuard<'_, ()>, IndexError> {
        let held = self.steady().ok_or(IndexError::Suspect)?;
        self.index.believed_since(since)?;
        Ok(held)
    }

    /// The new index, in `name`, in the place of the old one. `None`: it was told to stop.
    fn rebuild(&self, name: &str, go_on: &dyn Fn() -> bool) -> Result<Option<Superseded>, StoreError> {
        let other = Index::open_sled(self.index.parent(), name)?;
        let mut replayed = Replayed {
            ends: HashMap::new(),
            report: OpenReport::default(),
            told: Instant::now(),
        };
        let now = || self.packs.at_rest(<[_]>::to_vec);
        let mut bulk = Bulk::new(self.index.parent());
        if !self.read_up(&other, &now(), &mut replayed, Some(&mut bulk), go_on)? {
            return Ok(None);
        }
        bulk.finish(&other)?;
        for _ in 0..ROUNDS_MAX {
            let ends = now();
            let done = |id: &PackId| replayed.ends.get(id).copied().unwrap_or(PACK_HEADER_LEN);
            let left: u64 = ends.iter().map(|(id, end)| end.saturating_sub(done(id))).sum();
            if left <= LAST_BYTES {
                break;
            }
            if !self.read_up(&other, &ends, &mut replayed, None, go_on)? {
                return Ok(None);
            }
        }
        // What changes in these from here on is copied once more.
        self.index.keep_changes(true);
        self.index.copy_own_rows(&other)?;
        other.seal_version()?;
        other.flush()?;
        let old = self.packs.at_rest(|ends| {
            self.read_up(&other, ends, &mut replayed, None, &|| true)?;
            Ok::<_, StoreError>(self.index.supersede(other)?)
        })?;
        for _ in 0..replayed.report.damaged_records {
            self.count_corruption("record");
        }
        Ok(Some(old))
    }

    /// Replays everything up to these ends; `false`: it was told to stop. Nothing is synced, or a commit would not hear of a
    /// sync that fails.
    fn read_up(
        &self,
        other: &Index,
        ends: &[(PackId, u64)],
        replayed: &mut Replayed,
        mut bulk: Option<&mut Bulk>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<bool, StoreError> {
        for (at, (id, end)) in ends.iter().enumerate() {
            let from = replayed.ends.insert(*id, *end).unwrap_or(PACK_HEADER_LEN);
            if from >= *end {
                continue;
            }
            if !go_on() {
                return Ok(false);
            }
            let pack = match self.packs.pack(*id) {
                Ok(Some(pack)) => pack,
                Ok(None) => {
                    replayed.report.damaged_records += 1;
                    continue;
                }
                // Lost.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            let stretch = Stretch {
                pack: &pack,
                from,
                len: *end,
                is_last: at + 1 == ends.len(),
                of: ends.len(),
            };
            let (report, told) = (&mut replayed.report, &mut replayed.told);
            replay_stretch(other, &stretch, bulk.as_deref_mut(), report, told)?;
        }
        Ok(true)
    }

    /// From here on the new index counts at an opening, too.
    fn settle(&self, name: &str) -> Result<(), StoreError> {
        // Of packs it has rows that were not synced yet.
        self.packs.commit(&self.index)?;
        seal(&self.index, self.index.parent(), name)?;
        self.index
            .unmark()
            .map_err(StoreError::io("take the mark off the index"))
    }
}

impl Healing {
    /// Rebuilds the index if it is in doubt and may be rebuilt now.
    pub(super) fn look(&mut self, inner: &Inner, go_on: &dyn Fn() -> bool) {
        let Some(why) = inner.index.doubt() else { return };
        if self.not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let _alone = match inner.steady.try_write() {
            Ok(held) => held,
            Err(TryLockError::Poisoned(held)) => held.into_inner(),
            // A sweep or a compaction, which will soon meet the doubt. If it waits for a sled that has failed, which forgot
            // to tell it: whoever flushes next does.
            Err(TryLockError::WouldBlock) => {
                let _ = inner.index.flush();
                return;
            }
        };
        if !self.has_room(&inner.index) {
            return;
        }
        let began = Instant::now();
        tracing::warn!(
            why = why.name(),
            "rebuilding the index from the packs, while it is in use"
        );
        match heal(inner, go_on) {
            Ok(true) => {
                if let Some(metrics) = inner.metrics.get() {
                    metrics.index_rebuilt(why.name());
                }
                let took_ms = began.elapsed().as_millis() as u64;
                tracing::warn!(why = why.name(), took_ms, "the index is rebuilt");
            }
            Ok(false) => {}
            Err(error) => tracing::error!(%error, again_in = ?PAUSE, "failed to rebuild the index"),
        }
        self.not_before = Some(Instant::now() + PAUSE);
    }

    /// Whether the disk has room for another one. The one that was set aside before goes for it.
    fn has_room(&mut self, index: &Index) -> bool {
        let needed = bytes_below(&index.dir()).unwrap_or_default() + ROOM_BYTES;
        let free = || free_bytes(index.parent()).unwrap_or_default();
        let mut has_room = free() >= needed;
        if !has_room && remove(&index.parent().join(ASIDE)).is_ok() {
            has_room = free() >= needed;
        }
        if !has_room && !self.is_waiting {
            let free = free();
            tracing::error!(
                needed,
                free,
                "the index is to be rebuilt, and the disk has no room for it"
            );
        }
        self.is_waiting = !has_room;
        has_room
    }
}

/// `false`: it was told to stop.
fn heal(inner: &Inner, go_on: &dyn Fn() -> bool) -> Result<bool, StoreError> {
    let index = &inner.index;
    let failed = StoreError::io;
    let numbers = others(index.parent()).map_err(failed("list the indexes"))?;
    let number = numbers.last().map_or(1, |(number, _)| number + 1);
    let name = format!("{DIR}.{number}");
    // What can be made durable is; rows of it may fail.
    let _ = inner.packs.commit(index);
    let outcome = inner.rebuild(&name, go_on);
    let Ok(Some(old)) = outcome else {
        index.keep_changes(false);
        remove(&index.parent().join(&name)).map_err(failed("remove an index"))?;
        return outcome.map(|_| false);
    };
    let settled = inner.settle(&name);
    if settled.is_err() {
        // It is right, and not durable: all of it once more.
        index.distrust();
    }
    if let Err(error) = set_aside(index.parent(), old) {
        // The next opening removes it.
        tracing::warn!(%error, "the index that failed is not set aside");
    }
    settled.map(|()| true)
}

/// Keeps the old one for a look. It is closed under its new name, and by a thread of its own: sled may never come to an end
/// with it, and touches no name of ours.
fn set_aside(parent: &Path, old: Superseded) -> io::Result<()> {
    let aside = parent.join(ASIDE);
    let renamed = remove(&aside).and_then(|()| fs::rename(old.dir(), &aside));
    std::thread::Builder::new()
        .name("index-close".into())
        .spawn(move || old.close())?;
    renamed
}

fn free_bytes(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// On the disk, of all files below.
fn bytes_below(dir: &Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        sum += match entry.file_type()?.is_dir() {
            true => bytes_below(&entry.path())?,
            false => entry.metadata()?.blocks() * 512,
        };
    }
    Ok(sum)
}

#[cfg(test)]
mod tests;
