//! The packs as one log: the pack being written, the sealed ones, and what has not been indexed yet.
//!
//! In: records. Out: locations, payloads. Invariant: index rows for chunks and TOCs are written only after the pack was
//! synced ([`Packs::commit`]), and in one batch with the pack's progress, so a crash never leaves a row without its
//! bytes, and an opening replays exactly what has no rows. A pack is sealed when a higher number exists.
//! Not here: the meaning of facts and layer states ([`super`], [`super::layers`]).

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use headstart_layer_format::{BlobDigest, ChunkDigest, TocDigest};

use super::index::{Batch, Index};
use super::layers::LayerRecord;
use super::pack::{Location, PACK_HEADER_LEN, Pack, PackId};
use super::record::{RecordHeader, RecordKind};
use super::{StoreError, keys};

/// Open sealed packs kept: one file descriptor each.
const OPEN_PACKS_MAX: u64 = 256;
/// Commit at least this often, so that dirty pages and unindexed rows stay bounded.
const UNCOMMITTED_BYTES_MAX: u64 = 64 << 20;
const UNCOMMITTED_ROWS_MAX: usize = 2048;

#[derive(Debug)]
pub struct Packs {
    dir: PathBuf,
    pack_size_max: u64,
    writer: Mutex<Writer>,
    /// Held for a whole commit, so that batches reach the index in log order.
    committing: Mutex<()>,
    sealed: moka::sync::Cache<PackId, Arc<Pack>>,
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
    Layer(BlobDigest, LayerRecord),
}

impl Packs {
    /// `current` is the last pack, scanned and cut; writing goes on at its end.
    pub fn new(dir: &Path, pack_size_max: u64, current: Pack, end: u64) -> Self {
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
            sealed: moka::sync::Cache::new(OPEN_PACKS_MAX),
        }
    }

    /// A panic elsewhere cannot leave the writer half-changed: `end` moves last.
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, w: &mut Writer, kind: RecordKind, key: &[u8], raw: u32, payload: &[u8]) -> io::Result<Location> {
        let header = RecordHeader::new(kind, key, raw, payload)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "record too large"))?;
        let len = header.record_len();
        if w.end > PACK_HEADER_LEN && w.end + len > self.pack_size_max {
            w.pack.sync()?;
            let next = Pack::create(&self.dir, PackId(w.pack.id.0 + 1))?;
            w.rolled.push((w.pack.id, w.end));
            self.sealed.insert(w.pack.id, Arc::clone(&w.pack));
            w.pack = Arc::new(next);
            w.end = PACK_HEADER_LEN;
        }
        let location = w.pack.write_record(w.end, &header, payload)?;
        w.end += len;
        w.bytes += len;
        w.dirty = true;
        Ok(location)
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
        self.append(&mut w, RecordKind::LayerState, &keys::blob(layer), 0, &payload)
            .map_err(StoreError::io("write a layer state"))?;
        w.rows.push(Row::Layer(*layer, record.clone()));
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
        let _order = self.committing.lock().unwrap_or_else(PoisonError::into_inner);
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
                Row::Layer(digest, record) => batch.layer(digest, record)?,
            }
        }
        for (pack, end) in rolled {
            batch.progress(*pack, *end);
        }
        batch.progress(pack.id, end);
        Ok(index.apply(batch)?)
    }

    fn pack(&self, id: PackId) -> io::Result<Option<Arc<Pack>>> {
        let current = Arc::clone(&self.writer().pack);
        if current.id == id {
            return Ok(Some(current));
        }
        if let Some(pack) = self.sealed.get(&id) {
            return Ok(Some(pack));
        }
        let Some(pack) = Pack::open(&self.dir, id)? else {
            return Ok(None);
        };
        let pack = Arc::new(pack);
        self.sealed.insert(id, Arc::clone(&pack));
        Ok(Some(pack))
    }

    /// The verified payload; `None` when the record is damaged, gone or unreadable, which are all the same to a caller.
    pub fn read(&self, at: Location, kind: RecordKind, key: &[u8]) -> Option<Bytes> {
        let read = || match self.pack(at.pack)? {
            Some(pack) => pack.read(at, kind, key),
            None => Ok(None),
        };
        read().unwrap_or_else(|error| {
            tracing::warn!(%error, pack = at.pack.0, offset = at.offset, "failed to read a record");
            None
        })
    }
}
