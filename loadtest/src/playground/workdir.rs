//! The work directory: everything a playground makes lies below it, and goes with it.
//!
//! In: a parent directory. Out: paths for logs, pid files, sockets and state.
//! Invariant: on drop, every mount below it is undone before anything is removed, and nothing is removed while something
//! is still mounted (removing through a mount would empty what is mounted). Its name is short: unix socket paths
//! are limited to 107 bytes.
//! Not here: the image cache, which outlives a playground ([`super::site`]).

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{PlaygroundError, Result, leftovers, mounts, process::start_ticks};

/// Work directories are `PREFIX` and random letters.
pub const PREFIX: &str = "headstart-playground.";
/// Says which process made the directory, like a pid file.
pub const OWNER_FILE: &str = "owner";
/// Pid files of what runs.
pub const PIDS_DIR: &str = "pids";

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    keep_logs: bool,
}

/// Shared by everything in it, so that it is removed last.
#[derive(Clone, Debug)]
pub struct WorkDir(Arc<Inner>);

impl WorkDir {
    /// Makes one in the machine's temporary directory, after removing what crashed playgrounds left there.
    pub fn create() -> Result<WorkDir> {
        let parent = std::env::temp_dir();
        leftovers::remove(&parent);
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(6)
            .tempdir_in(&parent)
            .map_err(PlaygroundError::io(format!("make a directory in {}", parent.display())))?;
        let path = dir.keep();
        let work = WorkDir(Arc::new(Inner {
            path,
            keep_logs: std::env::var_os("HEADSTART_KEEP_LOGS").is_some(),
        }));
        let me = std::process::id();
        work.write(OWNER_FILE, &format!("{me} {}\n", start_ticks(me).unwrap_or(0)))?;
        work.dir(PIDS_DIR)?;
        work.dir("log")?;
        Ok(work)
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// A directory below, made when it is not there.
    pub fn dir(&self, name: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.0.path.join(name);
        fs::create_dir_all(&path).map_err(PlaygroundError::io(format!("make {}", path.display())))?;
        Ok(path)
    }

    /// A file below, written whole.
    pub fn write(&self, name: impl AsRef<Path>, text: &str) -> Result<PathBuf> {
        let path = self.0.path.join(name);
        fs::write(&path, text).map_err(PlaygroundError::io(format!("write {}", path.display())))?;
        Ok(path)
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.0.path.join("log").join(format!("{name}.log"))
    }

    pub fn pid_file(&self, name: &str, pid: u32) -> PathBuf {
        self.0.path.join(PIDS_DIR).join(format!("{name}.{pid}"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.keep_logs {
            let kept = self.path.with_file_name("headstart-playground-logs");
            let _ = fs::create_dir_all(&kept);
            for log in fs::read_dir(self.path.join("log")).into_iter().flatten().flatten() {
                let _ = fs::copy(log.path(), kept.join(log.file_name()));
            }
        }
        if let Err(e) = remove(&self.path) {
            eprintln!("headstart-loadtest: left {} behind: {e}", self.path.display());
        }
    }
}

/// Unmounts and removes a work directory.
pub fn remove(path: &Path) -> io::Result<()> {
    let left = mounts::unmount_below(path);
    if let Some(point) = left.first() {
        return Err(io::Error::other(format!("{} is still mounted", point.display())));
    }
    fs::remove_dir_all(path)
}
