//! The directory as a power cut leaves it.
//!
//! In: a journal and a moment. Out: files. Invariant: what was synced is there; of everything since, any part may be, in
//! any order, torn at any byte. Names are files' only after a sync of their directory.
//! Not here: whether that is good enough ([`super::promise`]).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use headstart_loadtest::corpus::Rng;

use super::journal::{Done, Journal};
use super::layers::copy_tree;

/// What is left of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    Nothing,
    Everything,
    /// Each operation by itself.
    Some,
    /// As `Some`, and what is kept may be torn.
    Torn,
}

impl Keep {
    pub fn any(rng: &mut Rng) -> Self {
        [Self::Nothing, Self::Everything, Self::Some, Self::Torn][rng.below(4) as usize]
    }

    fn keeps(self, rng: &mut Rng) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Some | Self::Torn => rng.below(2) == 0,
        }
    }
}

/// What is left of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexLeft {
    Nothing,
    /// As it was some time before.
    Stale,
    /// The same, and a part of it lost.
    Cut,
    /// The same, and a part of it garbled.
    Garbled,
    /// As `Stale`, and a compacted copy of it that is not whole.
    Copying,
    /// As `Garbled`, and a compacted copy that is whole.
    Copied,
}

impl IndexLeft {
    pub fn any(rng: &mut Rng) -> Self {
        // Mostly what is likely.
        [
            Self::Nothing,
            Self::Stale,
            Self::Stale,
            Self::Stale,
            Self::Cut,
            Self::Garbled,
            Self::Copying,
            Self::Copied,
        ][rng.below(8) as usize]
    }
}

#[derive(Clone, Debug)]
enum Pending {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

impl Pending {
    fn apply(&self, file: &mut Vec<u8>) {
        match self {
            Self::SetLen(len) => file.resize(*len as usize, 0),
            Self::Write(at, bytes) => {
                let (at, end) = (*at as usize, *at as usize + bytes.len());
                file.resize(file.len().max(end), 0);
                file[at..end].copy_from_slice(bytes);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Naming {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    /// Within a directory. From one to another it is a link there and an unlink here, each by itself.
    Rename(PathBuf, PathBuf, usize),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Link(path, file) => drop(names.insert(path.clone(), *file)),
            Self::Unlink(path) => drop(names.remove(path)),
            Self::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
        }
    }

    fn is_in(&self, dir: &Path) -> bool {
        match self {
            Self::Link(path, _) | Self::Unlink(path) => path.parent() == Some(dir),
            Self::Rename(_, to, _) => to.parent() == Some(dir),
        }
    }
}

#[derive(Debug, Default)]
struct File {
    synced: Vec<u8>,
    /// Since, and whether a failed sync was about it: then no later one is.
    pending: Vec<(Pending, bool)>,
}

#[derive(Debug, Default)]
struct Disk {
    files: Vec<File>,
    /// As programs see them, and as they are on the disk.
    names: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    naming: Vec<Naming>,
    index: Option<PathBuf>,
    /// Of files that are open still under a name that is gone.
    last: HashMap<PathBuf, usize>,
}

impl Disk {
    /// A file that was there before.
    fn found(&mut self, path: &Path, bytes: &[u8]) {
        self.files.push(File {
            synced: bytes.to_vec(),
            pending: Vec::new(),
        });
        let file = self.files.len() - 1;
        for names in [&mut self.names, &mut self.durable] {
            names.insert(path.to_owned(), file);
        }
        self.last.insert(path.to_owned(), file);
    }

    fn file(&mut self, path: &Path) -> &mut File {
        let at = self.names.get(path).or_else(|| self.last.get(path));
        &mut self.files[*at.expect("a file that was created")]
    }

    fn name(&mut self, naming: Naming) {
        naming.apply(&mut self.names);
        self.naming.push(naming);
    }

    fn see(&mut self, done: &Done) {
        match done {
            Done::Create(path) => match self.names.contains_key(path) {
                true => self.file(path).pending.push((Pending::SetLen(0), false)),
                false => {
                    self.files.push(File::default());
                    let file = self.files.len() - 1;
                    self.last.insert(path.clone(), file);
                    self.name(Naming::Link(path.clone(), file));
                }
            },
            Done::Write(path, at, bytes) => {
                let write = Pending::Write(*at, bytes.clone());
                self.file(path).pending.push((write, false));
            }
            Done::SetLen(path, len) => self.file(path).pending.push((Pending::SetLen(*len), false)),
            Done::Sync(path) => {
                let file = self.file(path);
                for (pending, is_lost) in std::mem::take(&mut file.pending) {
                    if !is_lost {
                        pending.apply(&mut file.synced);
                    }
                }
            }
            Done::FailedSync(path) => self
                .file(path)
                .pending
                .iter_mut()
                .for_each(|(_, is_lost)| *is_lost = true),
            Done::SyncDir(dir) => {
                for naming in std::mem::take(&mut self.naming) {
                    match naming.is_in(dir) {
                        true => naming.apply(&mut self.durable),
                        false => self.naming.push(naming),
                    }
                }
            }
            Done::Rename(from, to) => {
                if let Some(file) = self.names.get(from).copied() {
                    self.last.insert(to.clone(), file);
                    if from.parent() == to.parent() {
                        self.name(Naming::Rename(from.clone(), to.clone(), file));
                    } else {
                        self.name(Naming::Link(to.clone(), file));
                        self.name(Naming::Unlink(from.clone()));
                    }
                }
            }
            Done::Remove(path) => {
                if self.names.contains_key(path) {
                    self.name(Naming::Unlink(path.clone()));
                }
            }
            Done::Index(path) => self.index = Some(path.clone()),
            Done::Promise(..) => {}
        }
    }
}

impl Journal {
    /// Writes below `to` what a power cut before operation `at` leaves.
    pub fn image(&self, to: &Path, at: usize, keep: Keep, index: IndexLeft, rng: &mut Rng) {
        let mut disk = Disk::default();
        for (path, bytes) in self.base() {
            disk.found(path, bytes);
        }
        self.log().done[..at].iter().for_each(|done| disk.see(done));
        let mut names = disk.durable;
        for naming in disk.naming.iter().filter(|_| keep.keeps(rng)) {
            naming.apply(&mut names);
        }
        std::fs::create_dir_all(to.join("packs")).unwrap();
        for (path, file) in names {
            let File { synced, pending } = &disk.files[file];
            let mut bytes = synced.clone();
            for (pending, is_lost) in pending {
                let mut pending = pending.clone();
                if *is_lost && keep != Keep::Everything || !keep.keeps(rng) {
                    continue;
                }
                if let (Keep::Torn, Pending::Write(_, bytes)) = (keep, &mut pending) {
                    bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize);
                }
                pending.apply(&mut bytes);
            }
            let path = to.join(path.strip_prefix(self.root()).unwrap());
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        if let (Some(from), true) = (disk.index, index != IndexLeft::Nothing) {
            copy_tree(&from, &to.join("index"));
            let copy = to.join("index.3");
            if matches!(index, IndexLeft::Copying | IndexLeft::Copied) {
                copy_tree(&from, &copy);
            }
            let whole = copy.join("whole");
            let (db, index) = match index {
                IndexLeft::Copying => {
                    // There is one if what was kept is a compacted one itself.
                    let _ = std::fs::remove_file(whole);
                    (copy.join("db"), IndexLeft::Cut)
                }
                IndexLeft::Copied => {
                    std::fs::write(whole, b"").unwrap();
                    (to.join("index/db"), IndexLeft::Garbled)
                }
                other => (to.join("index/db"), other),
            };
            let mut bytes = std::fs::read(&db).unwrap();
            let place = rng.below(bytes.len() as u64) as usize;
            match index {
                IndexLeft::Cut => bytes.truncate(place),
                IndexLeft::Garbled => {
                    let end = (place + 3000).min(bytes.len());
                    bytes[place..end].iter_mut().for_each(|byte| *byte ^= 0x5a);
                }
                _ => return,
            }
            std::fs::write(db, bytes).unwrap();
        }
    }
}
