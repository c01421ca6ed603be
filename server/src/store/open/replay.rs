//! Replaying packs: rows for everything above each pack's progress.
//!
//! In: packs, up to where the index has them, the index or rows on their way into a new one. Out: rows, and each pack's
//! progress.
//! Invariant: rows are only for what is on the disk; those of a pack come in the order of its records, and a layer is
//! ready only after its TOC.
//! Not here: which packs count, and whether the index is believed ([`super`]).

use std::collections::HashMap;
use std::time::Instant;

use super::PROGRESS_PERIOD;
use crate::store::bulk::Bulk;
use crate::store::index::{Batch, Index};
use crate::store::layers::LayerRecord;
use crate::store::learned::{Fact, index_fact};
use crate::store::pack::{PACK_HEADER_LEN, Pack, PackId};
use crate::store::record::RecordKind;
use crate::store::recover::{Found, read_sealed, scan};
use crate::store::{OpenReport, StoreError, keys};

/// Rows a replay gathers into one batch.
const REPLAY_BATCH: usize = 1000;

/// Indexes everything above each pack's progress.
pub(super) fn replay(
    index: &Index,
    packs: &[(Pack, u64)],
    progress: &HashMap<PackId, u64>,
    mut bulk: Option<&mut Bulk>,
    report: &mut OpenReport,
) -> Result<(), StoreError> {
    let mut told = Instant::now();
    for (at, (pack, len)) in packs.iter().enumerate() {
        let stretch = Stretch {
            pack,
            from: progress.get(&pack.id).copied().unwrap_or(PACK_HEADER_LEN),
            len: *len,
            is_last: at + 1 == packs.len(),
            of: packs.len(),
        };
        if stretch.from >= stretch.len {
            continue;
        }
        // A killed process may have left it to the kernel; rows are only for what is on the disk.
        if let Err(error) = pack.sync() {
            tracing::error!(pack = pack.id.0, %error, "failed to sync a pack");
        }
        replay_stretch(index, &stretch, bulk.as_deref_mut(), report, &mut told)?;
    }
    Ok(())
}

/// What a pack has behind what is indexed of it.
pub(in crate::store) struct Stretch<'a> {
    pub(in crate::store) pack: &'a Pack,
    pub(in crate::store) from: u64,
    pub(in crate::store) len: u64,
    /// It is the one that is written.
    pub(in crate::store) is_last: bool,
    /// How many packs there are, for the log.
    pub(in crate::store) of: usize,
}

/// Indexes it, and says that it is.
pub(in crate::store) fn replay_stretch(
    index: &Index,
    stretch: &Stretch<'_>,
    mut bulk: Option<&mut Bulk>,
    report: &mut OpenReport,
    told: &mut Instant,
) -> Result<(), StoreError> {
    let Stretch { pack, from, len, .. } = *stretch;
    let mut rows = Rows::default();
    let mut footer_at = None;
    let visit = |found: Found| {
        if told.elapsed() > PROGRESS_PERIOD {
            *told = Instant::now();
            tracing::info!(
                pack = pack.id.0,
                of = stretch.of,
                offset = found.location.offset,
                "reading packs"
            );
        }
        let is_footer = found.header.kind == RecordKind::Footer;
        footer_at = is_footer.then_some(found.location.offset);
        rows.add(index, found, bulk.as_deref_mut())
    };
    // Behind what is indexed already, a pack may be torn also if a later one was begun.
    let mut scanned = match stretch.is_last || from > PACK_HEADER_LEN {
        true => scan(pack, from, len, true, visit)?,
        false => read_sealed(pack, from, len, visit)?,
    };
    if !stretch.is_last {
        // What cannot be read of a sealed pack is not looked at again at each start; the scrub has it rewritten.
        scanned.end = len;
    }
    // It was being sealed, and is not: what comes next takes the footer's place.
    if let (true, Some(footer_at)) = (stretch.is_last, footer_at) {
        scanned.end = footer_at;
    }
    rows.batch.progress(pack.id, scanned.end);
    index.apply(rows.batch)?;
    report.damaged_records += scanned.damaged;
    if scanned.damaged > 0 {
        tracing::error!(
            pack = pack.id.0,
            damaged = scanned.damaged,
            "a pack has damaged records"
        );
    }
    Ok(())
}

#[derive(Default)]
struct Rows {
    batch: Batch,
    count: usize,
}

impl Rows {
    /// `bulk` takes rows of chunks, if there is one.
    fn add(&mut self, index: &Index, found: Found, bulk: Option<&mut Bulk>) -> Result<(), StoreError> {
        let key = found.header.key.as_slice();
        match found.header.kind {
            RecordKind::Chunk => match (<[u8; 32]>::try_from(key), bulk) {
                (Ok(digest), Some(bulk)) => bulk
                    .add(&digest, &found.location)
                    .map_err(StoreError::io("sort the rows of chunks"))?,
                (Ok(digest), None) => {
                    let digest = headstart_layer_format::ChunkDigest::from_bytes(digest);
                    self.batch.chunk(&digest, &found.location);
                }
                (Err(_), _) => {}
            },
            RecordKind::Toc => {
                if let Ok(digest) = key.try_into() {
                    let digest = headstart_layer_format::TocDigest::from_bytes(digest);
                    self.batch.toc(&digest, &found.location);
                }
            }
            RecordKind::LayerState => {
                // `Ready` counts only if its TOC was replayed before it.
                self.flush(index)?;
                let record = serde_json::from_slice::<LayerRecord>(&found.payload).ok();
                if let (Some(layer), Some(record)) = (keys::blob_from(key), record) {
                    let whole = match &record {
                        LayerRecord::Ready { toc, .. } => index.toc(&toc.digest)?.is_some(),
                        LayerRecord::Refused { .. } | LayerRecord::Unconverted => true,
                    };
                    let record = if whole { record } else { LayerRecord::Unconverted };
                    self.batch.layer(&layer, &record, &found.location)?;
                }
            }
            RecordKind::Fact => match serde_json::from_slice::<Fact>(&found.payload) {
                Ok(fact) => index_fact(index, &fact, found.location)?,
                Err(error) => tracing::warn!(%error, "a fact of another version is skipped"),
            },
            RecordKind::Footer => {}
        }
        self.count += 1;
        if self.count >= REPLAY_BATCH {
            self.flush(index)?;
        }
        Ok(())
    }

    fn flush(&mut self, index: &Index) -> Result<(), StoreError> {
        self.count = 0;
        Ok(index.apply(std::mem::take(&mut self.batch))?)
    }
}
