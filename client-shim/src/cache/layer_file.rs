//! One layer's bytes on this node: a sparse file in data space and the bitmap of what is in it.
//!
//! In: verified chunks. Out: a file, and what of it is here, now and after a restart.
//! Invariant: the bitmap on disk claims only bytes that were made durable before it was written, so after kill -9 or power loss
//! it may say too little, never too much.
//! Not here: reading (`cache/reads.rs`), fetching (`cache/reader.rs` asks for what is missing), giving room back (`cache/evict.rs`), whether the layer as
//! a whole is what it should be (`cache/diff_id.rs`).

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use headstart_layer_format::TocDigest;
use headstart_layer_format::toc::{Chunk, ChunkTable};

use super::bitmap::{self, ChunkBitmap};
use super::config::LazyConfig;
use super::marks::{self, Mark};
use super::meta;
use super::room::Room;
use crate::atomic_file;
use crate::contents::Contents;
use crate::fetch::{ChunkSink, VerifiedChunk};

pub(super) const DATA: &str = "data";
pub(super) const BITMAP: &str = "bitmap";
const IMAGE: &str = "erofs";
const TREE: &str = "tree";

/// Tells the files of this process apart.
static NEXT_ID: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub struct LayerFile {
    pub(super) id: u32,
    pub(super) dir: PathBuf,
    pub(super) data: File,
    contents: Arc<Contents>,
    pub(super) bitmap: ChunkBitmap,
    /// Chunks were put since the last flush.
    dirty: AtomicBool,
    /// The directory is new, and not durable yet.
    fresh: AtomicBool,
    /// Read-locked from a look at the bitmap until the bytes it speaks of were read, and from a chunk's write until its bit
    /// is set; write-locked where bits are cleared. Inside: chunks whose bytes are about to be punched out.
    pub(super) stable: RwLock<Range<u32>>,
    /// Held while the bitmap is written. True once the directory is being removed, or left to another process: from then on
    /// its name may belong to a successor, which must not inherit our claims, nor have bytes go that it claims.
    pub(super) retired: Mutex<bool>,
    /// The whole gave the DiffID.
    pub(super) verified: AtomicBool,
    /// The whole gave another.
    pub(super) quarantined: AtomicBool,
    /// The kernel reads the file by itself.
    pub(super) lent: AtomicBool,
    /// How often claims were taken back.
    pub(super) evictions: AtomicU64,
    /// Where the next eviction begins.
    pub(super) hand: AtomicU32,
    /// Seconds since the epoch.
    pub(super) used: AtomicU64,
    pub(super) room: Arc<Room>,
}

impl LayerFile {
    /// A file alone on its node, as tests have it.
    pub fn open(dir: &Path, contents: Arc<Contents>) -> io::Result<Self> {
        let config = LazyConfig {
            free_bytes_min: 0,
            ..LazyConfig::default()
        };
        let room = Room::new(dir, &config, Arc::default());
        Self::open_in(dir, contents, room)
    }

    /// In a directory that was made just now. The directory is made durable by the first flush.
    pub(super) fn create_in(dir: &Path, contents: Arc<Contents>, room: Arc<Room>) -> io::Result<Self> {
        let data = open_data(dir)?;
        data.set_len(contents.chunks().data_size())?;
        let bitmap = ChunkBitmap::new(contents.chunks().len());
        let new = Self::with(dir, contents, room, data, bitmap);
        new.fresh.store(true, Ordering::Release);
        Ok(new)
    }

    /// Opens what is there, or starts empty. Anything damaged is started over: a miss, not an error.
    pub fn open_in(dir: &Path, contents: Arc<Contents>, room: Arc<Room>) -> io::Result<Self> {
        let (chunks, toc_digest) = (contents.chunks(), contents.toc_digest());
        let (data_size, len) = (chunks.data_size(), chunks.len());
        let mut data = open_data(dir)?;
        // A file of another length is not the one the bitmap speaks of.
        let intact = data.metadata()?.len() == data_size;
        let bitmap = match durable(dir, toc_digest, len) {
            Some(bitmap) if intact => bitmap,
            _ => {
                // First the claim goes, then the bytes: a crash in between must not leave a claim on holes.
                match std::fs::remove_file(dir.join(BITMAP)) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => atomic_file::sync_dir(dir)?,
                }
                // Another file, and not this one emptied: somebody may have it mounted, and all of it may be right.
                std::fs::remove_file(dir.join(DATA))?;
                // That one is what the kernel has, not the next.
                marks::forget_lent(dir)?;
                data = open_data(dir)?;
                data.set_len(data_size)?;
                ChunkBitmap::new(len)
            }
        };
        Ok(Self::with(dir, contents, room, data, bitmap))
    }

    fn with(dir: &Path, contents: Arc<Contents>, room: Arc<Room>, data: File, bitmap: ChunkBitmap) -> Self {
        let toc_digest = contents.toc_digest();
        let is_lent = marks::is_lent(dir);
        if is_lent {
            room.was_lent(contents.chunks().data_size());
        }
        // Its last use is not kept; when it last grew is about when.
        let grew = std::fs::metadata(dir.join(BITMAP)).map_or(0, |m| m.mtime().max(0).cast_unsigned());
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            data,
            bitmap,
            dirty: AtomicBool::new(false),
            fresh: AtomicBool::new(false),
            stable: RwLock::new(0..0),
            retired: Mutex::new(false),
            verified: AtomicBool::new(Mark::Verified.is_set(dir, toc_digest)),
            quarantined: AtomicBool::new(Mark::Quarantined.is_set(dir, toc_digest)),
            lent: AtomicBool::new(is_lent),
            evictions: AtomicU64::new(0),
            hand: AtomicU32::new(0),
            used: AtomicU64::new(grew),
            dir: dir.to_owned(),
            contents,
            room,
        }
    }

    /// Others may find chunks here.
    pub fn announce(self: &Arc<Self>) {
        let file: Weak<Self> = Arc::downgrade(self);
        self.room.index.add_file(self.id, file);
        for chunk in self.chunks().iter().filter(|c| self.bitmap.get(c.index)) {
            self.room.index.add(&chunk.digest, self.id, chunk.index);
        }
    }

    pub fn contents(&self) -> &Arc<Contents> {
        &self.contents
    }

    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Where the data space is cut.
    pub fn chunks(&self) -> &ChunkTable {
        self.contents.chunks()
    }

    /// When something of it was last read here, in seconds since the epoch.
    pub fn last_used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether a chunk is in the file.
    pub fn is_kept(&self, index: u32) -> bool {
        self.bitmap.get(index)
    }

    /// Whether all bytes are here and in the file.
    pub fn is_full(&self) -> bool {
        self.chunk_count() == self.chunks().len()
    }

    /// Whether all bytes gave the layer's DiffID.
    pub fn is_verified(&self) -> bool {
        self.verified.load(Ordering::Acquire)
    }

    /// Whether they gave another: nothing of it is read any more.
    pub fn is_quarantined(&self) -> bool {
        self.quarantined.load(Ordering::Acquire)
    }

    /// Whether the kernel may be reading the file by itself.
    pub fn is_lent(&self) -> bool {
        self.lent.load(Ordering::Acquire)
    }

    /// Chunks that are here.
    pub fn chunk_count(&self) -> u32 {
        self.bitmap.count()
    }

    /// Bytes that the data file takes on disk.
    pub fn disk_bytes(&self) -> u64 {
        self.data.metadata().map_or(0, |m| m.blocks() * 512)
    }

    /// Whether every chunk is here and durable, and the whole is what the image says.
    pub fn is_whole(&self) -> bool {
        self.is_settled(&self.retired.lock().unwrap_or_else(|p| p.into_inner()))
    }

    /// With the lock no flush and no eviction is under way, so what is not dirty is durable, and stays.
    pub(super) fn is_settled(&self, retired: &bool) -> bool {
        let is_sure = self.is_verified() && !self.is_quarantined();
        !retired && is_sure && !self.dirty.load(Ordering::Acquire) && self.is_full()
    }

    /// Where the layer's EROFS image goes.
    pub fn image(&self) -> PathBuf {
        self.dir.join(IMAGE)
    }

    /// Where the layer's tree goes, for the FUSE mount.
    pub fn tree(&self) -> PathBuf {
        self.dir.join(TREE)
    }

    /// Makes what says what this file is durable, once. The claim comes after it: it would be of no layer.
    fn settle(&self) -> io::Result<()> {
        if !self.fresh.load(Ordering::Acquire) {
            return Ok(());
        }
        self.contents.settle()?;
        atomic_file::settle(&self.dir, meta::FILE)?;
        atomic_file::sync_dir(&self.dir)?;
        if let Some(parent) = self.dir.parent() {
            atomic_file::sync_dir(parent)?;
        }
        self.fresh.store(false, Ordering::Release);
        Ok(())
    }

    /// Makes everything put so far durable, then claims it. Cheap when nothing was put.
    pub fn flush(&self) -> io::Result<()> {
        let retired = self.retired.lock().unwrap_or_else(|p| p.into_inner());
        if *retired {
            return Ok(());
        }
        self.settle()?;
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        // The claim is taken before the sync: every bit in it was set after its bytes were written.
        let claim = self.bitmap.encode(self.contents.toc_digest());
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
        let _nobody_puts = self.stable.write().unwrap_or_else(|p| p.into_inner());
        self.bitmap.keep_only(&self.durable());
    }

    /// Makes what is here durable; from then on a successor may have the directory, so no claim is made and none taken back.
    /// Returns when nobody is at it any more. Reads still work.
    pub fn close(&self) -> io::Result<()> {
        let flushed = self.flush();
        *self.retired.lock().unwrap_or_else(|p| p.into_inner()) = true;
        flushed
    }

    /// The directory is about to go; nothing is written to it any more. Reads of the open file still work.
    pub fn retire(&self) {
        let mut retired = self.retired.lock().unwrap_or_else(|p| p.into_inner());
        *retired = true;
        // Once: what is retired is not lent again. A mount that is still in use has the rest of its time on nobody's account.
        if self.lent.swap(false, Ordering::AcqRel) {
            self.room.returned(self.chunks().data_size());
        }
        drop(retired);
        self.room.index.forget(self.id);
        self.room.transit.forget(self.id);
    }
}

impl ChunkSink for LayerFile {
    fn has(&self, index: u32) -> bool {
        self.bitmap.get(index) || self.room.transit.has(&(self.id, index))
    }

    fn put(&self, chunk: VerifiedChunk) -> io::Result<()> {
        let place = *chunk.chunk();
        self.keep(&place, chunk.bytes(), || {
            self.data.write_all_at(chunk.bytes(), place.range.start.0)
        })
    }

    fn is_near(&self, index: u32) -> bool {
        self.is_near_by(index)
    }

    fn take_near(&self, index: u32) -> bool {
        self.take_near_by(index)
    }
}

impl LayerFile {
    /// Writes a chunk whose bytes were verified, if there is room; else they are here for a moment.
    pub(super) fn keep(&self, chunk: &Chunk, bytes: &[u8], write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let going = self.stable.read().unwrap_or_else(|p| p.into_inner());
        if self.bitmap.get(chunk.index) {
            return Ok(());
        }
        let pass_on = || {
            self.room.counters.unkept_chunks.add(1);
            self.room.transit.put((self.id, chunk.index), bytes);
        };
        // What is written where a hole is about to be would be in the hole.
        let place = match going.contains(&chunk.index) {
            true => None,
            false => self.room.admit(chunk.range.len),
        };
        let Some(place) = place else {
            pass_on();
            return Ok(());
        };
        match write() {
            Ok(()) => {}
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                self.room.refused();
                pass_on();
                return Ok(());
            }
            Err(e) => return Err(e),
        }
        self.bitmap.set(chunk.index);
        self.dirty.store(true, Ordering::Release);
        place.taken();
        self.room.index.add(&chunk.digest, self.id, chunk.index);
        Ok(())
    }

    /// What the disk claims; nothing when there is no claim, or a damaged one.
    pub(super) fn durable(&self) -> ChunkBitmap {
        let len = self.chunks().len();
        durable(&self.dir, self.contents.toc_digest(), len).unwrap_or_else(|| ChunkBitmap::new(len))
    }
}

fn open_data(dir: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join(DATA))
}

/// The claim on disk; `None` when there is none, or a damaged one.
fn durable(dir: &Path, toc: &TocDigest, len: u32) -> Option<ChunkBitmap> {
    let bytes = atomic_file::read_bounded(&dir.join(BITMAP), bitmap::FILE_SIZE_MAX).ok()?;
    ChunkBitmap::decode(&bytes, toc, len)
}

pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs())
}
