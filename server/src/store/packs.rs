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

use super::disk::Disk;
use super::hot::Hot;
use super::index::{Batch, Index};
use super::layers::LayerRecord;
use super::learned::index_fact;
use super::pack::{Location, PACK_HEADER_LEN, Pack, PackId};
use super::record::{RecordHeader, RecordKind};
use super::recover::scan;
use super::seal::{Draft, RECORDS_MAX};
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
    disk: Disk,
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
    /// Records of the pack that were appended since it was opened.
    footer: Draft,
    /// Those before; `None` while nobody has looked: then the pack is sealed without a footer.
    footer_before: Option<Draft>,
    /// Where they end.
    opened_at: u64,
    /// Up to where the pack was synced.
    synced: u64,
    /// The pack is not rolled while there are any.
    suspects: Vec<Suspect>,
}

/// A pack of which a sync failed. The kernel forgets what it could not write, and the next sync succeeds: nothing of the
/// pack from `from` on may be believed to be on the disk, although it can be read for now.
#[derive(Clone, Debug)]
struct Suspect {
    pack: Arc<Pack>,
    from: u64,
}

#[derive(Clone, Debug)]
enum Row {
    Chunk(ChunkDigest, Location),
    Toc(TocDigest, Location),
    Layer(BlobDigest, LayerRecord, Location),
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
        Self {
            disk,
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
                footer: Draft::default(),
                footer_before: (end == PACK_HEADER_LEN).then(Draft::default),
                opened_at: end,
                synced: end,
                suspects: Vec::new(),
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
            let pack = Arc::clone(&w.pack);
            w.suspects.push(Suspect { pack, from: w.synced });
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
        w.end = PACK_HEADER_LEN;
        w.synced = PACK_HEADER_LEN;
        w.footer = Draft::default();
        w.footer_before = Some(Draft::default());
        w.dirty = true;
        Ok(())
    }

    /// Writes everything that a suspect pack may have lost once more, into another.
    fn salvage(&self, index: &Index, w: &mut Writer, suspect: &Suspect) -> Result<(), StoreError> {
        let Suspect { pack, from } = suspect;
        let failed = StoreError::io;
        let end = match w.pack.id == pack.id {
            true => {
                let end = w.end;
                self.begin_next(w, *from).map_err(failed("begin another pack"))?;
                end
            }
            false => pack.file_len()?,
        };
        let mut moved = HashMap::new();
        let scanned = scan(pack, *from, end, true, |found| {
            let (header, at) = (found.header, found.location);
            if header.kind == RecordKind::Footer {
                return Ok(());
            }
            let Some(payload) = pack.read(at, header.kind, &header.key)? else {
                return Ok(());
            };
            let to = self
                .append(w, header.kind, &header.key, header.raw_len, &payload)
                .map_err(failed("write a record once more"))?;
            if let (RecordKind::Fact, Ok(fact)) = (header.kind, serde_json::from_slice(&payload)) {
                index_fact(index, &fact, to)?;
            }
            moved.insert(at.offset, to);
            Ok::<_, StoreError>(())
        })?;
        tracing::error!(
            pack = pack.id.0,
            from,
            records = moved.len(),
            damaged = scanned.damaged,
            "a pack could not be synced; what it may have lost is written once more"
        );
        let moves = |at: &mut Location| match at.pack == pack.id && at.offset >= *from {
            true => moved.get(&at.offset).map(|to| *at = *to).is_some(),
            false => true,
        };
        w.rows.retain_mut(|row| match row {
            Row::Chunk(_, at) | Row::Toc(_, at) | Row::Layer(_, _, at) => moves(at),
        });
        w.chunks.retain(|_, at| moves(at));
        w.rolled
            .iter_mut()
            .filter(|(id, _)| *id == pack.id)
            .for_each(|(_, end)| *end = *from);
        if let Some(before) = self.lengths().insert(pack.id, *from) {
            self.bytes.fetch_sub(before.saturating_sub(*from), Ordering::Relaxed);
        }
        // Records that are there twice harm nobody.
        if let Err(error) = pack.truncate(*from) {
            tracing::warn!(pack = pack.id.0, %error, "a pack that could not be synced is not cut");
        }
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

    /// Whether no other pack is older, nor one that cannot be read at the moment.
    pub fn is_oldest(&self, id: PackId) -> io::Result<bool> {
        let first = self.lengths().keys().next().copied();
        Ok(first == Some(id) && self.strangers()?.iter().all(|stranger| *stranger > id))
    }

    /// Says that a pack is doomed, and in the same step forgets those of `states` that are still in it.
    pub fn doom(&self, index: &Index, id: PackId, states: &[BlobDigest]) -> Result<(), StoreError> {
        // A later state, whose row is on its way, comes before or after this.
        let _order = self.committing();
        let mut batch = Batch::default();
        batch.doom(id);
        for layer in states {
            if index.layer_row(layer)?.is_some_and(|(at, _)| at.pack == id) {
                batch.forget_layer(layer);
            }
        }
        Ok(index.apply(batch)?)
    }

    /// Deletes the file of a sealed pack that nothing points into any more. Whoever has it open reads on.
    pub fn delete(&self, id: PackId) -> io::Result<()> {
        match self.disk.remove(&id.path(&self.dir)) {
            // Lost, and read through the open file only.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.gone(id)
    }

    /// A pack's name is gone from the directory.
    fn gone(&self, id: PackId) -> io::Result<()> {
        self.disk.sync_dir(&self.dir)?;
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
        let (pack, synced, end, rows, rolled) = {
            let mut w = self.writer();
            while let Some(suspect) = w.suspects.first().cloned() {
                self.salvage(index, &mut w, &suspect)?;
                w.suspects.remove(0);
            }
            if !w.dirty {
                return Ok(());
            }
            w.dirty = false;
            w.bytes = 0;
            let (rows, rolled) = (std::mem::take(&mut w.rows), std::mem::take(&mut w.rolled));
            (Arc::clone(&w.pack), w.synced, w.end, rows, rolled)
        };
        let is_synced = pack.sync().map_err(StoreError::io("sync a pack"));
        let failed = is_synced.is_err();
        let outcome = is_synced.and_then(|()| self.commit_rows(index, &pack, end, &rows, &rolled));
        let mut w = self.writer();
        if failed {
            let pack = Arc::clone(&pack);
            w.suspects.push(Suspect { pack, from: synced });
        } else if w.pack.id == pack.id {
            w.synced = end;
        }
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
        let Some(pack) = Pack::open(&self.disk, &self.dir, id)? else {
            return Ok(None);
        };
        let pack = Arc::new(pack);
        self.sealed.keep(ticket, id, Arc::clone(&pack), 1);
        Ok(Some(pack))
    }

    /// The pack's file opened anew: what is on the disk now, whatever was read of it before. `Ok(None)`: its header is
    /// damaged.
    pub fn open_anew(&self, id: PackId) -> io::Result<Option<Pack>> {
        Pack::open(&self.disk, &self.dir, id)
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
        // A later one than the current is made anew by the next roll.
        out.retain(|id| *id < current && !lengths.contains_key(id));
        Ok(out)
    }

    /// Moves the file of a sealed pack, of which nothing can be read, out of the way; it may be gone already.
    pub fn set_aside(&self, id: PackId, to: &Path) -> io::Result<()> {
        match self.disk.rename(&id.path(&self.dir), to) {
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
            if let Some(payload) = self.read(at, kind, key)? {
                return Ok(Some(Ok(payload)));
            }
            last = Some(at);
        }
        Ok(last.map(Err))
    }

    /// The verified payload; `None` when the record is damaged or gone. An error says nothing about the record.
    pub fn read(&self, at: Location, kind: RecordKind, key: &[u8]) -> io::Result<Option<Bytes>> {
        self.in_pack(at.pack, |pack| pack.read(at, kind, key))
    }

    /// As [`Packs::read`], of records of one pack that lie one behind the other.
    pub fn read_run(&self, kind: RecordKind, run: &[(Location, &[u8])]) -> io::Result<Vec<Option<Bytes>>> {
        let Some((first, _)) = run.first() else {
            return Ok(Vec::new());
        };
        let read = self.in_pack(first.pack, |pack| pack.read_run(kind, run).map(Some))?;
        Ok(read.unwrap_or_default())
    }

    /// Whether the header of exactly this record is there; as [`Packs::read`].
    pub fn is_header(&self, at: Location, kind: RecordKind, key: &[u8]) -> io::Result<bool> {
        let header = self.in_pack(at.pack, |pack| pack.header(at, kind, key))?;
        Ok(header.is_some())
    }

    fn in_pack<T>(&self, id: PackId, read: impl Fn(&Pack) -> io::Result<Option<T>>) -> io::Result<Option<T>> {
        match self.pack(id) {
            Ok(Some(pack)) => read(&pack),
            Ok(None) => Ok(None),
            // Swept since the location was looked up: the caller looks it up again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}
