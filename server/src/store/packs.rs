//! The packs as one log: the pack being written, the sealed ones, and what has not been indexed yet.
//!
//! In: records. Out: locations, payloads. Invariant: index rows for chunks and TOCs are written only after the pack was
//! synced ([`Packs::commit`]), and in one batch with the pack's progress, so a crash never leaves a row without its
//! bytes, and an opening replays exactly what has no rows. A pack is sealed when a higher number exists. Readers never
//! wait for whoever writes, who may be sealing a pack: what they need of the one being written is in [`Fresh`].
//! Here is the writing half: appending and rolling. Committing is in [`commit`], reading in [`reading`], moving and
//! deleting in [`moving`], a pack whose sync failed in [`salvage`].
//! Not here: the meaning of facts and layer states ([`super`], [`super::layers`]); what is moved or deleted, and when
//! ([`super::sweep`]).

mod commit;
mod moving;
mod reading;
mod salvage;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use headstart_layer_format::{BlobDigest, ChunkDigest, TocDigest};

use super::disk::Disk;
use super::hot::Hot;
use super::index::Index;
use super::layers::LayerRecord;
use super::pack::{Location, PACK_HEADER_LEN, Pack, PackId};
use super::record::{RecordHeader, RecordKind};
use super::recover::scan;
use super::seal::{Draft, RECORDS_MAX};
use super::{StoreError, keys};
pub use moving::Alone;
use salvage::Suspect;

/// Open sealed packs kept: one file descriptor each.
const OPEN_PACKS_MAX: usize = 256;
/// Commit at least this often, so that dirty pages and unindexed rows stay bounded.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
const UNCOMMITTED_ROWS_MAX: usize = 2048;
/// The disk is given so much at a time while a conversion goes on, so that its commit does not wait for all of it.
const AHEAD_BYTES: u64 = 4 << 20;
/// The last, unfinished one is left: it is written to next, which waits while it goes to the disk.
const PAGE: u64 = 4096;

#[derive(Debug)]
pub struct Packs {
    disk: Disk,
    dir: PathBuf,
    pack_size_max: u64,
    writer: Mutex<Writer>,
    /// Changed with the writer's lock held, for a moment.
    fresh: RwLock<Fresh>,
    /// Held for a whole commit, so that batches reach the index in log order.
    committing: Mutex<()>,
    /// Open ones. The file of a deleted pack must be closed at once, or its space is not free.
    sealed: Hot<PackId, Arc<Pack>>,
    /// Every sealed pack's length.
    lengths: Mutex<BTreeMap<PackId, u64>>,
    /// Of all packs together, the current one included.
    bytes: AtomicU64,
}

/// What is not in the index, or not in the list of sealed packs.
#[derive(Debug)]
struct Fresh {
    pack: Arc<Pack>,
    /// Appended, not committed.
    chunks: HashMap<ChunkDigest, Location>,
}

#[derive(Debug)]
struct Writer {
    pack: Arc<Pack>,
    end: u64,
    /// Appended, not committed.
    rows: Vec<Row>,
    bytes: u64,
    /// Synced packs that were rolled since the last commit, with their ends.
    rolled: Vec<(PackId, u64)>,
    dirty: bool,
    /// Records of the pack that were appended since it was opened.
    footer: Draft,
    /// Those before; `None` while nobody has looked: then the pack is sealed without a footer.
    footer_before: Option<Draft>,
    /// Where they end.
    opened_at: u64,
    /// Up to where the pack was synced.
    synced: u64,
    /// Up to where the disk was given it, synced or not.
    given: u64,
    /// The pack is not rolled while there are any.
    suspects: Vec<Suspect>,
}

#[derive(Clone, Debug)]
enum Row {
    Chunk(ChunkDigest, Location),
    Toc(TocDigest, Location),
    Layer(BlobDigest, LayerRecord, Location),
}

impl Writer {
    /// What the disk may begin with, when it is enough; each byte once.
    fn ahead(&mut self) -> Option<(Arc<Pack>, Range<u64>)> {
        let from = self.given.max(self.synced);
        let to = self.end / PAGE * PAGE;
        if to < from.saturating_add(AHEAD_BYTES) {
            return None;
        }
        self.given = to;
        Some((Arc::clone(&self.pack), from..to))
    }
}

impl Packs {
    /// `current` is the last pack, scanned and cut; writing goes on at its end. `sealed`: the others, with lengths.
    pub fn new(
        disk: Disk,
        dir: &Path,
        pack_size_max: u64,
        current: Pack,
        end: u64,
        sealed: BTreeMap<PackId, u64>,
    ) -> Self {
        let current = Arc::new(current);
        Self {
            disk,
            dir: dir.to_owned(),
            pack_size_max,
            writer: Mutex::new(Writer {
                pack: Arc::clone(&current),
                end,
                rows: Vec::new(),
                bytes: 0,
                rolled: Vec::new(),
                dirty: false,
                footer: Draft::default(),
                footer_before: (end == PACK_HEADER_LEN).then(Draft::default),
                opened_at: end,
                synced: end,
                given: end,
                suspects: Vec::new(),
            }),
            fresh: RwLock::new(Fresh {
                pack: current,
                chunks: HashMap::new(),
            }),
            committing: Mutex::new(()),
            sealed: Hot::new(OPEN_PACKS_MAX),
            bytes: AtomicU64::new(sealed.values().sum::<u64>() + end),
            lengths: Mutex::new(sealed),
        }
    }

    /// A panic elsewhere cannot leave the writer half-changed: `end` moves last.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whole changes only.
    fn fresh(&self) -> RwLockReadGuard<'_, Fresh> {
        self.fresh.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn fresh_mut(&self) -> RwLockWriteGuard<'_, Fresh> {
        self.fresh.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Taken before the writer's lock.
    fn committing(&self) -> MutexGuard<'_, ()> {
        self.committing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, w: &mut Writer, kind: RecordKind, key: &[u8], raw: u32, payload: &[u8]) -> io::Result<Location> {
        let header = RecordHeader::new(kind, key, raw, payload)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "record too large"))?;
        let len = header.record_len();
        let full = w.end + len > self.pack_size_max || w.footer.count() >= RECORDS_MAX;
        if w.end > PACK_HEADER_LEN && full && w.suspects.is_empty() {
            self.roll(w)?;
        }
        let location = w.pack.write_record(w.end, &header, payload)?;
        w.footer.add(&header, w.end);
        w.end += len;
        w.bytes += len;
        w.dirty = true;
        self.bytes.fetch_add(len, Ordering::Relaxed);
        Ok(location)
    }

    /// Seals the current pack and begins the next.
    fn roll(&self, w: &mut Writer) -> io::Result<()> {
        // What a failed write left beyond the end is not to be found in a sealed pack.
        if w.pack.file_len()? > w.end {
            w.pack.truncate(w.end)?;
        }
        // Written again if something fails below: the end is where it was.
        let end = w.end + self.write_footer(w)?;
        if let Err(error) = w.pack.sync() {
            let suspect = Suspect::new(Arc::clone(&w.pack), w.synced);
            w.suspects.push(suspect);
            return Err(error);
        }
        self.begin_next(w, end)
    }

    /// Begins the next pack; the current one is sealed, `end` bytes long.
    fn begin_next(&self, w: &mut Writer, end: u64) -> io::Result<()> {
        let next = Pack::create(&self.disk, &self.dir, PackId(w.pack.id.0 + 1))?;
        self.bytes.fetch_add(end + PACK_HEADER_LEN, Ordering::Relaxed);
        self.bytes.fetch_sub(w.end, Ordering::Relaxed);
        w.rolled.push((w.pack.id, end));
        self.lengths().insert(w.pack.id, end);
        self.sealed
            .keep(self.sealed.ticket(), w.pack.id, Arc::clone(&w.pack), 1);
        w.pack = Arc::new(next);
        self.fresh_mut().pack = Arc::clone(&w.pack);
        w.end = PACK_HEADER_LEN;
        w.synced = PACK_HEADER_LEN;
        w.given = PACK_HEADER_LEN;
        w.footer = Draft::default();
        w.footer_before = Some(Draft::default());
        w.dirty = true;
        Ok(())
    }

    /// Its length; 0 if there is none.
    fn write_footer(&self, w: &Writer) -> io::Result<u64> {
        let Some(mut draft) = w.footer_before.clone() else {
            return Ok(0);
        };
        draft.append(w.footer.clone());
        let Some(payload) = draft.finish(w.end) else {
            return Ok(0);
        };
        let Some(header) = RecordHeader::new(RecordKind::Footer, &[], 0, &payload) else {
            return Ok(0);
        };
        w.pack.write_record(w.end, &header, &payload)?;
        Ok(header.record_len())
    }

    /// Reads what was in the current pack when it was opened, so that it gets a footer.
    pub fn recall_current(&self) -> io::Result<()> {
        let (pack, until) = {
            let w = self.writer();
            if w.footer_before.is_some() {
                return Ok(());
            }
            (Arc::clone(&w.pack), w.opened_at)
        };
        let mut draft = Draft::default();
        scan(&pack, PACK_HEADER_LEN, until, false, |found| {
            draft.add(&found.header, found.location.offset);
            Ok::<_, io::Error>(())
        })?;
        let mut w = self.writer();
        // Else it was sealed without.
        if w.pack.id == pack.id {
            w.footer_before = Some(draft);
        }
        Ok(())
    }

    /// Seals the current pack, so that it can be swept; one without a record stays.
    pub fn seal_current(&self) -> Result<(), StoreError> {
        let mut w = self.writer();
        if w.end > PACK_HEADER_LEN {
            self.roll(&mut w).map_err(StoreError::io("roll a pack"))?;
        }
        Ok(())
    }

    fn lengths(&self) -> MutexGuard<'_, BTreeMap<PackId, u64>> {
        self.lengths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all packs.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn pack_size_max(&self) -> u64 {
        self.pack_size_max
    }

    /// Sealed packs and their lengths.
    pub fn sealed(&self) -> Vec<(PackId, u64)> {
        self.lengths().iter().map(|(id, len)| (*id, *len)).collect()
    }

    /// The pack being written and its end.
    pub fn current(&self) -> (PackId, u64) {
        let w = self.writer();
        (w.pack.id, w.end)
    }

    /// Appends a chunk unless it is there already. Returns its location, and whether it was new.
    pub fn append_chunk(
        &self,
        index: &Index,
        digest: &ChunkDigest,
        raw_len: u32,
        frame: &[u8],
    ) -> Result<(Location, bool), StoreError> {
        let mut w = self.writer();
        if let Some(at) = self.chunk(index, digest)? {
            return Ok((at, false));
        }
        let at = self
            .append(&mut w, RecordKind::Chunk, digest.as_bytes(), raw_len, frame)
            .map_err(StoreError::io("write a chunk"))?;
        w.rows.push(Row::Chunk(*digest, at));
        self.fresh_mut().chunks.insert(*digest, at);
        let full = w.bytes >= UNCOMMITTED_BYTES_MAX || w.rows.len() >= UNCOMMITTED_ROWS_MAX;
        let ahead = w.ahead();
        drop(w);
        if full {
            self.commit(index)?;
        } else if let Some((pack, range)) = ahead {
            pack.start_writing(range.start, range.end);
        }
        Ok((at, true))
    }

    pub fn append_toc(&self, digest: &TocDigest, encoded: &[u8]) -> Result<Location, StoreError> {
        let mut w = self.writer();
        let at = self
            .append(&mut w, RecordKind::Toc, digest.as_bytes(), 0, encoded)
            .map_err(StoreError::io("write a TOC"))?;
        w.rows.push(Row::Toc(*digest, at));
        Ok(at)
    }

    pub fn append_layer(&self, layer: &BlobDigest, record: &LayerRecord) -> Result<(), StoreError> {
        let payload = serde_json::to_vec(record).map_err(|_| StoreError::Encode)?;
        let mut w = self.writer();
        let at = self
            .append(&mut w, RecordKind::LayerState, &keys::blob(layer), 0, &payload)
            .map_err(StoreError::io("write a layer state"))?;
        w.rows.push(Row::Layer(*layer, record.clone(), at));
        Ok(())
    }

    /// Appends a fact and runs `index` (its rows) before any later record can be committed. Facts need no sync first:
    /// a row whose record was lost with the power is still true.
    pub fn append_fact(
        &self,
        payload: &[u8],
        index: impl FnOnce(Location) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut w = self.writer();
        let at = self
            .append(&mut w, RecordKind::Fact, &[], 0, payload)
            .map_err(StoreError::io("write a fact"))?;
        index(at)
    }

    /// Where a chunk is, committed or not.
    pub fn chunk(&self, index: &Index, digest: &ChunkDigest) -> Result<Option<Location>, StoreError> {
        let fresh = self.fresh().chunks.get(digest).copied();
        match fresh {
            Some(at) => Ok(Some(at)),
            // It is there before it is fresh no more.
            None => Ok(index.chunk(digest)?),
        }
    }
}

#[cfg(test)]
mod tests;
