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

use tokio_util::sync::CancellationToken;

use super::store::SnapshotStore;

/// One deleter of one trash directory.
#[derive(Clone, Debug)]
pub struct Trash {
    store: Arc<SnapshotStore>,
    stop: CancellationToken,
    /// One sweep at a time: two would only fight over the disk.
    turn: Arc<tokio::sync::Mutex<()>>,
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
        tokio::spawn(async move {
            // Waiting as a task: a garbage collection starts hundreds of sweeps, which as threads would leave none to
            // the calls and reads that need one.
            let turn = trash.turn.clone().lock_owned().await;
            let swept = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                trash.empty();
            });
            if let Err(error) = swept.await {
                tracing::warn!(%error, "sweep of the trash did not end");
            }
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

    /// One garbage collection of containerd removes hundreds of snapshots while the first is still being deleted. Each
    /// removal's sweep used to wait on a thread of its own, until no call and no read got one any more.
    #[test]
    fn sweeps_that_wait_take_no_threads() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(2)
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let root = tempfile::tempdir().unwrap();
            let store = Arc::new(SnapshotStore::open(root.path(), false).unwrap());
            let trash = Trash::new(store, CancellationToken::new());
            let sweeping = trash.turn.clone().try_lock_owned().unwrap();
            let sweeps: Vec<_> = (0..8).map(|_| trash.sweep()).collect();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let call = tokio::task::spawn_blocking(|| ());
            let limit = std::time::Duration::from_secs(20);
            tokio::time::timeout(limit, call).await.unwrap().unwrap();
            drop(sweeping);
            for sweep in sweeps {
                sweep.await.unwrap();
            }
        });
    }

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
