//! Deletes what snapshots left behind, in the background.
//!
//! In: directories that a rename moved into the trash. Out: free space. Invariant: neither depth nor path length of a
//! hostile tree matters (a directory found inside is first moved up into the trash, one rename), and a tree that cannot
//! be deleted stops nothing else.
//! Not here: deciding what goes ([`super::store`]).

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use tokio_util::sync::CancellationToken;

use super::store::SnapshotStore;

/// One deleter of one trash directory.
#[derive(Clone, Debug)]
pub struct Trash {
    store: Arc<SnapshotStore>,
    stop: CancellationToken,
    /// One sweep at a time: two would only fight over the disk.
    turn: Arc<Mutex<()>>,
}

impl Trash {
    /// `stop` ends a sweep between two files.
    pub fn new(store: Arc<SnapshotStore>, stop: CancellationToken) -> Self {
        Self {
            store,
            stop,
            turn: Arc::default(),
        }
    }

    /// Starts a sweep of what is there now; the handle ends with it.
    pub fn sweep(&self) -> tokio::task::JoinHandle<()> {
        let trash = self.clone();
        tokio::task::spawn_blocking(move || {
            let _turn = trash.turn.lock().unwrap_or_else(PoisonError::into_inner);
            trash.empty();
        })
    }

    fn empty(&self) {
        let dir = self.store.disk().trash();
        let mut pending: Vec<_> = match fs::read_dir(&dir) {
            Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
            Err(error) => {
                tracing::warn!(path = %dir.display(), %error, "trash cannot be read");
                return;
            }
        };
        while let Some(path) = pending.pop() {
            if self.stop.is_cancelled() {
                return;
            }
            if let Err(error) = self.delete(&path, &mut pending)
                && error.kind() != ErrorKind::NotFound
            {
                // Tried again at the next sweep.
                tracing::warn!(path = %path.display(), %error, "removed snapshot not deleted yet");
            }
        }
    }

    /// Deletes what is directly in `path`, moves its directories up into `pending`, and deletes `path`.
    fn delete(&self, path: &Path, pending: &mut Vec<std::path::PathBuf>) -> std::io::Result<()> {
        if !fs::symlink_metadata(path)?.is_dir() {
            return fs::remove_file(path);
        }
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            if self.stop.is_cancelled() {
                return Ok(());
            }
            if entry.file_type()?.is_dir() {
                let slot = self.store.disk().trash_slot();
                fs::rename(entry.path(), &slot)?;
                pending.push(slot);
            } else {
                fs::remove_file(entry.path())?;
            }
        }
        fs::remove_dir(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_tree_deeper_than_any_path_is_deleted() {
        let root = tempfile::tempdir().unwrap();
        let store = Arc::new(SnapshotStore::open(root.path(), false).unwrap());
        let slot = store.disk().trash_slot();
        fs::create_dir(&slot).unwrap();
        // 60 levels of 200 bytes: three times PATH_MAX, built from the inside out.
        let name = "d".repeat(200);
        let spare = root.path().join("spare");
        for _ in 0..60 {
            let outer = root.path().join("outer");
            fs::create_dir(&outer).unwrap();
            fs::write(outer.join("file"), b"x").unwrap();
            if spare.exists() {
                fs::rename(&spare, outer.join(&name)).unwrap();
            }
            fs::rename(&outer, &spare).unwrap();
        }
        fs::rename(&spare, slot.join("deep")).unwrap();
        std::os::unix::fs::symlink("/", slot.join("link")).unwrap();
        Trash::new(store.clone(), CancellationToken::new())
            .sweep()
            .await
            .unwrap();
        assert_eq!(fs::read_dir(store.disk().trash()).unwrap().count(), 0);
        assert!(Path::new("/").read_dir().unwrap().count() > 0);
    }
}
