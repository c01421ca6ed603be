//! Original blobs and manifests on disk, byte for byte as the registry holds them.
//!
//! In: bytes that were verified. Out: open files.
//! Invariant: a file at `originals/<algorithm>/<hex[..2]>/<hex>` was verified against its name, synced, then renamed
//! into place, and is never written again. A `<hex>.<upstream>.partial` beside it, with its `.map`, is an unfinished
//! fetch: it survives a crash of this process and is resumed. It does not survive a crash of the *machine*, whose
//! unsynced pages could be anything: the boot's id is recorded, and another one voids all partials.
//! A file may vanish under a reader that has it open: readers hold the open file, never the path.
//! Not here: whether a file that an earlier process left still is what it was, and which are open ([`hand`]); what there is ([`kept`]);
//! who may read what (memberships are facts of the index), what is evicted when ([`crate::reclaim`]), and
//! concurrency: `read/blobs.rs` sees to it that one digest has one writer.

mod hand;
mod kept;

use std::{
    collections::HashSet,
    fs::{self, File},
    io,
    ops::Range,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use headstart_layer_format::{BlobDigest, digest::hex};
use sha2::{Digest as _, Sha256};

use super::{
    bell::Bell,
    disk::Disk,
    leftovers::{self, directories},
    partial::{self, MAP_SUFFIX, Partial},
    usage::{Usage, now_ms},
};
use hand::Hand;
pub use hand::Stored;

/// The directory below `data_dir`.
const DIRECTORY: &str = "originals";

/// Suffix of an unfinished fetch.
pub(super) const PARTIAL_SUFFIX: &str = "partial";

/// Suffix of a small original that is being written; worth nothing after a restart.
const NEW_SUFFIX: &str = "new";

/// Bytes of the hash of an upstream's name in the names of its partials.
const UPSTREAM_TAG_LEN: usize = 4;

/// Holds the id of the boot that the partials were written in.
const BOOT_FILE: &str = "boot-id";

/// Linux's name of the running boot.
const KERNEL_BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The directory of originals; clones share it.
#[derive(Clone, Debug)]
pub struct Originals(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    disk: Disk,
    root: PathBuf,
    usage: Usage,
    bell: Bell,
    /// The bell is rung when more than this is kept.
    bytes_max: AtomicU64,
    hand: Hand,
    /// Fetches that may be unfinished; those that ended are dropped at the next look.
    partials: Mutex<HashSet<(BlobDigest, String)>>,
}

impl Originals {
    /// Opens or creates the directory below `data_dir`.
    pub fn open(data_dir: &Path) -> io::Result<Self> {
        let boot_id = fs::read_to_string(KERNEL_BOOT_ID).ok();
        Self::open_in_boot(data_dir, boot_id.as_deref().map(str::trim))
    }

    fn open_in_boot(data_dir: &Path, boot_id: Option<&str>) -> io::Result<Self> {
        Self::open_on(Disk::default(), data_dir, boot_id)
    }

    pub(super) fn open_on(disk: Disk, data_dir: &Path, boot_id: Option<&str>) -> io::Result<Self> {
        let root = data_dir.join(DIRECTORY);
        fs::create_dir_all(&root)?;
        let originals = Self::below(disk, root);
        let boot_file = originals.0.root.join(BOOT_FILE);
        let recorded = fs::read_to_string(&boot_file).ok();
        originals.sweep(NEW_SUFFIX)?;
        if boot_id.is_none() || recorded.as_deref() != boot_id {
            originals.sweep(MAP_SUFFIX)?;
            let voided = originals.sweep(PARTIAL_SUFFIX)?;
            if voided > 0 {
                tracing::info!(voided, "unfinished fetches of an earlier boot are void");
            }
            fs::write(&boot_file, boot_id.unwrap_or_default())?;
        }
        Ok(originals)
    }

    fn below(disk: Disk, root: PathBuf) -> Self {
        Self(Arc::new(Inner {
            disk,
            root,
            usage: Usage::default(),
            bell: Bell::default(),
            bytes_max: AtomicU64::new(u64::MAX),
            hand: Hand::default(),
            partials: Mutex::default(),
        }))
    }

    /// Removes the files with this suffix.
    fn sweep(&self, suffix: &str) -> io::Result<u64> {
        let mut swept = 0;
        leftovers::each(&self.0.root, suffix, |path| {
            swept += 1;
            ignore_missing(fs::remove_file(path))
        })?;
        Ok(swept)
    }

    /// Unfinished fetches that nobody has touched for `age`, and maps without a fetch, go away. Returns how many.
    /// `unless_in_use` is given the path of a partial, and runs what it is given while no fetch of that can begin.
    pub fn sweep_leftovers(
        &self,
        age: Duration,
        unless_in_use: impl FnMut(&Path, leftovers::Remove<'_>),
    ) -> io::Result<u64> {
        leftovers::sweep(&self.0.root, age, unless_in_use)
    }

    /// Unfinished fetches that lack nothing but their name. A crash leaves such.
    pub fn whole_partials(&self) -> io::Result<Vec<PathBuf>> {
        leftovers::whole(&self.0.root)
    }

    /// The blob that a file of this directory is of.
    pub fn digest_of(&self, path: &Path) -> Option<BlobDigest> {
        let algorithm = path.parent()?.parent()?.file_name()?.to_str()?;
        let hex = path.file_name()?.to_str()?.split('.').next()?;
        format!("{algorithm}:{hex}").parse().ok()
    }

    /// Where the verified bytes are, or would be.
    pub fn path(&self, digest: &BlobDigest) -> PathBuf {
        let hex = digest.hex();
        self.0.root.join(digest.algorithm()).join(&hex[..2]).join(hex)
    }

    /// Where an unfinished fetch from an upstream is.
    pub fn partial_path(&self, digest: &BlobDigest, upstream: &str) -> PathBuf {
        self.tagged_path(digest, &upstream_tag(upstream))
    }

    fn tagged_path(&self, digest: &BlobDigest, tag: &str) -> PathBuf {
        self.path(digest).with_extension(format!("{tag}.{PARTIAL_SUFFIX}"))
    }

    /// The verified file and its size; `None` is a miss. Counts as a use.
    pub fn get(&self, digest: &BlobDigest) -> io::Result<Option<(File, u64)>> {
        match File::open(self.path(digest)) {
            Ok(file) => {
                let size = file.metadata()?.len();
                self.0.usage.used(digest, size);
                Ok(Some((file, size)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether it is certain that there is no such original. No disk is touched; "no" says nothing.
    pub fn is_surely_absent(&self, digest: &BlobDigest) -> bool {
        self.0.usage.is_scanned() && self.0.usage.get(digest).is_none()
    }

    /// Whether it is certain that there is no unfinished fetch, either.
    pub fn is_surely_new(&self, digest: &BlobDigest, upstream: &str) -> bool {
        let begun = || self.partials_known().contains(&(*digest, upstream_tag(upstream)));
        // In this order: an original is known before its partial is not.
        self.0.usage.is_scanned() && !begun() && self.is_surely_absent(digest)
    }

    /// Forgets an original.
    pub fn remove(&self, digest: &BlobDigest) -> io::Result<()> {
        ignore_missing(self.0.disk.remove(&self.path(digest)))?;
        self.moved_away(digest);
        Ok(())
    }

    /// Moves its file to another place of the same file system. Say so ([`Originals::taken`]), or put it back.
    pub fn take(&self, digest: &BlobDigest, to: &Path) -> io::Result<()> {
        self.0.disk.rename(&self.path(digest), to)
    }

    /// It was another file than was meant.
    pub fn put_back(&self, digest: &BlobDigest, from: &Path) -> io::Result<()> {
        self.0.disk.rename(from, &self.path(digest))
    }

    /// What was taken is a miss from now on, also after a crash.
    pub fn taken(&self, digest: &BlobDigest) -> io::Result<()> {
        self.moved_away(digest);
        match self.path(digest).parent() {
            Some(dir) => self.0.disk.sync_dir(dir),
            None => Ok(()),
        }
    }

    /// Its file has just been taken away from its path.
    fn moved_away(&self, digest: &BlobDigest) {
        self.0.hand.forget(digest);
        self.0.usage.remove(digest);
        // Fetched and published anew in the moment between: that one counts, and can be evicted.
        if let Ok(metadata) = fs::metadata(self.path(digest)) {
            self.0.usage.add(digest, metadata.len(), now_ms());
        }
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.0.disk
    }

    /// For a look at what is there that changes nothing, not even what a crash left.
    pub fn open_to_check(data_dir: &Path) -> Self {
        Self::below(Disk::default(), data_dir.join(DIRECTORY))
    }

    /// The directories that originals are in, sorted.
    pub fn shards(&self) -> io::Result<Vec<PathBuf>> {
        let mut out = Vec::new();
        if self.0.root.exists() {
            for algorithm in directories(&self.0.root)? {
                out.extend(directories(&algorithm)?);
            }
        }
        out.sort();
        Ok(out)
    }

    /// The originals in one of them, with their sizes, sorted.
    pub fn in_shard(&self, shard: &Path) -> io::Result<Vec<(BlobDigest, u64)>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(shard)? {
            let entry = entry?;
            let path = entry.path();
            // Those with a suffix are unfinished.
            if path.extension().is_none()
                && let Some(digest) = self.digest_of(&path)
                && let Ok(metadata) = entry.metadata()
            {
                out.push((digest, metadata.len()));
            }
        }
        out.sort();
        Ok(out)
    }

    /// An original that is served without [`Originals::get`] (its file is kept open) was used.
    pub fn used(&self, digest: &BlobDigest, size: u64) {
        self.0.usage.used(digest, size);
    }

    /// A write failed for want of space: eviction starts at once, whatever the budgets say.
    pub fn disk_full(&self) {
        self.0.bell.ring(|rung| rung.disk_full = true);
    }

    /// What is kept, and when it was used.
    pub fn usage(&self) -> &Usage {
        &self.0.usage
    }

    /// The bell of the reclaimer, which packs ring too.
    pub fn bell(&self) -> &Bell {
        &self.0.bell
    }

    /// Rings the bell whenever more than this is kept.
    pub fn set_bytes_max(&self, bytes_max: u64) {
        self.0.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// More than this is not kept for long.
    pub fn bytes_max(&self) -> u64 {
        self.0.bytes_max.load(Ordering::Relaxed)
    }

    /// An original was published. `verified`: its file, if this process knows what is in it.
    pub(super) fn published(&self, digest: &BlobDigest, bytes: u64, verified: Option<&File>) {
        self.0.usage.add(digest, bytes, now_ms());
        if let Some(metadata) = verified.and_then(|file| file.metadata().ok()) {
            self.0.usage.mark_intact(digest, metadata.ino());
        }
        if self.0.usage.bytes() > self.0.bytes_max.load(Ordering::Relaxed) {
            self.0.bell.ring(|rung| rung.over_budget = true);
        }
    }

    /// Keeps bytes that the caller has verified (manifests).
    pub fn put(&self, digest: &BlobDigest, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(digest);
        if path.exists() {
            // Whoever renamed it may not have got the name synced, and said so: then nobody counts it yet.
            if self.kept(digest).is_none() {
                self.0.disk.sync_dir(parent(&path))?;
                self.published(digest, bytes.len() as u64, None);
            }
            return Ok(());
        }
        // A name of its own: the same manifest may be kept twice at once, or be asked for as a blob.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let new = path.with_extension(format!("{}.{NEW_SUFFIX}", NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(parent(&path))?;
        let disk = &self.0.disk;
        let file = disk.create(&new)?;
        disk.write_all_at(&file, &new, bytes, 0)?;
        disk.sync(&file, &new)?;
        publish(disk, &new, &path)?;
        self.published(digest, bytes.len() as u64, Some(&file));
        Ok(())
    }

    /// The unfinished fetch of `digest` from an upstream, or an empty one. Its bytes are not verified.
    pub fn partial(&self, digest: &BlobDigest, upstream: &str) -> io::Result<Partial> {
        let tag = upstream_tag(upstream);
        let path = self.tagged_path(digest, &tag);
        self.partials_known().insert((*digest, tag));
        Partial::open(self.clone(), path, digest)
    }

    /// The size of a blob and what an unfinished fetch has left of it, if any; only looks, also while somebody goes on with it.
    pub fn left(&self, digest: &BlobDigest, upstream: &str) -> io::Result<Option<(u64, Vec<Range<u64>>)>> {
        partial::left(&self.partial_path(digest, upstream))
    }
}

/// Names of upstreams may have characters that names of files cannot.
fn upstream_tag(upstream: &str) -> String {
    hex(&Sha256::digest(upstream)[..UPSTREAM_TAG_LEN])
}

/// Rename, made durable.
pub(super) fn publish(disk: &Disk, from: &Path, to: &Path) -> io::Result<()> {
    disk.rename(from, to)?;
    disk.sync_dir(parent(to))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_is_resumed_in_the_same_boot_and_void_in_another() {
        let dir = tempfile::tempdir().unwrap();
        let digest = BlobDigest::of(b"hello world");
        let open = |boot| Originals::open_in_boot(dir.path(), Some(boot)).unwrap();

        let mut partial = open("one").partial(&digest, "u").unwrap();
        partial.set_size(11).unwrap();
        partial.write_at(b"hello world", 0).unwrap();
        partial.mark(0).unwrap();
        assert_eq!(open("one").partial(&digest, "u").unwrap().prefix(), 11);
        assert_eq!(open("one").partial(&digest, "other").unwrap().prefix(), 0);
        let partial = open("two").partial(&digest, "u").unwrap();
        assert_eq!((partial.size(), partial.prefix()), (None, 0));
    }
}
