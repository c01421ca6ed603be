//! Opening a store: lock, find the packs, cut a torn tail, bring the index up to date or build it anew.
//!
//! In: a directory in whatever state a crash, a full disk or an operator left it. Out: a consistent store.
//! Invariant: packs are only cut at the end of the last one; the index is never trusted over the packs.
//! Not here: rows of records that have none yet ([`replay`]), and what they say ([`super::learned`], [`super::index`]).

pub(super) mod replay;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock, Weak, atomic::AtomicBool};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::bulk::Bulk;
use super::disk::Disk;
use super::heal::Healing;
use super::in_flight::InFlight;
use super::index::{Batch, Index, IndexError};
use super::layer_use::LayerUse;
use super::pack::{PACK_HEADER_LEN, Pack, PackId};
use super::packs::Packs;
use super::{Inner, OpenReport, StoreError};
use replay::replay;

/// A process that is just ending may still hold the lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Facts wait at most this long for their sync.
const COMMIT_PERIOD: Duration = Duration::from_secs(1);
/// A current pack no longer than this is read again at once, for its footer; a longer one by the committer.
const RECALL_AT_ONCE: u64 = 16 << 20;
/// A long rebuild reports this often.
pub(super) const PROGRESS_PERIOD: Duration = Duration::from_secs(5);

/// Below the data directory, while somebody looks: a copy of the index.
const COPY_DIR: &str = "index.check";

/// Whether an opening may change what it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Use,
    Check,
}

/// Removed when dropped.
#[derive(Debug)]
pub(super) struct Copied(PathBuf);

impl Drop for Copied {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "the copy of the index is not removed");
        }
    }
}

impl Copied {
    /// Removes one that may not be there.
    fn remove(path: &Path) -> io::Result<()> {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn new(dir: &Path) -> io::Result<Self> {
        let path = dir.join(COPY_DIR);
        Self::remove(&path)?;
        std::fs::create_dir(&path)?;
        let copied = Self(path);
        Index::copy(dir, &copied.0)?;
        Ok(copied)
    }
}

pub(super) fn open(disk: Disk, dir: &Path, pack_size_max: u64) -> Result<Arc<Inner>, StoreError> {
    std::fs::create_dir_all(dir.join("packs")).map_err(StoreError::io("create the pack directory"))?;
    let lock = lock(dir)?;
    // Of a look that was killed.
    Copied::remove(&dir.join(COPY_DIR)).map_err(StoreError::io("remove a copy of the index"))?;
    open_in(disk, dir, pack_size_max, Mode::Use, None, lock)
}

pub(super) fn open_to_check(dir: &Path) -> Result<Arc<Inner>, StoreError> {
    if !dir.join("packs").is_dir() {
        return Err(StoreError::NoStore(dir.to_owned()));
    }
    let lock = lock(dir)?;
    let copy = Copied::new(dir).map_err(StoreError::io("copy the index"))?;
    open_in(
        Disk::default(),
        dir,
        super::PACK_SIZE_MAX,
        Mode::Check,
        Some(copy),
        lock,
    )
}

fn open_in(
    disk: Disk,
    dir: &Path,
    pack_size_max: u64,
    mode: Mode,
    copy: Option<Copied>,
    lock: File,
) -> Result<Arc<Inner>, StoreError> {
    let packs_dir = dir.join("packs");
    let mut report = OpenReport::default();
    let packs = list_packs(&disk, &packs_dir, mode, &mut report).map_err(StoreError::io("list the packs"))?;
    let index_dir = copy.as_ref().map_or(dir, |copy| copy.0.as_path());
    let (packs, index) = open_index(&disk, index_dir, &packs_dir, mode, packs, &mut report)?;
    let mut sealed: BTreeMap<PackId, u64> = packs.iter().map(|(pack, len)| (pack.id, *len)).collect();
    let (current, end) = match packs.into_iter().next_back() {
        Some((pack, len)) => (pack, len),
        None => {
            // Whoever only looks gets one to have one; nothing comes into it.
            let empty_dir = copy.as_ref().map_or(packs_dir.as_path(), |copy| copy.0.as_path());
            let pack = Pack::create(&disk, empty_dir, PackId(1)).map_err(StoreError::io("create the first pack"))?;
            (pack, PACK_HEADER_LEN)
        }
    };
    sealed.remove(&current.id);
    let end = report_cut(&current, end, &index, mode, &mut report)?;
    let (committer, stop) = std::sync::mpsc::channel();
    let inner = Arc::new(Inner {
        packs: Packs::new(disk, &packs_dir, pack_size_max, current, end, sealed),
        index,
        in_flight: InFlight::default(),
        layer_use: LayerUse::default(),
        bytes_max: AtomicU64::new(u64::MAX),
        waiting_for_room: AtomicU64::default(),
        bell: OnceLock::new(),
        _committer: committer,
        opened: report,
        metrics: OnceLock::new(),
        at_hand: Default::default(),
        asked: Default::default(),
        pinning: Default::default(),
        doubts_manifests: AtomicBool::new(false),
        steady: Default::default(),
        heals: AtomicBool::new(false),
        _copy: copy,
        _lock: lock,
    });
    if mode == Mode::Check {
        return Ok(inner);
    }
    if end <= RECALL_AT_ONCE {
        recall_current(&inner);
    }
    let weak = Arc::downgrade(&inner);
    std::thread::Builder::new()
        .name("store-commit".into())
        .spawn(move || commit_periodically(&weak, &stop))
        .map_err(StoreError::io("start the commit thread"))?;
    Ok(inner)
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join("store.lock"))
        .map_err(StoreError::io("open the lock file"))?;
    let give_up = Instant::now() + LOCK_WAIT;
    while flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() > give_up {
            return Err(StoreError::Locked(dir.to_owned()));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(file)
}

/// Every readable pack with its length, in order. A last pack without a whole header is made anew.
fn list_packs(disk: &Disk, dir: &Path, mode: Mode, report: &mut OpenReport) -> io::Result<Vec<(Pack, u64)>> {
    let mut ids: Vec<PackId> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        ids.extend(entry?.file_name().to_str().and_then(PackId::from_file_name));
    }
    ids.sort();
    let last = ids.last().copied();
    let mut out = Vec::with_capacity(ids.len());
    for id in ids {
        match Pack::open(disk, dir, id)? {
            Some(pack) => {
                let len = pack.file_len()?;
                out.push((pack, len));
            }
            // What the next opening makes anew is no damage.
            None if mode == Mode::Check && std::fs::metadata(id.path(dir))?.len() < PACK_HEADER_LEN => {}
            None if Some(id) == last && std::fs::metadata(id.path(dir))?.len() < PACK_HEADER_LEN => {
                out.push((Pack::create(disk, dir, id)?, PACK_HEADER_LEN));
            }
            None => {
                report.damaged_records += 1;
                tracing::error!(pack = id.0, "a pack has no valid header; nothing in it can be read");
                if Some(id) == last && mode == Mode::Use {
                    // Never append to it.
                    out.push((Pack::create(disk, dir, PackId(id.0 + 1))?, PACK_HEADER_LEN));
                }
            }
        }
    }
    Ok(out)
}

type WithLengths = Vec<(Pack, u64)>;

/// Packs whose sweep got as far as the deletion: everything that counts is elsewhere, and reading them again would
/// bring back what was superseded. Which they are.
fn bury_doomed(
    disk: &Disk,
    index: &Index,
    dir: &Path,
    mode: Mode,
    packs: &mut WithLengths,
) -> Result<Vec<PackId>, StoreError> {
    let all = index.doomed()?;
    for doomed in all.iter().copied() {
        packs.retain(|(pack, _)| pack.id != doomed);
        if mode == Mode::Check {
            continue;
        }
        match disk.remove(&doomed.path(dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("delete a swept pack")(error));
            }
            _ => {}
        }
        // The row goes only after the name is gone for good: else the file could come back, and nothing would say so.
        disk.sync_dir(dir).map_err(StoreError::io("delete a swept pack"))?;
        let mut batch = Batch::default();
        batch.bury(doomed);
        index.apply(batch)?;
    }
    Ok(all)
}

/// The packs that count, and the index over them.
fn open_index(
    disk: &Disk,
    dir: &Path,
    packs_dir: &Path,
    mode: Mode,
    mut packs: WithLengths,
    report: &mut OpenReport,
) -> Result<(WithLengths, Index), StoreError> {
    let unreadable_packs = report.damaged_records;
    let opened = match Index::open(dir) {
        Ok(index) => match bury_doomed(disk, &index, packs_dir, mode, &mut packs) {
            Ok(doomed) => Ok((index, doomed)),
            Err(StoreError::Index(error)) => Err(error),
            Err(error) => return Err(error),
        },
        Err(error) => Err(error),
    };
    let tried = opened.and_then(|(index, doomed)| {
        let mut progress: HashMap<PackId, u64> = index.progress()?.into_iter().collect();
        // Whoever only looks has not buried them, and they may be gone.
        progress.retain(|pack, _| !doomed.contains(pack));
        let fits = |(pack, end): (&PackId, &u64)| packs.iter().any(|(p, len)| p.id == *pack && end <= len);
        if !progress.iter().all(fits) {
            return Err(IndexError::AheadOfPacks);
        }
        // A pack that could not be read, and can be again, or the end of one that was given up and is there still: what
        // it says must not be taken for later than all others.
        let with_records = packs.iter().filter(|(_, len)| *len > PACK_HEADER_LEN);
        let ends = with_records.map(|(pack, len)| (progress.get(&pack.id), *len));
        let mut behind = ends.skip_while(|(end, len)| end.is_some_and(|end| end == len)).skip(1);
        if behind.all(|(end, _)| end.is_none()) {
            Ok((index, progress))
        } else {
            Err(IndexError::LacksPack)
        }
    });
    let tried_error = match tried {
        Ok((index, progress)) => match replay(&index, &packs, &progress, None, report) {
            Ok(()) => return Ok((packs, index)),
            Err(StoreError::Index(e)) => e,
            Err(e) => return Err(e),
        },
        Err(e) => e,
    };
    let reason = tried_error.to_string();
    report.packs_lack = matches!(tried_error, IndexError::AheadOfPacks);
    // An empty store has no index to rebuild.
    report.index_rebuilt = packs.iter().any(|(_, len)| *len > PACK_HEADER_LEN);
    report.damaged_records = unreadable_packs;
    if report.index_rebuilt {
        tracing::warn!(reason, packs = packs.len(), "rebuilding the index from the packs");
    }
    let index = Index::fresh(dir).map_err(StoreError::io("move the index aside"))??;
    let mut bulk = Bulk::new(dir);
    replay(&index, &packs, &HashMap::new(), Some(&mut bulk), report)?;
    bulk.finish(&index)?;
    index.seal_version()?;
    index.flush()?;
    if report.index_rebuilt {
        tracing::warn!("the index is rebuilt");
    }
    Ok((packs, index))
}

/// Cuts what follows the last intact record of the pack that will be appended to.
fn report_cut(pack: &Pack, len: u64, index: &Index, mode: Mode, report: &mut OpenReport) -> Result<u64, StoreError> {
    let progress = index.progress()?;
    let end = progress
        .iter()
        .find(|(id, _)| *id == pack.id)
        .map_or(PACK_HEADER_LEN, |(_, end)| *end);
    if end < len {
        report.cut_bytes = len - end;
        if mode == Mode::Check {
            return Ok(end);
        }
        tracing::warn!(pack = pack.id.0, cut_bytes = report.cut_bytes, "cutting a torn tail");
        pack.truncate(end).map_err(StoreError::io("cut a torn tail"))?;
    }
    Ok(end)
}

/// Without it the pack has no footer, and a rebuild of the index reads its headers.
fn recall_current(inner: &Inner) {
    if let Err(error) = inner.packs.recall_current() {
        tracing::warn!(%error, "failed to read the current pack for its footer");
    }
}

/// Ends when the store is dropped, which closes the channel.
fn commit_periodically(store: &Weak<Inner>, stop: &Receiver<()>) {
    if let Some(inner) = store.upgrade() {
        recall_current(&inner);
    }
    let mut healing = Healing::default();
    while stop.recv_timeout(COMMIT_PERIOD) == Err(RecvTimeoutError::Timeout) {
        let Some(inner) = store.upgrade() else { return };
        if inner.heals.load(Relaxed) && inner.index.doubt().is_some() {
            // Until nobody but this thread has the store.
            healing.look(&inner, &|| Arc::strong_count(&inner) > 1);
            continue;
        }
        if let Err(error) = inner.packs.commit(&inner.index) {
            tracing::error!(%error, "failed to commit the store");
        }
    }
}
