//! Everything that was done to the disk, in order, and what was promised when.
//!
//! In: operations, as a witness of them; promises of the workload; an operation that is to fail. Out: the same, for
//! whoever rebuilds a moment. Invariant: an operation is recorded before it is done, so that no promise that rests on it
//! comes before it.
//! Not here: what a crash makes of it ([`super::image`]).

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use headstart_loadtest::corpus::Rng;

use crate::store::disk::{Op, Witness};

/// Recorded.
#[derive(Debug)]
pub enum Done {
    Create(PathBuf),
    Write(PathBuf, u64, Vec<u8>),
    SetLen(PathBuf, u64),
    Sync(PathBuf),
    FailedSync(PathBuf),
    SyncDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    /// A copy of the index as it was.
    Index(PathBuf),
    /// From now on this is so; `None`: from now on it may be otherwise.
    Promise(Key, Option<Value>),
}

/// What a promise is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Layer(u32),
    Original(u32),
    Fact(u32),
    Pin(u32),
}

/// What is promised: a layer is ready, an original is here, a fact is known, something is pinned or not.
pub type Value = bool;

/// These operations fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    first: usize,
    count: usize,
    errno: rustix::io::Errno,
}

impl Fault {
    pub fn any(first: usize, rng: &mut Rng) -> Self {
        let errno = match rng.below(2) {
            0 => rustix::io::Errno::IO,
            _ => rustix::io::Errno::NOSPC,
        };
        let count = 1 + rng.below(3) as usize;
        Self { first, count, errno }
    }
}

#[derive(Debug)]
pub struct Journal {
    root: PathBuf,
    fault: Option<Fault>,
    /// What was there before, durably.
    base: BTreeMap<PathBuf, Vec<u8>>,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
pub struct Log {
    pub done: Vec<Done>,
    armed: bool,
    failable: usize,
    failable_syncs: Vec<usize>,
}

impl Journal {
    pub fn new(root: &Path, fault: Option<Fault>) -> Self {
        Self {
            root: root.to_owned(),
            fault,
            base: BTreeMap::new(),
            log: Mutex::default(),
        }
    }

    /// Of a directory that is not empty: packs, originals and an index, as a power cut left them.
    pub fn of(root: &Path, fault: Option<Fault>) -> Self {
        let mut journal = Self::new(root, fault);
        for room in ["packs", "originals"] {
            read_below(&root.join(room), &mut journal.base);
        }
        if crate::store::compact::latest(root).unwrap().is_some() {
            journal.keep_index();
        }
        journal
    }

    pub fn base(&self) -> &BTreeMap<PathBuf, Vec<u8>> {
        &self.base
    }

    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// From now on operations count, and may fail.
    pub fn arm(&self) {
        self.log().armed = true;
    }

    pub fn len(&self) -> usize {
        self.log().done.len()
    }

    /// How many operations may fail, and which of them are syncs.
    pub fn failable(&self) -> (usize, Vec<usize>) {
        let log = self.log();
        (log.failable, log.failable_syncs.clone())
    }

    /// Where something is synced.
    pub fn syncs(&self) -> Vec<usize> {
        let is_sync = |done: &Done| matches!(done, Done::Sync(_) | Done::SyncDir(_));
        let log = self.log();
        let syncs = log.done.iter().enumerate().filter(|(_, done)| is_sync(done));
        syncs.map(|(at, _)| at).collect()
    }

    pub fn promise(&self, key: Key, value: Option<Value>) {
        self.log().done.push(Done::Promise(key, value));
    }

    /// Keeps a copy of the index as it is now.
    pub fn keep_index(&self) {
        let mut log = self.log();
        let copy = self.root.join(format!("copy-{}", log.done.len()));
        // After a compaction it is elsewhere.
        let latest = crate::store::compact::latest(&self.root).unwrap().expect("an index");
        super::layers::copy_tree(&latest, &copy);
        log.done.push(Done::Index(copy));
    }

    /// What must be so at a moment.
    pub fn promises(&self, at: usize) -> BTreeMap<Key, Value> {
        let mut out = BTreeMap::new();
        for done in &self.log().done[..at] {
            match done {
                Done::Promise(key, Some(value)) => drop(out.insert(key.clone(), *value)),
                Done::Promise(key, None) => drop(out.remove(key)),
                _ => {}
            }
        }
        out
    }

    fn fails(&self, log: &mut Log) -> Option<io::Error> {
        if !log.armed {
            return None;
        }
        let (n, fault) = (log.failable, self.fault);
        log.failable += 1;
        let fault = fault.filter(|f| (f.first..f.first + f.count).contains(&n))?;
        Some(fault.errno.into())
    }
}

impl Witness for Journal {
    fn about_to(&self, op: Op<'_>) -> io::Result<()> {
        let mut log = self.log();
        let own = |path: &Path| path.to_owned();
        let done = match op {
            Op::Open(_) | Op::Read(..) | Op::StartWriting(..) => return Ok(()),
            Op::Create(path) => Done::Create(own(path)),
            Op::Write(path, at, bytes) => Done::Write(own(path), at, bytes.to_vec()),
            Op::SetLen(path, len) => Done::SetLen(own(path), len),
            Op::Sync(path) => Done::Sync(own(path)),
            Op::SyncDir(path) => Done::SyncDir(own(path)),
            Op::Rename(from, to) => Done::Rename(own(from), own(to)),
            Op::Remove(path) => Done::Remove(own(path)),
        };
        let n = log.failable;
        if matches!(done, Done::Sync(_) | Done::SyncDir(_)) {
            log.failable_syncs.push(n);
        }
        let Some(error) = self.fails(&mut log) else {
            log.done.push(done);
            return Ok(());
        };
        match done {
            Done::Sync(path) => log.done.push(Done::FailedSync(path)),
            // A part of it is there.
            Done::Write(path, at, bytes) => {
                let part = &bytes[..bytes.len() / 2];
                std::fs::File::options()
                    .write(true)
                    .open(&path)?
                    .write_all_at(part, at)?;
                log.done.push(Done::Write(path, at, part.to_vec()));
            }
            _ => {}
        }
        Err(error)
    }
}

fn read_below(dir: &Path, out: &mut BTreeMap<PathBuf, Vec<u8>>) {
    // There may be none yet.
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => read_below(&path, out),
            false => drop(out.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
}
