//! Something made from files that may change while the server runs: certificates, password files.
//!
//! In: paths, and how to make the thing from them. Out: the latest good one.
//! Invariant: what does not load any more (half written, a key that does not fit its certificate) changes nothing: the
//! old one stays, and the log says so once. A look costs no system call.
//! Not here: what the files mean.

use std::{
    fmt,
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, Weak},
    time::Duration,
};

/// Time between two looks at the files. Rotations take effect within this; a look is one `stat` a file.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A watched file has at most this many bytes; a larger one is the wrong file.
const FILE_SIZE_MAX: u64 = 8 << 20;

type Load<T> = dyn Fn() -> Result<T, String> + Send + Sync;

/// The latest good value; clones share it.
pub struct Watched<T>(Arc<Inner<T>>);

struct Inner<T> {
    paths: Vec<PathBuf>,
    load: Box<Load<T>>,
    now: RwLock<Arc<T>>,
}

/// What tells two versions of a file apart. A replaced symlink shows as another inode.
type Stamp = Vec<Option<(u64, u64, i64, i64, i64, i64)>>;

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("paths", &self.0.paths)
            .finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> Watched<T> {
    /// Loads at once, which may fail, and again whenever a file has changed, as long as clones live. To be called on a
    /// Tokio runtime.
    pub fn start(
        paths: Vec<PathBuf>,
        load: impl Fn() -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        // The stamp first: a change while loading is then seen as one.
        let stamp = stamp(&paths);
        let inner = Arc::new(Inner {
            now: RwLock::new(Arc::new(load()?)),
            load: Box::new(load),
            paths,
        });
        tokio::spawn(watch(Arc::downgrade(&inner), stamp));
        Ok(Self(inner))
    }

    pub fn get(&self) -> Arc<T> {
        self.0.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn watch<T: Send + Sync + 'static>(inner: Weak<Inner<T>>, mut known: Stamp) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        let looked = tokio::task::spawn_blocking(move || inner.look(known)).await;
        match looked {
            Ok(stamp) => known = stamp,
            // The runtime is ending, or loading panicked; there is nothing to go on from.
            Err(_) => return,
        }
    }
}

impl<T> Inner<T> {
    fn look(&self, known: Stamp) -> Stamp {
        let stamp = stamp(&self.paths);
        if stamp == known {
            return known;
        }
        match (self.load)() {
            Ok(value) => {
                *self.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
                tracing::info!(files = ?self.paths, "files have changed and are in use");
            }
            Err(error) => {
                tracing::error!(files = ?self.paths, error, "changed files do not load; what was in them before stays in use");
            }
        }
        stamp
    }
}

fn stamp(paths: &[PathBuf]) -> Stamp {
    let one = |path: &PathBuf| {
        let m = fs::metadata(path).ok()?;
        Some((m.ino(), m.len(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()))
    };
    paths.iter().map(one).collect()
}

/// The whole of a file that fits [`FILE_SIZE_MAX`].
pub fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("read {}: {error}", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_SIZE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_SIZE_MAX {
        return Err(format!("read {}: it is over {FILE_SIZE_MAX} bytes", path.display()));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn changes_are_taken_and_broken_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("number");
        fs::write(&path, "1").unwrap();
        let file = path.clone();
        let watched = Watched::start(vec![path.clone()], move || {
            let text = String::from_utf8(read_file(&file)?).map_err(|e| e.to_string())?;
            text.parse::<u64>().map_err(|e| e.to_string())
        })
        .unwrap();
        assert_eq!(*watched.get(), 1);
        fs::write(&path, "no number").unwrap();
        tokio::time::sleep(2 * LOOK_EVERY).await;
        assert_eq!(*watched.get(), 1);
        // A replaced file, as tools rotate them.
        fs::write(dir.path().join("new"), "2").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        for _ in 0..100 {
            if *watched.get() == 2 {
                return;
            }
            tokio::time::sleep(LOOK_EVERY / 4).await;
        }
        panic!("the change is not seen");
    }

    #[tokio::test]
    async fn what_is_broken_at_the_start_is_an_error() {
        let missing = PathBuf::from("/nonexistent/file");
        let file = missing.clone();
        assert!(Watched::start(vec![missing], move || read_file(&file)).is_err());
    }
}
