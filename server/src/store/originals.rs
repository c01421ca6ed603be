//! Original blobs and manifests on disk, byte for byte as the registry holds them.
//!
//! In: bytes that were verified. Out: open files.
//! Invariant: a file at `originals/<algorithm>/<hex[..2]>/<hex>` was verified against its name, synced, then renamed
//! into place, and is never written again. A `<hex>.partial` beside it is an unfinished fetch: it survives a crash of
//! this process and is resumed. It does not survive a crash of the *machine*, whose unsynced pages could be anything:
//! the boot's id is recorded, and another one voids all partials.
//! Not here: who may read what (memberships are facts of the index), eviction, and concurrency: `read/blobs.rs` sees to
//! it that one digest has one writer.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use headstart_layer_format::BlobDigest;

use super::{hasher::BlobHasher, partial::Partial};

/// The directory below `data_dir`.
const DIRECTORY: &str = "originals";

/// Suffix of an unfinished fetch.
const PARTIAL_SUFFIX: &str = "partial";

/// Suffix of a small original that is being written; worth nothing after a restart.
const NEW_SUFFIX: &str = "new";

/// Holds the id of the boot that the partials were written in.
const BOOT_FILE: &str = "boot-id";

/// Linux's name of the running boot.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The directory of originals; clones share it.
#[derive(Clone, Debug)]
pub struct Originals(Arc<PathBuf>);

impl Originals {
    /// Opens or creates the directory below `data_dir`.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let boot_id = fs::read_to_string(KERNEL_BOOT_ID).ok();
        Self::open_in_boot(data_dir, boot_id.as_deref().map(str::trim))
    }

    fn open_in_boot(data_dir: &Path, boot_id: Option<&str>) -> io::Result<Self> {
        let root = data_dir.join(DIRECTORY);
        fs::create_dir_all(&root)?;
        let originals = Self(Arc::new(root));
        let boot_file = originals.0.join(BOOT_FILE);
        let recorded = fs::read_to_string(&boot_file).ok();
        originals.sweep(NEW_SUFFIX)?;
        if boot_id.is_none() || recorded.as_deref() != boot_id {
            let voided = originals.sweep(PARTIAL_SUFFIX)?;
            if voided > 0 {
                tracing::info!(voided, "unfinished fetches of an earlier boot are void");
            }
            fs::write(&boot_file, boot_id.unwrap_or_default())?;
        }
        Ok(originals)
    }

    /// Removes the files with this suffix.
    fn sweep(&self, suffix: &str) -> io::Result<u64> {
        let mut swept = 0;
        for algorithm in directories(&self.0)? {
            for shard in directories(&algorithm)? {
                for entry in fs::read_dir(shard)? {
                    let path = entry?.path();
                    if path.extension().is_some_and(|e| e == suffix) {
                        fs::remove_file(path)?;
                        swept += 1;
                    }
                }
            }
        }
        Ok(swept)
    }

    /// Where the verified bytes are, or would be.
    pub fn path(&self, digest: &BlobDigest) -> PathBuf {
        let hex = digest.hex();
        self.0.join(digest.algorithm()).join(&hex[..2]).join(hex)
    }

    /// Where an unfinished fetch is.
    pub fn partial_path(&self, digest: &BlobDigest) -> PathBuf {
        self.path(digest).with_extension(PARTIAL_SUFFIX)
    }

    /// The verified file and its size; `None` is a miss.
    pub fn get(&self, digest: &BlobDigest) -> io::Result<Option<(File, u64)>> {
        match File::open(self.path(digest)) {
            Ok(file) => {
                let size = file.metadata()?.len();
                Ok(Some((file, size)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The whole of a small original, verified once more. Damage is a miss, and the damaged file goes away.
    pub fn read_verified(&self, digest: &BlobDigest, size_max: u64) -> io::Result<Stored> {
        let Some((mut file, size)) = self.get(digest)? else {
            return Ok(Stored::Miss);
        };
        if size > size_max {
            return Ok(Stored::TooLarge(size));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.read_to_end(&mut bytes)?;
        if BlobHasher::matches(digest, &bytes) {
            Ok(Stored::Found(bytes))
        } else {
            self.remove(digest)?;
            Ok(Stored::Damaged)
        }
    }

    /// Forgets an original.
    pub fn remove(&self, digest: &BlobDigest) -> io::Result<()> {
        ignore_missing(fs::remove_file(self.path(digest)))
    }

    /// Keeps bytes that the caller has verified (manifests).
    pub fn put(&self, digest: &BlobDigest, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(digest);
        if path.exists() {
            return Ok(());
        }
        // A name of its own: the same manifest may be kept twice at once, or be asked for as a blob.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let new = path.with_extension(format!("{}.{NEW_SUFFIX}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(parent(&path))?;
        let mut file = File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        publish(&new, &path)
    }

    /// The unfinished fetch of `digest`, or an empty one. Its bytes are not hashed yet: [`Partial::rehash`].
    pub fn partial(&self, digest: &BlobDigest) -> io::Result<Partial> {
        Partial::open(self.partial_path(digest), self.path(digest), digest)
    }
}

/// Answer of [`Originals::read_verified`].
#[derive(Debug, PartialEq, Eq)]
pub enum Stored {
    Found(Vec<u8>),
    Miss,
    TooLarge(u64),
    Damaged,
}

/// Rename, made durable.
pub(super) fn publish(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    File::open(parent(to))?.sync_all()
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().expect("paths of originals are below the root")
}

pub(super) fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn directories(of: &Path) -> io::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for entry in fs::read_dir(of)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            out.push(entry.path());
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_is_resumed_in_the_same_boot_and_void_in_another() {
        let dir = tempfile::tempdir().unwrap();
        let digest = BlobDigest::of(b"hello world");
        let open = |boot| Originals::open_in_boot(dir.path(), Some(boot)).unwrap();

        open("one").partial(&digest).unwrap().append(b"hello ").unwrap();
        let mut partial = open("one").partial(&digest).unwrap();
        assert_eq!(partial.len(), 6);
        partial.rehash().unwrap();
        assert!(!partial.is_whole());
        partial.append(b"world").unwrap();
        assert!(partial.is_whole());
        drop(partial);

        assert!(open("two").partial(&digest).unwrap().is_empty());
    }

    #[test]
    fn only_a_commit_makes_an_original() {
        let dir = tempfile::tempdir().unwrap();
        let originals = Originals::open(dir.path()).unwrap();
        let digest = BlobDigest::of(b"abc");
        let mut partial = originals.partial(&digest).unwrap();
        partial.append(b"abc").unwrap();
        assert!(originals.get(&digest).unwrap().is_none());
        partial.commit().unwrap();
        assert_eq!(
            originals.read_verified(&digest, 3).unwrap(),
            Stored::Found(b"abc".to_vec())
        );
        assert_eq!(originals.read_verified(&digest, 2).unwrap(), Stored::TooLarge(3));
        assert!(!originals.partial_path(&digest).exists());
    }

    #[test]
    fn damage_is_a_miss_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let originals = Originals::open(dir.path()).unwrap();
        let digest = BlobDigest::of(b"abc");
        originals.put(&digest, b"abc").unwrap();
        fs::write(originals.path(&digest), b"abd").unwrap();
        assert_eq!(originals.read_verified(&digest, 9).unwrap(), Stored::Damaged);
        assert_eq!(originals.read_verified(&digest, 9).unwrap(), Stored::Miss);
    }
}
