//! One layer's bytes on this node: a sparse file in data space and the bitmap of what is in it.
//!
//! In: verified chunks. Out: ranges of the data space whose chunks are all here.
//! Invariant: bytes are read only where the bitmap says so; the bitmap on disk claims only bytes that were made durable
//! before it was written, so after kill -9 or power loss it may say too little, never too much.
//! Not here: fetching (`cache/reader.rs` asks for what is missing).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use headstart_layer_format::toc::ChunkTable;
use headstart_layer_format::{LayerRange, Toc, TocDigest};

use super::atomic_file;
use super::bitmap::{self, ChunkBitmap};
use crate::fetch::{ChunkSink, VerifiedChunk};

const DATA: &str = "data";
const BITMAP: &str = "bitmap";
const IMAGE: &str = "erofs";

#[derive(Debug)]
pub struct LayerFile {
    dir: PathBuf,
    data: File,
    toc: Arc<Toc>,
    toc_digest: TocDigest,
    bitmap: ChunkBitmap,
    /// Chunks were put since the last flush.
    dirty: AtomicBool,
    /// Read-locked from a chunk's write until its bit is set.
    putting: RwLock<()>,
    /// Held while the bitmap is written. True once the directory is being removed: from then on its name may belong to
    /// a successor, which must not inherit our claims.
    retired: Mutex<bool>,
}

impl LayerFile {
    /// Opens what is there, or starts empty. Anything damaged is started over: a miss, not an error.
    pub fn open(dir: &Path, toc: Arc<Toc>, toc_digest: TocDigest) -> io::Result<Self> {
        let data_size = toc.chunks().data_size();
        let mut data = open_data(dir)?;
        let len = toc.chunks().len();
        // A file of another length is not the one the bitmap speaks of.
        let intact = data.metadata()?.len() == data_size;
        let bitmap = match durable(dir, &toc_digest, len) {
            Some(bitmap) if intact => bitmap,
            _ => {
                // First the claim goes, then the bytes: a crash in between must not leave a claim on holes.
                match std::fs::remove_file(dir.join(BITMAP)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => atomic_file::sync_dir(dir)?,
                }
                // Another file, and not this one emptied: somebody may have it mounted, and all of it may be right.
                std::fs::remove_file(dir.join(DATA))?;
                data = open_data(dir)?;
                data.set_len(data_size)?;
                ChunkBitmap::new(len)
            }
        };
        Ok(Self {
            dir: dir.to_owned(),
            data,
            toc,
            toc_digest,
            bitmap,
            dirty: AtomicBool::new(false),
            putting: RwLock::new(()),
            retired: Mutex::new(false),
        })
    }

    /// Where the data space is cut.
    pub fn chunks(&self) -> &ChunkTable {
        self.toc.chunks()
    }

    /// Whether every chunk of `range` is here.
    pub fn covers(&self, range: LayerRange) -> bool {
        self.chunks().covering(range).all(|i| self.bitmap.get(i))
    }

    /// Fills `out` from `range`, or says false when a chunk is missing.
    pub fn read(&self, range: LayerRange, out: &mut [u8]) -> io::Result<bool> {
        if range.len != out.len() as u64 || range.end().0 > self.chunks().data_size() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a range outside the data space",
            ));
        }
        if !self.covers(range) {
            return Ok(false);
        }
        self.data.read_exact_at(out, range.start.0)?;
        Ok(true)
    }

    /// Chunks that are here.
    pub fn chunk_count(&self) -> u32 {
        self.bitmap.count()
    }

    /// Bytes that the data file takes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.data.metadata().map_or(0, |m| m.blocks() * 512)
    }

    /// The data space as a file that needs nobody to read it: if every chunk is here and durable.
    pub fn whole(&self) -> Option<PathBuf> {
        // With the lock no flush is under way, so what is not dirty is durable.
        let retired = self.retired.lock().unwrap_or_else(|p| p.into_inner());
        let whole = !*retired && !self.dirty.load(Ordering::Acquire) && self.chunk_count() == self.chunks().len();
        whole.then(|| self.dir.join(DATA))
    }

    /// Where the layer's EROFS image goes.
    pub fn image(&self) -> PathBuf {
        self.dir.join(IMAGE)
    }

    /// Makes everything put so far durable, then claims it. Cheap when nothing was put.
    pub fn flush(&self) -> io::Result<()> {
        let retired = self.retired.lock().unwrap_or_else(|p| p.into_inner());
        if *retired || !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        // The claim is taken before the sync: every bit in it was set after its bytes were written.
        let claim = self.bitmap.encode(&self.toc_digest);
        if let Err(error) = self.data.sync_data() {
            self.distrust();
            return Err(error);
        }
        let done = atomic_file::replace(&self.dir, BITMAP, &claim);
        if done.is_err() {
            self.dirty.store(true, Ordering::Release);
        }
        done
    }

    /// A sync failed. The kernel says so once and then takes the pages for clean: the next sync would succeed, and what
    /// was never written would read as zeros when the page cache lets it go. So only what was durable before is still
    /// here; the rest is fetched again.
    fn distrust(&self) {
        let _nobody_puts = self.putting.write().unwrap_or_else(|p| p.into_inner());
        let before = durable(&self.dir, &self.toc_digest, self.chunks().len());
        self.bitmap
            .keep_only(&before.unwrap_or_else(|| ChunkBitmap::new(self.chunks().len())));
    }

    /// The directory is about to go; nothing is written to it any more. Reads of the open file still work.
    pub fn retire(&self) {
        *self.retired.lock().unwrap_or_else(|p| p.into_inner()) = true;
    }
}

impl ChunkSink for LayerFile {
    fn has(&self, index: u32) -> bool {
        self.bitmap.get(index)
    }

    fn put(&self, chunk: VerifiedChunk) -> io::Result<()> {
        let _putting = self.putting.read().unwrap_or_else(|p| p.into_inner());
        self.data.write_all_at(chunk.bytes(), chunk.chunk().range.start.0)?;
        self.bitmap.set(chunk.chunk().index);
        self.dirty.store(true, Ordering::Release);
        Ok(())
    }
}

/// The claim on disk; `None` when there is none, or a damaged one.
fn open_data(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join(DATA))
}

fn durable(dir: &Path, toc: &TocDigest, len: u32) -> Option<ChunkBitmap> {
    let bytes = atomic_file::read_bounded(&dir.join(BITMAP), bitmap::FILE_SIZE_MAX).ok()?;
    ChunkBitmap::decode(&bytes, toc, len)
}
