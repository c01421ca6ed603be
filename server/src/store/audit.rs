//! Looking everything in the store over: each record against its checks, each row against its record.
//!
//! In: the packs and the index, beside whatever else goes on. Out: [`Finding`]s, in the order of the log.
//! Invariant: only what counts is a finding. A damaged record that no row points at any more is garbage; and what was
//! moved, evicted or written anew while it was looked at is looked up once more before it is called damaged. Nothing
//! here changes anything.
//! Not here: what is done about it ([`super::mend`]), pace and order ([`crate::scrub`]).

use std::collections::HashMap;
use std::io;

use headstart_layer_format::{BlobDigest, ChunkDigest, Toc, TocDigest};

use super::index::{TagRow, layer_row, member_row};
use super::layers::LayerRecord;
use super::learned::Fact;
use super::pack::{Location, PACK_HEADER_LEN, Pack, PackId};
use super::pins::PinTarget;
use super::record::RecordKind;
use super::recover::{Found, Seen, scan_all};
use super::{Store, StoreError, keys};

/// What a pack says last of each layer, by key: whether it is ready.
type LastStates = HashMap<Vec<u8>, bool>;

/// Rows read from the index at a time.
const ROWS_A_STEP: usize = 512;

/// What is wrong, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub subject: Subject,
    pub why: &'static str,
}

/// What a finding is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    Chunk(ChunkDigest, Location),
    Toc(TocDigest, Location),
    /// The record of a layer's state.
    State(BlobDigest, Location),
    /// The record of a manifest.
    Manifest(BlobDigest, Location),
    /// The record of an image's DiffIDs.
    DiffIds(BlobDigest, Location),
    /// The record of a pin: the target, and whether it is pinned.
    Pin(PinTarget, bool),
    /// A ready layer that lacks something.
    Layer(BlobDigest),
    /// Bytes in which no record can be read.
    Stretch {
        pack: PackId,
        from: u64,
        to: u64,
    },
    /// A pack as a whole.
    Pack(PackId),
    /// A row that is wrong or not there, by its key.
    Row(Vec<u8>),
}

/// How an audit goes on; whoever runs it may pause there.
#[derive(Debug)]
pub enum Audited {
    Record { bytes: u64 },
    Row { bytes: u64 },
    Found(Finding),
}

/// Asked at each step whether to go on.
pub type Step<'a> = &'a mut dyn FnMut(Audited) -> bool;

enum Stop {
    Asked,
    Failed(StoreError),
}

impl<E: Into<StoreError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn ended<T>(outcome: Result<T, Stop>) -> Result<Option<T>, StoreError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Stop::Asked) => Ok(None),
        Err(Stop::Failed(error)) => Err(error),
    }
}

fn go_on(step: Step<'_>, at: Audited) -> Result<(), Stop> {
    if step(at) { Ok(()) } else { Err(Stop::Asked) }
}

fn find(step: Step<'_>, subject: Subject, why: &'static str) -> Result<(), Stop> {
    go_on(step, Audited::Found(Finding { subject, why }))
}

impl Store {
    /// Every pack, and up to where all of it has its rows.
    pub fn audit_packs(&self) -> Result<Vec<(PackId, u64)>, StoreError> {
        // Lengths first: what is appended meanwhile is not looked at. The current one before the others: it may be sealed
        // in between, and is then there twice.
        let mut packs = vec![self.current_pack()];
        packs.extend(self.sealed_packs());
        self.commit()?;
        packs.sort_unstable();
        packs.dedup_by_key(|(id, _)| *id);
        packs.retain(|(_, len)| *len > PACK_HEADER_LEN);
        Ok(packs)
    }

    /// Files in the place of packs that no opening could read.
    pub fn audit_strangers(&self) -> Result<Vec<Finding>, StoreError> {
        let mut strangers = self.inner.packs.strangers().map_err(StoreError::io("list the packs"))?;
        // A sweep was killed before it could delete them: the next opening does.
        let doomed = self.inner.index.doomed()?;
        strangers.retain(|id| !doomed.contains(id));
        let why = "its header is damaged, and nothing in it can be read";
        let finding = |id| Finding {
            subject: Subject::Pack(id),
            why,
        };
        Ok(strangers.into_iter().map(finding).collect())
    }

    /// Reads a pack from its beginning to `len`. `None`: it was told to stop, or the pack has been swept meanwhile.
    pub fn audit_pack(&self, id: PackId, len: u64, step: Step<'_>) -> Result<Option<()>, StoreError> {
        ended(self.audit_pack_until(id, len, step))
    }

    fn is_swept(&self, id: PackId) -> Result<bool, StoreError> {
        Ok(self.inner.index.doomed()?.contains(&id) || !self.is_in_use(id))
    }

    fn is_in_use(&self, id: PackId) -> bool {
        self.current_pack().0 == id || self.sealed_packs().iter().any(|(sealed, _)| *sealed == id)
    }

    fn audit_pack_until(&self, id: PackId, len: u64, step: Step<'_>) -> Result<(), Stop> {
        let pack = match self.inner.packs.open_anew(id) {
            Ok(Some(pack)) => pack,
            Ok(None) => return find(step, Subject::Pack(id), "its header is damaged"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Swept, or lost. A sweep says so before it deletes, and takes that back after nothing uses the pack: in
                // this order, one of the two looks sees it.
                return match !self.is_swept(id)? {
                    true => find(step, Subject::Pack(id), "its file is gone"),
                    false => Ok(()),
                };
            }
            Err(error) => return Err(error.into()),
        };
        let mut states = None;
        scan_all(&pack, PACK_HEADER_LEN, len, false, |seen| {
            let bytes = match seen {
                Seen::Lost(range) => {
                    let (from, to) = (range.start, range.end);
                    // What was swept while we looked has been cut by nobody: it would still be whole. This is damage.
                    find(
                        step,
                        Subject::Stretch { pack: id, from, to },
                        "no record can be read here",
                    )?;
                    to - from
                }
                Seen::Whole(found) => {
                    if let Some((subject, why)) = self.audit_record(&pack, len, &found, &mut states)? {
                        find(step, subject, why)?;
                    }
                    found.header.record_len()
                }
            };
            go_on(step, Audited::Record { bytes })
        })
        .map(drop)
    }

    /// What is wrong with a record whose header is whole, if it counts.
    fn audit_record(
        &self,
        pack: &Pack,
        len: u64,
        found: &Found,
        states: &mut Option<LastStates>,
    ) -> Result<Option<(Subject, &'static str)>, Stop> {
        let (header, at, index) = (&found.header, found.location, &self.inner.index);
        match header.kind {
            RecordKind::Chunk => {
                let Ok(key) = <[u8; 32]>::try_from(header.key.as_slice()) else {
                    return Ok(None);
                };
                let digest = ChunkDigest::from_bytes(key);
                let why = match pack.read(at, header.kind, &header.key)? {
                    None => "its bytes cannot be read or do not have their CRC",
                    Some(frame) if !is_chunk(&digest, at.raw_len, &frame) => "its frame is not what its digest names",
                    Some(_) => return Ok(None),
                };
                let counts = index.chunk(&digest)? == Some(at);
                Ok(counts.then_some((Subject::Chunk(digest, at), why)))
            }
            RecordKind::Toc => {
                let Ok(key) = <[u8; 32]>::try_from(header.key.as_slice()) else {
                    return Ok(None);
                };
                let digest = TocDigest::from_bytes(key);
                let why = match pack.read(at, header.kind, &header.key)? {
                    None => "its bytes cannot be read or do not have their CRC",
                    Some(bytes) if Toc::digest(&bytes) != digest => "it is not what its digest names",
                    Some(bytes) if Toc::decode(&bytes).is_err() => "it does not decode",
                    Some(_) => return Ok(None),
                };
                let counts = index.toc(&digest)? == Some(at);
                Ok(counts.then_some((Subject::Toc(digest, at), why)))
            }
            RecordKind::LayerState => {
                let key = keys::blob_from(&header.key);
                let known = match &key {
                    Some(layer) if index.layer_row(layer)?.is_none() => {
                        // The oldest pack takes with it what it says last of layers that are not ready.
                        let last = match states {
                            Some(last) => last,
                            None => states.insert(last_states(pack, len)?),
                        };
                        // And what was swept before it says nothing any more, though it may be read here still.
                        !last.get(&header.key).copied().unwrap_or_default() || self.is_swept(pack.id)?
                    }
                    _ => true,
                };
                Ok((!known).then(|| (Subject::Row(header.key.clone()), "the index lacks a layer's state")))
            }
            RecordKind::Fact => {
                // One that does not parse may be a later version's.
                let fact = serde_json::from_slice::<Fact>(&found.payload).ok();
                let Some(fact) = fact else { return Ok(None) };
                // What was swept before says nothing any more, though it may be read here still.
                let lacking = match self.lacking_row(&fact)? {
                    Some(_) if self.is_swept(pack.id)? => None,
                    lacking => lacking,
                };
                Ok(lacking.map(|key| (Subject::Row(key), "the index lacks a fact")))
            }
            RecordKind::Footer => {
                let (from, to) = (at.offset, at.offset + header.record_len());
                // Elsewhere than at the end it is what a crash left, and means nothing.
                if to != len || pack.contents(len)?.is_some() {
                    return Ok(None);
                }
                let stretch = Subject::Stretch {
                    pack: at.pack,
                    from,
                    to,
                };
                Ok(Some((stretch, "it is no footer of its pack")))
            }
        }
    }

    /// The key of a row that the fact, or a later one, must have written, and that is not there.
    fn lacking_row(&self, fact: &Fact) -> Result<Option<Vec<u8>>, StoreError> {
        let index = &self.inner.index;
        // All but pins may have been forgotten, and their records are not swept yet.
        if !matches!(fact, Fact::Pin { .. }) && index.is_forgetting()? {
            return Ok(None);
        }
        let lacking = |there: bool, key: Vec<u8>| (!there).then_some(key);
        Ok(match fact {
            // Rows of the next two are dropped when their record is damaged, so their want says nothing.
            Fact::Config { .. } => None,
            // Nor does what takes rows away.
            Fact::Untagged { .. } | Fact::Pin { pinned: false, .. } => None,
            Fact::Manifest(m) => lacking(
                index.member(&m.source, &m.digest)?.is_some(),
                keys::member(&m.source, &m.digest),
            ),
            Fact::Tag { source, tag, .. } => lacking(index.tag(source, tag)?.is_some(), keys::tag(source, tag)),
            Fact::Member { source, digest } => {
                lacking(index.member(source, digest)?.is_some(), keys::member(source, digest))
            }
            Fact::Members { source, digests } => {
                for digest in digests {
                    if index.member(source, digest)?.is_none() {
                        return Ok(Some(keys::member(source, digest)));
                    }
                }
                None
            }
            Fact::Pin { target, .. } => lacking(index.pin(&target.key())?.is_some(), keys::pin(&target.key())),
        })
    }

    /// Looks every row of the index over. `None`: it was told to stop.
    pub fn audit_index(&self, step: Step<'_>) -> Result<Option<()>, StoreError> {
        ended(self.audit_index_until(step))
    }

    fn audit_index_until(&self, step: Step<'_>) -> Result<(), Stop> {
        let mut after = Vec::new();
        loop {
            let rows = self.inner.index.rows_after(&after, ROWS_A_STEP)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            after.clone_from(last);
            for (key, row) in rows {
                let bytes = (key.len() + row.len()) as u64;
                if let Some((subject, why)) = self.audit_row(&key, &row)?
                    // Moved, evicted or forgotten since it was read: what is there now is right, or seen the next time.
                    && self.inner.index.is_row(&key, &row)?
                {
                    find(step, subject, why)?;
                }
                go_on(step, Audited::Row { bytes })?;
            }
        }
    }

    /// What is wrong with a row. Chunks and TOCs were read with their packs: here their headers are enough.
    fn audit_row(&self, key: &[u8], row: &[u8]) -> Result<Option<(Subject, &'static str)>, StoreError> {
        const GONE: &str = "its record is damaged or gone";
        let strange = || Ok(Some((Subject::Row(key.to_vec()), "a row does not parse")));
        let Some((kind, rest)) = key.split_first() else {
            return strange();
        };
        let at = keys::location_from(row);
        let packs = &self.inner.packs;
        Ok(match *kind {
            keys::CHUNK => match (rest.try_into().map(ChunkDigest::from_bytes), at) {
                (Ok(digest), Some(at)) => {
                    let whole = packs.is_header(at, RecordKind::Chunk, rest)?;
                    (!whole).then_some((Subject::Chunk(digest, at), GONE))
                }
                _ => return strange(),
            },
            keys::TOC => match (rest.try_into().map(TocDigest::from_bytes), at) {
                (Ok(digest), Some(at)) => {
                    let whole = packs.is_header(at, RecordKind::Toc, rest)?;
                    (!whole).then_some((Subject::Toc(digest, at), GONE))
                }
                _ => return strange(),
            },
            keys::LAYER => match (keys::blob_from(rest), layer_row(row)) {
                (Some(layer), Some((at, record))) => {
                    if packs.read(at, RecordKind::LayerState, rest)?.is_none() {
                        return Ok(Some((Subject::State(layer, at), GONE)));
                    }
                    self.audit_layer(&layer, &record)?
                }
                _ => return strange(),
            },
            keys::MANIFEST => match (keys::blob_from(rest), at) {
                (Some(digest), Some(at)) => {
                    let whole = matches!(self.fact_at(&at)?, Some(Fact::Manifest(m)) if m.digest == digest);
                    (!whole).then_some((Subject::Manifest(digest, at), GONE))
                }
                _ => return strange(),
            },
            keys::DIFF_IDS => match (keys::blob_from(rest), at) {
                (Some(digest), Some(at)) => {
                    let whole = matches!(self.fact_at(&at)?, Some(Fact::Config { manifest, .. }) if manifest == digest);
                    (!whole).then_some((Subject::DiffIds(digest, at), GONE))
                }
                _ => return strange(),
            },
            keys::PIN => {
                let target = serde_json::from_slice::<PinTarget>(rest).ok();
                let parsed = row
                    .split_first()
                    .and_then(|(pinned, at)| Some((*pinned == 1, keys::location_from(at)?)));
                match (target, parsed) {
                    (Some(target), Some((pinned, at))) => {
                        let whole = matches!(self.fact_at(&at)?, Some(Fact::Pin { target: t, pinned: p }) if t == target && p == pinned);
                        (!whole).then_some((Subject::Pin(target, pinned), GONE))
                    }
                    _ => return strange(),
                }
            }
            keys::TAG if keys::tag_from(rest).is_some() && serde_json::from_slice::<TagRow>(row).is_ok() => None,
            keys::MEMBER if keys::member_from(rest).is_some() && member_row(row).is_some() => None,
            keys::SOURCE if keys::blob_source_from(rest).is_some() => None,
            keys::CHAIN if rest.len() == 32 && super::index::is_chain(row) => None,
            keys::USED if keys::blob_from(rest).is_some() && row.len() == 8 => None,
            keys::PROGRESS if rest.len() == 4 && row.len() == 8 => None,
            keys::DOOMED if rest.len() == 4 => None,
            // Whoever wrote it compares it with its objects at every start.
            keys::NOTE => None,
            _ if key == keys::VERSION || key == keys::FORGETTING => None,
            _ => return strange(),
        })
    }

    /// Whether a ready layer has its TOC and every chunk. What is there was read with its pack.
    fn audit_layer(
        &self,
        layer: &BlobDigest,
        record: &LayerRecord,
    ) -> Result<Option<(Subject, &'static str)>, StoreError> {
        let LayerRecord::Ready { toc, .. } = record else {
            return Ok(None);
        };
        let (index, packs) = (&self.inner.index, &self.inner.packs);
        let lacks = |why| Ok(Some((Subject::Layer(*layer), why)));
        let key = toc.digest.as_bytes();
        let Some(read) = packs.read_located(RecordKind::Toc, key, || Ok(index.toc(&toc.digest)?))? else {
            return lacks("its TOC is gone");
        };
        let Some(decoded) = read.ok().and_then(|bytes| Toc::decode(&bytes).ok()) else {
            return lacks("its TOC is damaged");
        };
        for chunk in decoded.chunks().entries() {
            match packs.chunk(index, &chunk.digest)? {
                Some(at) if at.payload_len == chunk.frame_len => {}
                Some(_) => return lacks("one of its chunks is stored as another frame"),
                None => return lacks("one of its chunks is gone"),
            }
        }
        Ok(None)
    }

    /// `None`: it is damaged or gone.
    pub(super) fn fact_at(&self, at: &Location) -> Result<Option<Fact>, StoreError> {
        let payload = self.inner.packs.read(*at, RecordKind::Fact, &[])?;
        Ok(payload.and_then(|payload| serde_json::from_slice(&payload).ok()))
    }
}

fn last_states(pack: &Pack, len: u64) -> Result<LastStates, Stop> {
    let mut last = LastStates::new();
    scan_all(pack, PACK_HEADER_LEN, len, false, |seen| {
        if let Seen::Whole(found) = seen
            && found.header.kind == RecordKind::LayerState
        {
            let record = serde_json::from_slice::<LayerRecord>(&found.payload);
            last.insert(found.header.key, matches!(record, Ok(LayerRecord::Ready { .. })));
        }
        Ok::<(), Stop>(())
    })?;
    Ok(last)
}

/// Whether a frame decompresses into the bytes that a digest names.
fn is_chunk(digest: &ChunkDigest, raw_len: u32, frame: &[u8]) -> bool {
    // `raw_len` is within the limit, or its header would not have decoded.
    let raw = zstd::bulk::decompress(frame, raw_len as usize);
    raw.is_ok_and(|raw| raw.len() == raw_len as usize && ChunkDigest::of(&raw) == *digest)
}
