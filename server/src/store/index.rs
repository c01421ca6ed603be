//! The index: sled, and nothing else knows that it is sled.
//!
//! In: rows. Out: rows. Invariant: every row can be rebuilt from the packs, so any doubt about the index (an error or a
//! panic of sled, another version) ends in moving it aside and replaying; doubt at run time leaves a mark for the next
//! opening. One tree, small values: a batch over it is atomic, and rows and progress cannot disagree.
//! Not here: what is written to packs, and when ([`super::packs`]).

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use headstart_layer_format::{BlobDigest, ChainId, ChunkDigest, DiffId, TocDigest};
use serde::{Deserialize, Serialize};

use super::facts::{Membership, Source, TagFact};
use super::keys;
use super::layers::LayerRecord;
use super::pack::{Location, PackId};

/// Changes when rows change shape; another version is rebuilt, never migrated.
const INDEX_VERSION: u32 = 3;
/// sled's page cache: rows are tens of bytes, so this holds the hot part of a million chunks.
const CACHE_BYTES_MAX: u64 = 64 << 20;
/// Rows that are counted before somebody else may take the index's place, or stop it.
const COUNTED_AT_ONCE: usize = 4096;
/// Exists when an operation failed: the next opening rebuilds.
const SUSPECT: &str = "index.suspect";
pub(super) const DIR: &str = "index";
const ASIDE: &str = "index.aside";

#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("{what}: {source}")]
    Sled { what: &'static str, source: sled::Error },
    #[error("{0}: the index panicked")]
    Panicked(&'static str),
    #[error("{0}: a row does not parse")]
    BadRow(&'static str),
    #[error("the index knows records that no pack has")]
    AheadOfPacks,
    #[error("the index lacks a pack that is older than others it knows")]
    LacksPack,
    #[error("there is no index")]
    Missing,
    #[error("find the latest index: {0}")]
    Settle(std::io::Error),
    #[error("compact the index: {0}")]
    Compact(std::io::Error),
    #[error("the index is marked as suspect")]
    Suspect,
    #[error("the index has version {0:?}")]
    OtherVersion(Option<u32>),
}

#[derive(Debug)]
pub struct Index {
    /// Another one after a compaction ([`super::compact`]).
    live: RwLock<Live>,
    parent: PathBuf,
    /// While a compaction runs.
    changed: Mutex<Option<Changes>>,
}

/// Keys of rows that were written since they were asked for last.
#[derive(Debug, Default)]
struct Changes {
    keys: HashSet<Vec<u8>>,
    /// There were too many, and some are not among them.
    lost: bool,
}

/// More changed rows than this are not remembered (some 10 MB): the compaction is given up, and tried again later.
const CHANGES_MAX: usize = 100_000;

#[derive(Debug)]
struct Live {
    db: sled::Db,
    dir: PathBuf,
}

/// Key and value.
pub type RawRow = (Vec<u8>, Vec<u8>);

/// One layer that a chain ID was said to end in, and the manifests that said so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainRow {
    pub layer: BlobDigest,
    pub diff_id: DiffId,
    pub manifests: Vec<BlobDigest>,
}

/// A tag, and when its fact was last written to a pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagRow {
    pub fact: TagFact,
    pub packed_unix_secs: u64,
}

/// Rows that become visible together: by key, `None` for one that goes.
#[derive(Debug, Default)]
pub struct Batch(Vec<(Vec<u8>, Option<Vec<u8>>)>);

impl Batch {
    fn insert(&mut self, key: Vec<u8>, row: Vec<u8>) {
        self.0.push((key, Some(row)));
    }

    fn remove(&mut self, key: Vec<u8>) {
        self.0.push((key, None));
    }

    pub fn chunk(&mut self, digest: &ChunkDigest, at: &Location) {
        self.insert(keys::chunk(digest), keys::location(at));
    }

    pub fn toc(&mut self, digest: &TocDigest, at: &Location) {
        self.insert(keys::toc(digest), keys::location(at));
    }

    pub fn layer(&mut self, digest: &BlobDigest, record: &LayerRecord, at: &Location) -> Result<(), IndexError> {
        let mut row = keys::location(at);
        serde_json::to_writer(&mut row, record).map_err(|_| IndexError::BadRow("write a layer"))?;
        self.insert(keys::layer(digest), row);
        Ok(())
    }

    pub fn forget_layer(&mut self, digest: &BlobDigest) {
        self.remove(keys::layer(digest));
    }

    pub fn used(&mut self, layer: &BlobDigest, unix_ms: u64) {
        self.insert(keys::used(layer), unix_ms.to_le_bytes().to_vec());
    }

    pub fn forget_used(&mut self, layer: &BlobDigest) {
        self.remove(keys::used(layer));
    }

    /// The pack has nothing any more that counts; what the index says of it is void once its file is gone.
    pub fn doom(&mut self, pack: PackId) {
        self.insert(keys::doomed(pack), Vec::new());
    }

    /// The doomed pack's file is gone.
    pub fn bury(&mut self, pack: PackId) {
        self.remove(keys::doomed(pack));
        self.remove(keys::progress(pack));
    }

    /// Everything of `pack` below `end` has its rows.
    pub fn progress(&mut self, pack: PackId, end: u64) {
        self.insert(keys::progress(pack), end.to_le_bytes().to_vec());
    }
}

impl Index {
    /// Opens what is there; the caller rebuilds on any error.
    pub fn open(parent: &Path) -> Result<Self, IndexError> {
        if parent.join(SUSPECT).exists() {
            return Err(IndexError::Suspect);
        }
        if !super::compact::settle(parent).map_err(IndexError::Settle)? {
            return Err(IndexError::Missing);
        }
        let index = Self::open_sled(parent, DIR)?;
        let version = index
            .get("read the version", keys::VERSION)?
            .and_then(|v| v.as_ref().try_into().ok().map(u32::from_le_bytes));
        if version != Some(INDEX_VERSION) {
            return Err(IndexError::OtherVersion(version));
        }
        Ok(index)
    }

    /// Moves whatever is there aside (the last one is kept, for a look) and starts an empty index.
    pub fn fresh(parent: &Path) -> std::io::Result<Result<Self, IndexError>> {
        let (dir, aside) = (parent.join(DIR), parent.join(ASIDE));
        super::compact::settle(parent)?;
        if dir.exists() {
            if aside.exists() {
                std::fs::remove_dir_all(&aside)?;
            }
            std::fs::rename(&dir, &aside)?;
        }
        match std::fs::remove_file(parent.join(SUSPECT)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(Self::open_sled(parent, DIR))
    }

    /// Copies an index that nobody uses, as it is. There may be none.
    pub fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
        if from.join(SUSPECT).exists() {
            std::fs::write(to.join(SUSPECT), b"")?;
        }
        match super::compact::latest(from)? {
            Some(latest) => copy_dir(&latest, &to.join(DIR)),
            None => Ok(()),
        }
    }

    pub(super) fn open_sled(parent: &Path, name: &str) -> Result<Self, IndexError> {
        let dir = parent.join(name);
        let config = sled::Config::new()
            .path(&dir)
            .cache_capacity(CACHE_BYTES_MAX)
            .mode(sled::Mode::HighThroughput);
        let what = "open the index";
        match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(db)) => Ok(Self {
                live: RwLock::new(Live { db, dir }),
                parent: parent.to_owned(),
                changed: Mutex::default(),
            }),
            Ok(Err(source)) => Err(IndexError::Sled { what, source }),
            Err(_) => Err(IndexError::Panicked(what)),
        }
    }

    /// Marks a rebuilt index as complete.
    pub fn seal_version(&self) -> Result<(), IndexError> {
        self.put(
            "write the version",
            keys::VERSION.to_vec(),
            &INDEX_VERSION.to_le_bytes(),
        )
    }

    fn guard<T>(&self, what: &'static str, op: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, IndexError> {
        let live = self.live();
        let error = match catch_unwind(AssertUnwindSafe(|| op(&live.db))) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(source)) => IndexError::Sled { what, source },
            Err(_) => IndexError::Panicked(what),
        };
        self.mark_suspect(&error);
        Err(error)
    }

    /// As [`Index::guard`], for what changes the rows of `keys`.
    fn change<'k, T>(
        &self,
        what: &'static str,
        keys: impl IntoIterator<Item = &'k [u8]>,
        op: impl FnOnce(&sled::Db) -> sled::Result<T>,
    ) -> Result<T, IndexError> {
        self.guard(what, |db| {
            let done = op(db);
            // After the change, and before anybody may take the index's place: a compaction that has read the old row reads
            // it again. Said before, it could be told, read the old row, and never hear of it again.
            if let Some(changed) = &mut *self.changed() {
                for key in keys {
                    if changed.keys.len() >= CHANGES_MAX {
                        (changed.keys, changed.lost) = (HashSet::new(), true);
                    }
                    if !changed.lost {
                        changed.keys.insert(key.to_vec());
                    }
                }
            }
            done
        })
    }

    fn live(&self) -> RwLockReadGuard<'_, Live> {
        // What a panic of sled leaves is distrusted by whoever caught it.
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) -> MutexGuard<'_, Option<Changes>> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn parent(&self) -> &Path {
        &self.parent
    }

    /// Bytes on the disk.
    pub fn bytes(&self) -> Result<u64, IndexError> {
        self.guard("measure the index", |db| db.size_on_disk())
    }

    /// How many rows there are, up to about `enough`. Reads as many. `None`: `go_on` said no.
    pub fn count(&self, enough: u64, go_on: &dyn Fn() -> bool) -> Result<Option<u64>, IndexError> {
        use std::ops::Bound::{Excluded, Unbounded};
        let (mut count, mut after) = (0, Vec::new());
        while count < enough {
            let step = self.guard("count rows", |db| {
                let mut seen: (u64, Option<sled::IVec>) = (0, None);
                let rows = db.range::<&[u8], _>((Excluded(&after[..]), Unbounded));
                for key in rows.keys().take(COUNTED_AT_ONCE) {
                    seen = (seen.0 + 1, Some(key?));
                }
                Ok(seen)
            })?;
            let (seen, Some(last)) = step else { break };
            count += seen;
            after = last.to_vec();
            if !go_on() {
                return Ok(None);
            }
        }
        Ok(Some(count))
    }

    /// From now on changed keys are kept; `false`: not any more.
    pub(super) fn keep_changes(&self, keep: bool) {
        // Whoever is changing something now has not told, and is waited for.
        let _nobody = self.live.write().unwrap_or_else(PoisonError::into_inner);
        *self.changed() = keep.then(Changes::default);
    }

    /// Those that were kept since they were taken last; `None`: there were too many.
    pub(super) fn take_changes(&self) -> Option<HashSet<Vec<u8>>> {
        let mut changed = self.changed();
        let changed = changed.as_mut()?;
        (!changed.lost).then(|| std::mem::take(&mut changed.keys))
    }

    pub(super) fn row(&self, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.get("look up a row", key)?.map(|row| row.to_vec()))
    }

    /// Writes or removes a row as it is.
    pub(super) fn set_row(&self, key: &[u8], row: Option<&[u8]>) -> Result<(), IndexError> {
        match row {
            Some(row) => self.put("write a row", key.to_vec(), row),
            None => self.change("remove a row", [key], |db| db.remove(key)).map(drop),
        }
    }

    /// Gives the rows of `other` to whoever comes from now on; `last` is asked while nobody comes. The directory that is of
    /// no use any more; `None`: too many rows changed at last.
    pub(super) fn replace(
        &self,
        other: Self,
        last: impl FnOnce(&Self) -> Result<(), IndexError>,
    ) -> Result<Option<PathBuf>, IndexError> {
        let mut live = self.live.write().unwrap_or_else(PoisonError::into_inner);
        let what = "copy the last rows";
        let Some(changed) = self.take_changes() else {
            return Ok(None);
        };
        for key in changed {
            let row = match catch_unwind(AssertUnwindSafe(|| live.db.get(&key))) {
                Ok(row) => row.map_err(|source| IndexError::Sled { what, source })?,
                Err(_) => return Err(IndexError::Panicked(what)),
            };
            other.set_row(&key, row.as_deref())?;
        }
        last(&other)?;
        *self.changed() = None;
        let other = other.live.into_inner().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *live, other);
        // To close it takes sled a while.
        drop(live);
        drop(old.db);
        Ok(Some(old.dir))
    }

    fn mark_suspect(&self, error: &IndexError) {
        tracing::error!(%error, "index failed; it will be rebuilt at the next start");
        if let Err(e) = std::fs::write(self.parent.join(SUSPECT), b"") {
            tracing::error!(error = %e, "failed to mark the index as suspect");
        }
    }

    fn get(&self, what: &'static str, key: &[u8]) -> Result<Option<sled::IVec>, IndexError> {
        self.guard(what, |db| db.get(key))
    }

    fn put(&self, what: &'static str, key: Vec<u8>, value: &[u8]) -> Result<(), IndexError> {
        self.change(what, [&key[..]], |db| db.insert(&key, value)).map(drop)
    }

    fn get_json<T: for<'a> Deserialize<'a>>(&self, what: &'static str, key: &[u8]) -> Result<Option<T>, IndexError> {
        let Some(row) = self.get(what, key)? else {
            return Ok(None);
        };
        match serde_json::from_slice(&row) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(self.bad_row(what)),
        }
    }

    fn put_json<T: Serialize>(&self, what: &'static str, key: Vec<u8>, value: &T) -> Result<(), IndexError> {
        let bytes = serde_json::to_vec(value).map_err(|_| IndexError::BadRow(what))?;
        self.put(what, key, &bytes)
    }

    fn bad_row(&self, what: &'static str) -> IndexError {
        let error = IndexError::BadRow(what);
        self.mark_suspect(&error);
        error
    }

    fn get_location(&self, what: &'static str, key: &[u8]) -> Result<Option<Location>, IndexError> {
        let Some(row) = self.get(what, key)? else {
            return Ok(None);
        };
        keys::location_from(&row).map(Some).ok_or_else(|| self.bad_row(what))
    }

    pub fn apply(&self, batch: Batch) -> Result<(), IndexError> {
        let keys = batch.0.iter().map(|(key, _)| &key[..]);
        self.change("write a batch", keys, |db| {
            let mut rows = sled::Batch::default();
            for (key, row) in &batch.0 {
                match row {
                    Some(row) => rows.insert(&key[..], &row[..]),
                    None => rows.remove(&key[..]),
                }
            }
            db.apply_batch(rows)
        })
    }

    /// Writes the row of a chunk; for a rebuild, which has nothing to be atomic with.
    pub fn set_chunk(&self, digest: &[u8; 32], at: &[u8; 20]) -> Result<(), IndexError> {
        let digest = ChunkDigest::from_bytes(*digest);
        self.put("write a chunk", keys::chunk(&digest), at)
    }

    /// To disk; slow.
    pub fn flush(&self) -> Result<(), IndexError> {
        self.guard("flush the index", |db| db.flush()).map(drop)
    }

    /// Up to where each pack is indexed.
    pub fn progress(&self) -> Result<Vec<(PackId, u64)>, IndexError> {
        let what = "read the progress";
        let rows = self.guard(what, |db| {
            db.scan_prefix([keys::PROGRESS]).collect::<sled::Result<Vec<_>>>()
        })?;
        rows.iter()
            .map(|(k, v)| {
                let pack = k.get(1..)?.try_into().ok().map(u32::from_be_bytes)?;
                let end = v.as_ref().try_into().ok().map(u64::from_le_bytes)?;
                Some((PackId(pack), end))
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| self.bad_row(what))
    }

    pub fn chunk(&self, d: &ChunkDigest) -> Result<Option<Location>, IndexError> {
        self.get_location("look up a chunk", &keys::chunk(d))
    }

    /// Forgets a damaged chunk, unless it has been replaced meanwhile.
    pub fn forget_chunk(&self, d: &ChunkDigest, at: &Location) -> Result<(), IndexError> {
        self.forget_if("forget a chunk", &keys::chunk(d), &keys::location(at))
    }

    /// Removes a row if it says this, in one step: a row that a commit has just replaced stays.
    fn forget_if(&self, what: &'static str, key: &[u8], row: &[u8]) -> Result<(), IndexError> {
        // Whether it was the row is nobody's concern.
        self.change(what, [key], |db| db.compare_and_swap(key, Some(row), None::<&[u8]>))
            .map(drop)
    }

    /// Forgets where a manifest's fact is, if it is said to be there.
    pub fn forget_manifest(&self, d: &BlobDigest, at: &Location) -> Result<(), IndexError> {
        self.forget_if("forget a manifest", &keys::manifest(d), &keys::location(at))
    }

    /// The same for an image's DiffIDs.
    pub fn forget_diff_ids(&self, manifest: &BlobDigest, at: &Location) -> Result<(), IndexError> {
        self.forget_if("forget DiffIDs", &keys::diff_ids(manifest), &keys::location(at))
    }

    /// Rows as they are, in order, after `after`; at most `max`.
    pub fn rows_after(&self, after: &[u8], max: usize) -> Result<Vec<RawRow>, IndexError> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.guard("list rows", |db| {
            let rows = db.range::<&[u8], _>((Excluded(after), Unbounded)).take(max);
            rows.map(|row| row.map(|(k, v)| (k.to_vec(), v.to_vec()))).collect()
        })
    }

    /// Whether a row is still what it was.
    pub fn is_row(&self, key: &[u8], row: &[u8]) -> Result<bool, IndexError> {
        Ok(self.get("look up a row", key)?.is_some_and(|now| now.as_ref() == row))
    }

    /// It was found to be wrong: the next opening rebuilds it.
    pub fn distrust(&self) {
        self.mark_suspect(&IndexError::Suspect);
    }

    pub fn toc(&self, d: &TocDigest) -> Result<Option<Location>, IndexError> {
        self.get_location("look up a TOC", &keys::toc(d))
    }

    /// Forgets a TOC that nothing needs, unless it has been written anew meanwhile.
    pub fn forget_toc_at(&self, d: &TocDigest, at: &Location) -> Result<(), IndexError> {
        self.forget_if("forget a TOC", &keys::toc(d), &keys::location(at))
    }

    /// Forgets a damaged TOC, so that the next conversion writes it again.
    pub fn forget_toc(&self, d: &TocDigest) -> Result<(), IndexError> {
        self.set_row(&keys::toc(d), None)
    }

    pub fn layer(&self, d: &BlobDigest) -> Result<Option<LayerRecord>, IndexError> {
        Ok(self.layer_row(d)?.map(|(_, record)| record))
    }

    /// A layer's state, and where its record is.
    pub fn layer_row(&self, d: &BlobDigest) -> Result<Option<(Location, LayerRecord)>, IndexError> {
        let what = "look up a layer";
        let Some(row) = self.get(what, &keys::layer(d))? else {
            return Ok(None);
        };
        layer_row(&row).map(Some).ok_or_else(|| self.bad_row(what))
    }

    /// Every layer with its state.
    pub fn layers(&self) -> Result<Vec<(BlobDigest, LayerRecord)>, IndexError> {
        self.collect("list layers", &[keys::LAYER], |key, row| {
            Some((keys::blob_from(key)?, layer_row(row)?.1))
        })
    }

    /// Every manifest that was ever served.
    pub fn manifests(&self) -> Result<Vec<BlobDigest>, IndexError> {
        self.collect("list manifests", &[keys::MANIFEST], |key, _| keys::blob_from(key))
    }

    pub fn tags(&self) -> Result<Vec<(Source, String, TagRow)>, IndexError> {
        self.collect("list tags", &[keys::TAG], |key, row| {
            let (source, tag) = keys::tag_from(key)?;
            Some((source, tag, serde_json::from_slice(row).ok()?))
        })
    }

    /// Targets of pins, whether they are pinned, and where the record is.
    pub fn pins(&self) -> Result<Vec<(Vec<u8>, bool, Location)>, IndexError> {
        self.collect("list pins", &[keys::PIN], |key, row| {
            let (pinned, at) = row.split_first()?;
            Some((key.to_vec(), *pinned == 1, keys::location_from(at)?))
        })
    }

    pub fn pin(&self, target: &[u8]) -> Result<Option<(bool, Location)>, IndexError> {
        let what = "look up a pin";
        let Some(row) = self.get(what, &keys::pin(target))? else {
            return Ok(None);
        };
        let parsed = row
            .split_first()
            .and_then(|(pinned, at)| Some((*pinned == 1, keys::location_from(at)?)));
        parsed.map(Some).ok_or_else(|| self.bad_row(what))
    }

    pub fn set_pin(&self, target: &[u8], pinned: bool, at: &Location) -> Result<(), IndexError> {
        let mut row = vec![u8::from(pinned)];
        row.extend(keys::location(at));
        self.put("write a pin", keys::pin(target), &row)
    }

    /// When a layer was last used, as far as it was written down.
    pub fn used(&self, layer: &BlobDigest) -> Result<Option<u64>, IndexError> {
        let row = self.get("look up a last use", &keys::used(layer))?;
        Ok(row.and_then(|row| row.as_ref().try_into().ok().map(u64::from_le_bytes)))
    }

    /// Packs whose files may be gone.
    pub fn doomed(&self) -> Result<Vec<PackId>, IndexError> {
        self.collect("list doomed packs", &[keys::DOOMED], |key, _| {
            Some(PackId(u32::from_be_bytes(key.try_into().ok()?)))
        })
    }

    /// Rows with this prefix; a row that does not parse is an error.
    fn collect<T>(
        &self,
        what: &'static str,
        prefix: &[u8],
        parse: impl Fn(&[u8], &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, IndexError> {
        let rows = self.guard(what, |db| {
            let rows = db.scan_prefix(prefix);
            rows.map(|row| row.map(|(k, v)| parse(k.get(prefix.len()..)?, &v)))
                .collect::<sled::Result<Option<Vec<_>>>>()
        })?;
        rows.ok_or_else(|| self.bad_row(what))
    }

    pub fn manifest(&self, d: &BlobDigest) -> Result<Option<Location>, IndexError> {
        self.get_location("look up a manifest", &keys::manifest(d))
    }

    pub fn set_manifest(&self, d: &BlobDigest, at: &Location) -> Result<(), IndexError> {
        self.put("write a manifest", keys::manifest(d), &keys::location(at))
    }

    pub fn diff_ids(&self, manifest: &BlobDigest) -> Result<Option<Location>, IndexError> {
        self.get_location("look up DiffIDs", &keys::diff_ids(manifest))
    }

    pub fn set_diff_ids(&self, manifest: &BlobDigest, at: &Location) -> Result<(), IndexError> {
        self.put("write DiffIDs", keys::diff_ids(manifest), &keys::location(at))
    }

    pub fn tag(&self, s: &Source, tag: &str) -> Result<Option<TagRow>, IndexError> {
        self.get_json("look up a tag", &keys::tag(s, tag))
    }

    pub fn set_tag(&self, s: &Source, tag: &str, row: &TagRow) -> Result<(), IndexError> {
        self.put_json("write a tag", keys::tag(s, tag), row)
    }

    /// Names of the tags of one source, at most `max`.
    pub fn tags_of(&self, s: &Source, max: usize) -> Result<Vec<String>, IndexError> {
        let (what, prefix) = ("list tags", keys::tag(s, ""));
        let rows = self.guard(what, |db| {
            let rows = db.scan_prefix(&prefix).keys().take(max);
            rows.collect::<sled::Result<Vec<_>>>()
        })?;
        rows.iter()
            .map(|k| String::from_utf8(k.get(prefix.len()..)?.to_vec()).ok())
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| self.bad_row(what))
    }

    pub fn member(&self, s: &Source, d: &BlobDigest) -> Result<Option<Membership>, IndexError> {
        let row = self.get("look up a member", &keys::member(s, d))?;
        Ok(row.map(|row| match row.is_empty() {
            true => Membership::Named,
            false => Membership::Served,
        }))
    }

    /// Membership is kept always, the way back (blob to source) for at most `sources_max` sources.
    pub fn add_member(
        &self,
        s: &Source,
        d: &BlobDigest,
        membership: Membership,
        sources_max: usize,
    ) -> Result<(), IndexError> {
        match (membership, self.member(s, d)?) {
            (Membership::Named, Some(_)) | (Membership::Served, Some(Membership::Served)) => {}
            (Membership::Named, None) => self.put("write a member", keys::member(s, d), &[])?,
            (Membership::Served, _) => self.put("write a member", keys::member(s, d), &[1])?,
        }
        if self.sources(d, sources_max)?.len() < sources_max {
            self.put("write a source", keys::source(d, s), &[])?;
        }
        Ok(())
    }

    pub fn sources(&self, d: &BlobDigest, max: usize) -> Result<Vec<Source>, IndexError> {
        let (what, prefix) = ("list sources", keys::sources(d));
        let rows = self.guard(what, |db| {
            db.scan_prefix(&prefix)
                .keys()
                .take(max)
                .collect::<sled::Result<Vec<_>>>()
        })?;
        rows.iter()
            .map(|k| keys::source_from(k.get(prefix.len()..)?))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| self.bad_row(what))
    }

    pub fn chain(&self, c: &ChainId) -> Result<Vec<ChainRow>, IndexError> {
        Ok(self.get_json("look up a chain", &keys::chain(c))?.unwrap_or_default())
    }

    /// Rows of a room that keeps its truth elsewhere.
    pub fn notes(&self) -> Result<Vec<RawRow>, IndexError> {
        self.collect("list notes", &[keys::NOTE], |key, row| {
            Some((key.to_vec(), row.to_vec()))
        })
    }

    pub fn set_note(&self, key: &[u8], row: Option<&[u8]>) -> Result<(), IndexError> {
        self.set_row(&keys::note(key), row)
    }

    pub fn set_chain(&self, c: &ChainId, rows: &[ChainRow]) -> Result<(), IndexError> {
        self.put_json("write a chain", keys::chain(c), &rows)
    }
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => copy_dir(&entry.path(), &target)?,
            false => drop(std::fs::copy(entry.path(), target)?),
        }
    }
    Ok(())
}

/// Whether this is the row of a chain.
pub(super) fn is_chain(row: &[u8]) -> bool {
    serde_json::from_slice::<Vec<ChainRow>>(row).is_ok()
}

pub(super) fn layer_row(row: &[u8]) -> Option<(Location, LayerRecord)> {
    let at = keys::location_from(row.get(..20)?)?;
    Some((at, serde_json::from_slice(row.get(20..)?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was kept before the row changed, so it could be taken, and the old row copied, before that.
    #[test]
    fn a_change_is_kept_after_the_row_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::fresh(dir.path()).unwrap().unwrap();
        index.keep_changes(true);
        let key: &[u8] = b"y1";
        let copied = index
            .change("write a row", [key], |db| {
                let row = db.get(key)?;
                let kept = index.take_changes().expect("few");
                db.insert(key, b"new")?;
                Ok((row, kept))
            })
            .unwrap();
        assert_eq!((copied.0, copied.1.len()), (None, 0));
        assert_eq!(index.take_changes().expect("one"), HashSet::from([key.to_vec()]));
    }

    #[test]
    fn changes_are_bounded_and_rows_are_counted_as_far_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::fresh(dir.path()).unwrap().unwrap();
        index.keep_changes(true);
        let rows = CHANGES_MAX as u32 + 2;
        let mut batch = Batch::default();
        for n in 0..rows {
            batch.insert([b"y", &n.to_be_bytes()[..]].concat(), Vec::new());
        }
        index.apply(batch).unwrap();
        assert_eq!(index.take_changes(), None);
        index.set_row(b"y", Some(b"")).unwrap();
        assert_eq!(index.take_changes(), None, "until they are kept anew");
        index.keep_changes(true);
        assert_eq!(index.take_changes().map(|keys| keys.len()), Some(0));

        let all = u64::from(rows) + 1;
        assert_eq!(index.count(u64::MAX, &|| true).unwrap(), Some(all));
        let some = index.count(10_000, &|| true).unwrap().unwrap();
        assert!((10_000..20_000).contains(&some), "{some}");
        assert_eq!(index.count(u64::MAX, &|| false).unwrap(), None);
    }
}
