//! A directory that one shim at a time may use.
//!
//! In: the directory. Out: a [`DirLock`] that keeps others off until it is dropped or its process ends.
//! Invariant: the lock of a process that lives is never taken from it; that of one that is gone is had within [`DYING`],
//! even if the kernel has not closed its files: a thread that was killed while it read from a lazy layer ends only when the
//! *successor* answers that read, so the successor must not wait for it. A full disk keeps nobody from taking it.
//! Not here: what is done to the directory (`app.rs`, `cache/dir.rs`); who a process is (`process_id.rs`).

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::process_id::ProcessId;

/// Has the lock; its text says whose it is.
const NAME: &str = "lock";
/// Locked while somebody looks at the other and maybe replaces it, so that two do not both.
const TURN: &str = "lock.turn";
/// What the kernel may still do for a killed process: its last write, and closing its files.
const DYING: Duration = Duration::from_secs(1);
const TURN_WAIT: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(10);
/// Of the text; whatever is longer is not ours.
const TEXT_MAX: u64 = 256;

#[derive(Debug)]
pub(crate) struct DirLock(File);

/// What can be seen of a lock without taking it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Another process has it.
    Held,
    Free,
    /// The disk does not say.
    Unknown,
}

impl DirLock {
    /// `None`: another process has it. Blocks for some seconds at most.
    pub(crate) fn take(dir: &Path) -> io::Result<Option<Self>> {
        let turn = open(&dir.join(TURN))?;
        if !lock_within(&turn, TURN_WAIT)? {
            return Ok(None);
        }
        // Unlocks, where closing would leave the lock to a child that has not come to exec(2).
        let _turn = Self(turn);
        let path = dir.join(NAME);
        let file = open(&path)?;
        let since = Instant::now();
        while !try_lock(&file)? {
            if !owner(&file)?.is_some_and(|owner| owner.is_gone()) {
                return Ok(None);
            }
            if since.elapsed() > DYING {
                return Self::replace(dir, &path).map(Some);
            }
            std::thread::sleep(LOOK);
        }
        Self::sign(file).map(Some)
    }

    /// Whether another process has it. Writes nothing, where nothing can be written.
    pub(crate) fn look(dir: &Path) -> Seen {
        let file = match File::open(dir.join(NAME)) {
            Ok(file) => file,
            // Whoever has it has made it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Seen::Free,
            Err(_) => return Seen::Unknown,
        };
        match try_lock(&file) {
            Ok(true) => {
                // Closing gives it back.
                drop(file.unlock());
                Seen::Free
            }
            Ok(false) => match owner(&file) {
                Ok(Some(owner)) if owner.is_gone() => Seen::Free,
                _ => Seen::Held,
            },
            Err(_) => Seen::Unknown,
        }
    }

    fn replace(dir: &Path, path: &Path) -> io::Result<Self> {
        tracing::warn!(lock = %path.display(), "lock-of-a-dead-process-replaced");
        let temporary = dir.join(format!("{NAME}.new"));
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = open(&temporary)?;
        // Nobody else has ever seen it.
        file.try_lock()?;
        let lock = Self::sign(file)?;
        std::fs::rename(&temporary, path)?;
        Ok(lock)
    }

    /// Says who has the lock. Whoever looks before that sees the former owner, who is gone, and looks again.
    fn sign(file: File) -> io::Result<Self> {
        let text = ProcessId::own()?.to_string();
        // Over the former text, which has the same length, so that it needs no room on the disk.
        if let Err(error) = file.write_all_at(text.as_bytes(), 0) {
            // It must not go on naming somebody who is gone. Of an owner without a name nobody thinks so: the lock is as good,
            // but for a successor that finds a thread of ours hanging in the kernel.
            file.set_len(0)?;
            tracing::warn!(%error, "lock-not-signed");
            return Ok(Self(file));
        }
        // What is longer is not ours.
        file.set_len(text.len() as u64)?;
        Ok(Self(file))
    }
}

impl Drop for DirLock {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            tracing::warn!(%error, "lock-not-given-back");
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

fn lock_within(file: &File, time: Duration) -> io::Result<bool> {
    let since = Instant::now();
    while !try_lock(file)? {
        if since.elapsed() > time {
            return Ok(false);
        }
        std::thread::sleep(LOOK);
    }
    Ok(true)
}

/// `None`: the text says nothing, as that of a shim that wrote none.
fn owner(mut file: &File) -> io::Result<Option<ProcessId>> {
    file.rewind()?;
    let mut text = String::new();
    match file.take(TEXT_MAX).read_to_string(&mut text) {
        Ok(_) => Ok(text.parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    use super::*;
    use crate::process_id;

    #[test]
    fn one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap().unwrap();
        assert!(DirLock::take(dir.path()).unwrap().is_none());
        assert_eq!(DirLock::look(dir.path()), Seen::Held);
        drop(first);
        assert_eq!(DirLock::look(dir.path()), Seen::Free);
        assert!(DirLock::take(dir.path()).unwrap().is_some());
    }

    #[test]
    fn a_lock_that_cannot_be_looked_at_is_not_free() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(DirLock::look(dir.path()), Seen::Free, "nobody ever had it");
        // No file that can be opened, whoever asks.
        std::os::unix::fs::symlink(NAME, dir.path().join(NAME)).unwrap();
        assert_eq!(DirLock::look(dir.path()), Seen::Unknown);
    }

    #[test]
    fn what_is_given_back_is_free_whoever_still_has_the_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap().unwrap();
        // What fork(2) gives a child.
        let inherited = first.0.try_clone().unwrap();
        drop(first);
        let second = DirLock::take(dir.path()).unwrap().unwrap();
        drop(inherited);
        assert!(DirLock::take(dir.path()).unwrap().is_none(), "the second has it");
        drop(second);
    }

    /// A description of the lock's file that stays locked, signed by a process that is gone.
    fn left_behind(dir: &Path, reap: bool) -> (File, std::process::Child) {
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let mut file = open(&dir.join(NAME)).unwrap();
        file.try_lock().unwrap();
        file.write_all(ProcessId::of(child.id()).unwrap().to_string().as_bytes())
            .unwrap();
        assert!(DirLock::take(dir).unwrap().is_none(), "it lives");
        child.kill().unwrap();
        match reap {
            true => drop(child.wait().unwrap()),
            // A signal takes its time.
            false => while !process_id::has_ended(child.id()) {},
        }
        (file, child)
    }

    #[test]
    fn a_dead_process_keeps_nobody_off() {
        for reap in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (file, mut child) = left_behind(dir.path(), reap);
            assert_eq!(DirLock::look(dir.path()), Seen::Free, "its owner is gone");
            let lock = DirLock::take(dir.path()).unwrap().expect("its owner is gone");
            assert!(DirLock::take(dir.path()).unwrap().is_none(), "it has a new owner");
            drop(file);
            assert!(DirLock::take(dir.path()).unwrap().is_none(), "the old one has no say");
            drop(lock);
            assert!(DirLock::take(dir.path()).unwrap().is_some());
            child.wait().unwrap();
        }
    }

    #[test]
    fn of_many_that_find_a_dead_owner_one_succeeds() {
        let dir = tempfile::tempdir().unwrap();
        let (_file, _child) = left_behind(dir.path(), true);
        let taken: Vec<DirLock> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| DirLock::take(dir.path()).unwrap()))
                .collect();
            all.into_iter().filter_map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(taken.len(), 1);
    }

    #[test]
    fn an_owner_that_nobody_knows_lives() {
        for text in ["", "headstart", "1", "\u{0}\u{1}\u{2}"] {
            let dir = tempfile::tempdir().unwrap();
            let mut file = open(&dir.path().join(NAME)).unwrap();
            file.try_lock().unwrap();
            file.write_all(text.as_bytes()).unwrap();
            assert!(DirLock::take(dir.path()).unwrap().is_none(), "{text:?}");
            file.unlock().unwrap();
            assert!(DirLock::take(dir.path()).unwrap().is_some(), "{text:?}");
        }
    }

    /// A disk of some pages.
    struct SmallDisk(tempfile::TempDir);

    impl SmallDisk {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let options = c"size=64k";
            mount(
                "headstart-test",
                dir.path(),
                "tmpfs",
                MountFlags::empty(),
                Some(options),
            )
            .unwrap();
            Self(dir)
        }

        fn fill(&self) {
            let mut file = File::create(self.0.path().join("filling")).unwrap();
            let error = loop {
                if let Err(error) = file.write_all(&[1; 4096]) {
                    break error;
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = unmount(self.0.path(), UnmountFlags::DETACH);
        }
    }

    #[test]
    fn a_full_disk_keeps_nobody_off() {
        let disk = SmallDisk::new();
        let dir = disk.0.path();
        // As a killed predecessor left it, once with its text and once without.
        let text = || std::fs::read_to_string(dir.join(NAME)).unwrap();
        open(&dir.join(NAME)).unwrap().write_all(b"1 1 1").unwrap();
        open(&dir.join(TURN)).unwrap();
        disk.fill();
        drop(DirLock::take(dir).unwrap().expect("nobody has it"));
        assert_eq!(text(), ProcessId::own().unwrap().to_string());

        File::create(dir.join(NAME)).unwrap();
        disk.fill();
        let lock = DirLock::take(dir).unwrap().expect("nobody has it");
        assert_eq!(text(), "");
        assert!(DirLock::take(dir).unwrap().is_none(), "its owner lives");
        drop(lock);
        assert!(DirLock::take(dir).unwrap().is_some());
    }

    #[test]
    fn a_full_disk_does_not_save_a_dead_owner() {
        let disk = SmallDisk::new();
        let dir = disk.0.path();
        let (_file, mut child) = left_behind(dir, true);
        disk.fill();
        let lock = DirLock::take(dir).unwrap().expect("its owner is gone");
        assert!(DirLock::take(dir).unwrap().is_none(), "it has a new owner");
        drop(lock);
        child.wait().unwrap();
    }
}
