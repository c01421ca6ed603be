//! The packs as one log: the pack being written, the sealed ones, and what has not been indexed yet.
//!
//! In: records. Out: locations, payloads. Invariant: index rows for chunks and TOCs are written only after the pack was
//! synced ([`Packs::commit`]), and in one batch with the pack's progress, so a crash never leaves a row without its
//! bytes, and an opening replays exactly what has no rows. A pack is sealed when a higher number exists.
//! Not here: the meaning of facts and layer states ([`super`], [`super::layers`]); what is moved or deleted, and when
//! ([`super::sweep`]).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use headstart_layer_format::{BlobDigest, ChunkDigest, TocDigest};

use super::hot::Hot;
use super::index::{Batch, Index};
use super::layers::LayerRecord;
use super::pack::{Location, PACK_HEADER_LEN, Pack, PackId};
use super::record::{RecordHeader, RecordKind};
use super::{StoreError, keys};

/// Open sealed packs kept: one file descriptor each.
const OPEN_PACKS_MAX: usize = 256;
/// Commit at least this often, so that dirty pages and unindexed rows stay bounded.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
const UNCOMMITTED_ROWS_MAX: usize = 2048;
/// A record may be moved while it is looked for; twice within one read is already very unlikely.
const LOOKUPS_MAX: usize = 3;

#[derive(Debug)]
pub struct Packs {
    dir: PathBuf,
    pack_size_max: u64,
    writer: Mutex<Writer>,
    /// Held for a whole commit, so that batches reach the index in log order.
    committing: Mutex<()>,
    /// Open ones. The file of a deleted pack must be closed at once, or its space is not free.
    sealed: Hot<PackId, Arc<Pack>>,
    /// Every sealed pack's length.
    lengths: Mutex<BTreeMap<PackId, u64>>,
    /// Of all packs together, the current one included.
    bytes: AtomicU64,
}

#[derive(Debug)]
struct Writer {
    pack: Arc<Pack>,
    end: u64,
    /// Appended, not committed.
    rows: Vec<Row>,
    chunks: HashMap<ChunkDigest, Location>,
    bytes: u64,
    /// Synced packs that were rolled since the last commit, with their ends.
    rolled: Vec<(PackId, u64)>,
    dirty: bool,
}

#[derive(Clone, Debug)]
enum Row {
    Chunk(ChunkDigest, Location),
    Toc(TocDigest, Location),
    Layer(BlobDigest, LayerRecord, Location),
}

impl Packs {
    /// `current` is the last pack, scanned and cut; writing goes on at its end. `sealed`: the others, with lengths.
    pub fn new(dir: &Path, pack_size_max: u64, current: Pack, end: u64, sealed: BTreeMap<PackId, u64>) -> Self {
        Self {
            dir: dir.to_owned(),
            pack_size_max,
            writer: Mutex::new(Writer {
                pack: Arc::new(current),
                end,
                rows: Vec::new(),
                chunks: HashMap::new(),
                bytes: 0,
                rolled: Vec::new(),
                dirty: false,
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

    /// Taken before the writer's lock.
    fn committing(&self) -> MutexGuard<'_, ()> {
        self.committing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, w: &mut Writer, kind: RecordKind, key: &[u8], raw: u32, payload: &[u8]) -> io::Result<Location> {
        let header = RecordHeader::new(kind, key, raw, payload)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "record too large"))?;
        let len = header.record_len();
        if w.end > PACK_HEADER_LEN && w.end + len > self.pack_size_max {
            self.roll(w)?;
        }
        let location = w.pack.write_record(w.end, &header, payload)?;
        w.end += len;
        w.bytes += len;
        w.dirty = true;
        self.bytes.fetch_add(len, Ordering::Relaxed);
        Ok(location)
    }

    /// Seals the current pack and begins the next.
    fn roll(&self, w: &mut Writer) -> io::Result<()> {
        w.pack.sync()?;
        let next = Pack::create(&self.dir, PackId(w.pack.id.0 + 1))?;
        w.rolled.push((w.pack.id, w.end));
        self.lengths().insert(w.pack.id, w.end);
        self.sealed
            .keep(self.sealed.ticket(), w.pack.id, Arc::clone(&w.pack), 1);
        w.pack = Arc::new(next);
        w.end = PACK_HEADER_LEN;
        w.dirty = true;
        self.bytes.fetch_add(PACK_HEADER_LEN, Ordering::Relaxed);
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

    /// Deletes the file of a sealed pack that nothing points into any more. Whoever has it open reads on.
    pub fn delete(&self, id: PackId) -> io::Result<()> {
        match std::fs::remove_file(id.path(&self.dir)) {
            // Lost, and read through the open file only.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.gone(id)
    }

    /// A pack's name is gone from the directory.
    fn gone(&self, id: PackId) -> io::Result<()> {
        std::fs::File::open(&self.dir)?.sync_all()?;
        self.sealed.forget(&id);
        if let Some(len) = self.lengths().remove(&id) {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes a chunk's record once more, at the end of the log; its row follows with the next commit.
    pub fn move_chunk(&self, digest: &ChunkDigest, raw_len: u32, frame: &[u8]) -> Result<(), StoreError> {
        let mut w = self.writer();
        let at = self
            .append(&mut w, RecordKind::Chunk, digest.as_bytes(), raw_len, frame)
            .map_err(StoreError::io("move a chunk"))?;
        w.rows.push(Row::Chunk(*digest, at));
        Ok(())
    }

    /// The same for a layer's state, if the one at `from` is still the latest.
    pub fn move_layer(&self, index: &Index, layer: &BlobDigest, from: &Location) -> Result<bool, StoreError> {
        // A commit under way has rows that neither the writer nor the index shows: a later state may be among them, and
        // must not be overtaken.
        let _order = self.committing();
        let mut w = self.writer();
        if w.rows.iter().any(|row| matches!(row, Row::Layer(l, ..) if l == layer)) {
            return Ok(false);
        }
        let Some((at, record)) = index.layer_row(layer)?.filter(|(at, _)| at == from) else {
            return Ok(false);
        };
        debug_assert_eq!(at, *from);
        let payload = serde_json::to_vec(&record).map_err(|_| StoreError::Encode)?;
        let at = self
            .append(&mut w, RecordKind::LayerState, &keys::blob(layer), 0, &payload)
            .map_err(StoreError::io("move a layer state"))?;
        w.rows.push(Row::Layer(*layer, record, at));
        Ok(true)
    }

    /// The same for a fact, if `still` (asked while nothing else can be appended) says that it counts.
    pub fn move_fact(
        &self,
        payload: &[u8],
        still: impl FnOnce() -> Result<bool, StoreError>,
        index: impl FnOnce(Location) -> Result<(), StoreError>,
    ) -> Result<bool, StoreError> {
        let mut w = self.writer();
        if !still()? {
            return Ok(false);
        }
        let at = self
            .append(&mut w, RecordKind::Fact, &[], 0, payload)
            .map_err(StoreError::io("move a fact"))?;
        index(at)?;
        Ok(true)
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
        let known = match w.chunks.get(digest) {
            Some(at) => Some(*at),
            None => index.chunk(digest)?,
        };
        if let Some(at) = known {
            return Ok((at, false));
        }
        let at = self
            .append(&mut w, RecordKind::Chunk, digest.as_bytes(), raw_len, frame)
            .map_err(StoreError::io("write a chunk"))?;
        w.rows.push(Row::Chunk(*digest, at));
        w.chunks.insert(*digest, at);
        let full = w.bytes >= UNCOMMITTED_BYTES_MAX || w.rows.len() >= UNCOMMITTED_ROWS_MAX;
        drop(w);
        if full {
            self.commit(index)?;
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
        if let Some(at) = self.writer().chunks.get(digest) {
            return Ok(Some(*at));
        }
        Ok(index.chunk(digest)?)
    }

    /// Syncs what was appended so far, then indexes it. Afterwards it survives anything.
    pub fn commit(&self, index: &Index) -> Result<(), StoreError> {
        let _order = self.committing();
        let (pack, end, rows, rolled) = {
            let mut w = self.writer();
            if !w.dirty {
                return Ok(());
            }
            w.dirty = false;
            w.bytes = 0;
            let (rows, rolled) = (std::mem::take(&mut w.rows), std::mem::take(&mut w.rolled));
            (Arc::clone(&w.pack), w.end, rows, rolled)
        };
        let outcome = self.commit_rows(index, &pack, end, &rows, &rolled);
        let mut w = self.writer();
        if outcome.is_ok() {
            for row in &rows {
                if let Row::Chunk(digest, at) = row
                    && w.chunks.get(digest) == Some(at)
                {
                    w.chunks.remove(digest);
                }
            }
        } else {
            // Nothing was published; the next commit tries all of it again.
            w.dirty = true;
            w.rows.splice(0..0, rows);
            w.rolled.splice(0..0, rolled);
        }
        outcome
    }

    fn commit_rows(
        &self,
        index: &Index,
        pack: &Pack,
        end: u64,
        rows: &[Row],
        rolled: &[(PackId, u64)],
    ) -> Result<(), StoreError> {
        pack.sync().map_err(StoreError::io("sync a pack"))?;
        let mut batch = Batch::default();
        for row in rows {
            match row {
                Row::Chunk(digest, at) => batch.chunk(digest, at),
                Row::Toc(digest, at) => batch.toc(digest, at),
                Row::Layer(digest, record, at) => batch.layer(digest, record, at)?,
            }
        }
        for (pack, end) in rolled {
            batch.progress(*pack, *end);
        }
        batch.progress(pack.id, end);
        Ok(index.apply(batch)?)
    }

    /// An open pack; `None`: it has no valid header.
    pub fn pack(&self, id: PackId) -> io::Result<Option<Arc<Pack>>> {
        let current = Arc::clone(&self.writer().pack);
        if current.id == id {
            return Ok(Some(current));
        }
        if let Some(pack) = self.sealed.get(&id) {
            return Ok(Some(pack));
        }
        // Before the file is opened: one that is deleted meanwhile is not kept open.
        let ticket = self.sealed.ticket();
        let Some(pack) = Pack::open(&self.dir, id)? else {
            return Ok(None);
        };
        let pack = Arc::new(pack);
        self.sealed.keep(ticket, id, Arc::clone(&pack), 1);
        Ok(Some(pack))
    }

    /// The pack's file opened anew: what is on the disk now, whatever was read of it before. `Ok(None)`: its header is
    /// damaged.
    pub fn open_anew(&self, id: PackId) -> io::Result<Option<Pack>> {
        Pack::open(&self.dir, id)
    }

    /// Files that are named like packs and are not in use: their headers could not be read.
    pub fn strangers(&self) -> io::Result<Vec<PackId>> {
        let mut out = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            out.extend(entry?.file_name().to_str().and_then(PackId::from_file_name));
        }
        // Asked afterwards: a pack that is new since is in use by now, and one that was swept is no file any more.
        out.sort();
        let (current, _) = self.current();
        let lengths = self.lengths();
        // The last one with less than a header was being made when a process was killed: an opening makes it anew.
        let is_strange = |id: &PackId| {
            let there = std::fs::metadata(id.path(&self.dir));
            there.is_ok_and(|m| *id < current || m.len() >= PACK_HEADER_LEN)
        };
        out.retain(|id| *id != current && !lengths.contains_key(id) && is_strange(id));
        Ok(out)
    }

    /// Moves the file of a pack, of which nothing can be read, out of the way; it may be gone already.
    pub fn set_aside(&self, id: PackId, to: &Path) -> io::Result<()> {
        match std::fs::rename(id.path(&self.dir), to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.gone(id)
    }

    /// The payload of the record that `locate` finds. A pack may be swept between the look-up and the read, so a miss
    /// looks once more. `Err(at)`: the record there is damaged or gone.
    pub fn read_located(
        &self,
        kind: RecordKind,
        key: &[u8],
        locate: impl Fn() -> Result<Option<Location>, StoreError>,
    ) -> Result<Option<Result<Bytes, Location>>, StoreError> {
        let mut last = None;
        for _ in 0..LOOKUPS_MAX {
            let Some(at) = locate()? else { return Ok(None) };
            if last == Some(at) {
                break;
            }
            if let Some(payload) = self.read(at, kind, key) {
                return Ok(Some(Ok(payload)));
            }
            last = Some(at);
        }
        Ok(last.map(Err))
    }

    /// The verified payload; `None` when the record is damaged, gone or unreadable, which are all the same to a caller.
    pub fn read(&self, at: Location, kind: RecordKind, key: &[u8]) -> Option<Bytes> {
        let read = || match self.pack(at.pack)? {
            Some(pack) => pack.read(at, kind, key),
            None => Ok(None),
        };
        read().unwrap_or_else(|error| {
            // Swept since the location was looked up: the caller looks it up again.
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(%error, pack = at.pack.0, offset = at.offset, "failed to read a record");
            }
            None
        })
    }
}
