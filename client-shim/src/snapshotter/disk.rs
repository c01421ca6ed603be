//! Snapshots on disk: one directory each, one small file in it that is the truth.
//!
//! ```text
//! <root>/snapshots/<id>/snapshot.json   the record, replaced atomically
//! <root>/snapshots/<id>/fs, work        the overlay's upper and work directory (fs only for what is not lazy)
//! <root>/snapshots/new-<id>             being made: renamed to <id> when complete, swept at start
//! <root>/trash/<n>                      being deleted ([`super::trash`])
//! <root>/damaged/<id>                   a record that cannot be read, set aside for a person to look at
//! ```
//! In: records. Out: directories. Invariant: a directory `snapshots/<id>` holds a whole record at every moment, and an
//! fsynced one when whoever made it was told so (after power loss before that: an empty file, which is swept); nothing else is looked at when the shim starts, and no network is needed.
//! Not here: which records may exist together ([`super::index`]).

use std::fs::{self, DirBuilder, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::idmap::IdMap;
use super::record::{Kind, RECORD_VERSION, Record, SnapshotId};

/// Largest record read: labels are at most 4096 bytes each, and no client sets hundreds.
const RECORD_SIZE_MAX: u64 = 4 << 20;

const RECORD_NAME: &str = "snapshot.json";
const RECORD_TMP_NAME: &str = "snapshot.json.tmp";
const NEW_PREFIX: &str = "new-";

/// The directories below `root`.
#[derive(Debug)]
pub struct Disk {
    root: PathBuf,
    next_trash: AtomicU64,
}

/// What [`Disk::load`] found.
#[derive(Debug)]
pub struct Loaded {
    pub records: Vec<Record>,
    /// Above every number in use, also by what was set aside.
    pub next_id: SnapshotId,
}

impl Disk {
    /// Makes the directories below `root` if they are missing.
    pub fn open(root: &Path) -> std::io::Result<Self> {
        let disk = Self {
            root: root.to_owned(),
            next_trash: AtomicU64::new(0),
        };
        for dir in [disk.snapshots(), disk.trash(), disk.damaged()] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let taken = fs::read_dir(disk.trash())?.filter_map(|e| e.ok()?.file_name().to_str()?.parse::<u64>().ok());
        disk.next_trash
            .store(taken.max().map_or(0, |n| n.saturating_add(1)), Ordering::Relaxed);
        Ok(disk)
    }

    fn snapshots(&self) -> PathBuf {
        self.root.join("snapshots")
    }

    /// Where deleted directories wait.
    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    fn damaged(&self) -> PathBuf {
        self.root.join("damaged")
    }

    fn dir(&self, id: SnapshotId) -> PathBuf {
        self.snapshots().join(id.0.to_string())
    }

    /// The snapshot's own files.
    pub fn upper(&self, id: SnapshotId) -> PathBuf {
        self.dir(id).join("fs")
    }

    /// overlayfs's scratch directory.
    pub fn work(&self, id: SnapshotId) -> PathBuf {
        self.dir(id).join("work")
    }

    /// A fresh name in the trash.
    pub fn trash_slot(&self) -> PathBuf {
        self.trash()
            .join(self.next_trash.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Makes a snapshot's directory. `like`: whose owner and mode its root directory gets (the top lower layer's), since
    /// the upper directory's attributes are what a container sees on `/`.
    pub fn create(&self, record: &Record, like: Option<&Path>) -> std::io::Result<()> {
        let new = self.snapshots().join(format!("{NEW_PREFIX}{}", record.id.0));
        let made = self.fill(&new, record, like).and_then(|file| {
            let dir = self.dir(record.id);
            fs::rename(&new, &dir)?;
            // All three after the last change, so that a journal has one thing to commit: a pull waits for this once a layer.
            file.sync_all()?;
            sync_dir(&dir)?;
            sync_dir(&self.snapshots())
        });
        if made.is_err() {
            // Best effort: the sweep at start takes what stays behind.
            let _ = fs::rename(&new, self.trash_slot());
            let _ = self.discard(record.id);
        }
        made
    }

    fn fill(&self, new: &Path, record: &Record, like: Option<&Path>) -> std::io::Result<File> {
        let make = |path: &Path, mode| DirBuilder::new().mode(mode).create(path);
        make(new, 0o700)?;
        if record.lazy.is_none() {
            let upper = new.join("fs");
            make(&upper, 0o755)?;
            let (mode, owner) = match like {
                None => (0o755, None),
                Some(like) => {
                    let m = fs::symlink_metadata(like)?;
                    (m.mode() & 0o7777, Some((m.uid(), m.gid())))
                }
            };
            // Unlike those below it, the upper directory is not mounted idmapped.
            let ids = IdMap::from_labels(&record.labels).map_err(std::io::Error::other)?;
            let owner = match ids {
                Some(ids) => owner.or(Some((0, 0))).map(|(uid, gid)| ids.outside(uid, gid)),
                None => owner,
            };
            if let Some((uid, gid)) = owner {
                std::os::unix::fs::lchown(&upper, Some(uid), Some(gid))?;
            }
            // After chown, which may clear bits; and free of the umask.
            fs::set_permissions(&upper, fs::Permissions::from_mode(mode))?;
            if record.kind == Kind::Active {
                make(&new.join("work"), 0o711)?;
            }
        }
        // Nobody looks in here before it has its name, so the file can have its own at once.
        let mut file = File::create(new.join(RECORD_NAME))?;
        file.write_all(&serde_json::to_vec(record).map_err(std::io::Error::other)?)?;
        Ok(file)
    }

    /// Replaces a snapshot's record.
    pub fn replace(&self, record: &Record) -> std::io::Result<()> {
        write_record(&self.dir(record.id), record)
    }

    /// Flushes a snapshot's files to disk.
    pub fn sync(&self, id: SnapshotId) -> std::io::Result<()> {
        Ok(rustix::fs::syncfs(File::open(self.upper(id))?)?)
    }

    /// Takes a snapshot's directory away in one step; its files are deleted later. Not flushed: should power loss bring
    /// it back, containerd's garbage collection finds a snapshot it does not know, and removes it again.
    pub fn discard(&self, id: SnapshotId) -> std::io::Result<()> {
        match fs::rename(self.dir(id), self.trash_slot()) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Sets a snapshot aside that cannot be used.
    pub fn set_aside(&self, id: SnapshotId) {
        self.set_aside_dir(&self.dir(id));
    }

    fn set_aside_dir(&self, dir: &Path) {
        let name = dir.file_name().unwrap_or_default();
        let mut to = self.damaged().join(name);
        if to.symlink_metadata().is_ok() {
            let mut numbered = name.to_owned();
            numbered.push(format!(".{}", self.next_trash.fetch_add(1, Ordering::Relaxed)));
            to = self.damaged().join(numbered);
        }
        if let Err(error) = fs::rename(dir, &to) {
            tracing::error!(path = %dir.display(), %error, "damaged snapshot could not be set aside");
        }
    }

    /// Reads every record. Half-made snapshots go to the trash, unreadable ones are set aside.
    pub fn load(&self) -> std::io::Result<Loaded> {
        let mut records = Vec::new();
        let mut id_max = 0;
        for dir in fs::read_dir(self.damaged())? {
            let name = dir?.file_name();
            let number = name.to_str().and_then(|n| n.split('.').next()?.parse::<u64>().ok());
            id_max = id_max.max(number.unwrap_or(0));
        }
        for dir in fs::read_dir(self.snapshots())? {
            let path = dir?.path();
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let (number, half_made) = match name.strip_prefix(NEW_PREFIX) {
                Some(number) => (number, true),
                None => (name, false),
            };
            let id = number.parse::<u64>().ok().map(SnapshotId);
            // Also of what is half-made: it may be there to stay.
            id_max = id_max.max(id.map_or(0, |id| id.0));
            if half_made {
                self.throw_away(&path);
                continue;
            }
            match read_record(&path) {
                // Power went before anybody was told of it.
                Err(_) if is_unfinished(&path) => self.throw_away(&path),
                Ok(record) if Some(record.id) == id => records.push(record),
                Ok(_) => self.reject(&path, "the record is another snapshot's"),
                Err(why) => self.reject(&path, &why),
            }
        }
        records.sort_by_key(|r| r.id);
        Ok(Loaded {
            records,
            next_id: SnapshotId(id_max.saturating_add(1)),
        })
    }

    /// One that stays is in the way of no other; the next start tries again.
    fn throw_away(&self, path: &Path) {
        if let Err(error) = fs::rename(path, self.trash_slot()) {
            tracing::warn!(path = %path.display(), %error, "half-made snapshot not moved to the trash");
        }
    }

    fn reject(&self, path: &Path, why: &str) {
        tracing::error!(path = %path.display(), why, "damaged snapshot set aside");
        self.set_aside_dir(path);
    }
}

/// An empty record, and nothing in the snapshot.
fn is_unfinished(dir: &Path) -> bool {
    let is_empty = fs::metadata(dir.join(RECORD_NAME)).is_ok_and(|record| record.len() == 0);
    is_empty && fs::read_dir(dir.join("fs")).map_or(true, |mut files| files.next().is_none())
}

fn read_record(dir: &Path) -> Result<Record, String> {
    let path = dir.join(RECORD_NAME);
    let size = fs::metadata(&path).map_err(|e| e.to_string())?.len();
    if size > RECORD_SIZE_MAX {
        return Err(format!(
            "the record has {size} bytes, over the limit of {RECORD_SIZE_MAX}"
        ));
    }
    let text = fs::read(&path).map_err(|e| e.to_string())?;
    let record: Record = serde_json::from_slice(&text).map_err(|e| e.to_string())?;
    if record.version != RECORD_VERSION {
        return Err(format!("record version {} is not known", record.version));
    }
    Ok(record)
}

/// Write new, fsync, publish by rename, fsync the directory: a crash leaves the old record or the new one.
fn write_record(dir: &Path, record: &Record) -> std::io::Result<()> {
    let tmp = dir.join(RECORD_TMP_NAME);
    let mut file = File::create(&tmp)?;
    file.write_all(&serde_json::to_vec(record).map_err(std::io::Error::other)?)?;
    file.sync_all()?;
    fs::rename(&tmp, dir.join(RECORD_NAME))?;
    sync_dir(dir)
}

fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
