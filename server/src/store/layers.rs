//! Layers and chunks in the store: publishing, refusing, reading, and going back when something is damaged.
//!
//! In: chunk frames, encoded TOCs, refusals. Out: the same, verified. Invariant: a layer is `Ready` only after its
//! chunks were synced and indexed, and its TOC with it; a damaged chunk or TOC is a miss, and the layer is unconverted again.
//! Not here: making chunks and TOCs (`ingest`), the queue (`read/layers.rs`).

use std::thread::ScopedJoinHandle;

use bytes::Bytes;
use headstart_layer_format::api::TocSummary;
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, Toc, TocDigest};
use serde::{Deserialize, Serialize};

use super::pack::Location;
use super::record::RecordKind;
use super::refusal::{Allowance, Terms};
use super::usage::now_ms;
use super::{Store, StoreError};

/// Changes when a conversion could come out better: older refusals are then forgotten.
pub const CONVERTER_VERSION: u32 = 2;

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum LayerRecord {
    Ready {
        diff_id: DiffId,
        toc: TocSummary,
    },
    Refused {
        reason: String,
        converter: u32,
        /// How long that holds.
        #[serde(flatten)]
        terms: Terms,
    },
    /// Was ready; something of it is damaged, or it was evicted.
    Unconverted,
}

impl LayerRecord {
    /// Whether nothing is left to do for a conversion that may take so much.
    pub fn is_settled(&self, allowance: &Allowance) -> bool {
        match self {
            Self::Ready { .. } => true,
            Self::Refused { terms, .. } => terms.hold(allowance, now_ms()),
            Self::Unconverted => false,
        }
    }
}

/// Read at once; a frame alone may be larger.
const RUN_BYTES_MAX: u64 = 2 << 20;
/// Bytes of a record beside its payload, for chunks and TOCs.
pub(super) const RECORD_OVERHEAD: u64 = super::record::HEADER_LEN as u64 + 32;

impl Store {
    /// `None`: not converted (or to be converted again).
    pub fn layer(&self, layer: &BlobDigest) -> Result<Option<LayerRecord>, StoreError> {
        self.or_miss(self.sure_layer(layer))
    }

    /// The same; an error where the index fails.
    pub(super) fn sure_layer(&self, layer: &BlobDigest) -> Result<Option<LayerRecord>, StoreError> {
        Ok(self.inner.index.layer(layer)?.filter(|r| match r {
            LayerRecord::Ready { .. } => true,
            LayerRecord::Refused { converter, .. } => *converter == CONVERTER_VERSION,
            LayerRecord::Unconverted => false,
        }))
    }

    /// Every layer that anything was recorded of.
    pub fn layers(&self) -> Result<Vec<(BlobDigest, LayerRecord)>, StoreError> {
        Ok(self.inner.index.layers()?)
    }

    /// Whether a chunk is stored (perhaps not yet synced), and its frame length.
    pub fn chunk_frame_len(&self, digest: &ChunkDigest) -> Result<Option<u32>, StoreError> {
        Ok(self.chunk_location(digest)?.map(|at| at.payload_len))
    }

    fn chunk_location(&self, digest: &ChunkDigest) -> Result<Option<Location>, StoreError> {
        self.inner.packs.chunk(&self.inner.index, digest)
    }

    /// Stores a frame whose content has the digest (the caller just hashed it). Returns the frame length that counts
    /// (that of the stored frame, when the chunk was there already), and whether it was new.
    pub fn append_chunk(&self, digest: &ChunkDigest, raw_len: u32, frame: &[u8]) -> Result<(u32, bool), StoreError> {
        let (at, new) = self
            .inner
            .packs
            .append_chunk(&self.inner.index, digest, raw_len, frame)?;
        Ok((at.payload_len, new))
    }

    /// The frame, verified against its record's CRC and key. A damaged one is forgotten and is a miss.
    pub fn read_chunk(&self, digest: &ChunkDigest) -> Result<Option<Bytes>, StoreError> {
        self.or_miss(self.sure_chunk(digest))
    }

    fn sure_chunk(&self, digest: &ChunkDigest) -> Result<Option<Bytes>, StoreError> {
        let inner = &self.inner;
        let key = digest.as_bytes();
        match inner
            .packs
            .read_located(RecordKind::Chunk, key, || self.chunk_location(digest))?
        {
            None => Ok(None),
            Some(Ok(frame)) => Ok(Some(frame)),
            Some(Err(at)) => {
                inner.count_corruption("chunk");
                tracing::error!(chunk = %digest, pack = at.pack.0, offset = at.offset, "a stored chunk is damaged");
                inner.index.forget_chunk(digest, &at)?;
                Ok(None)
            }
        }
    }

    /// As [`Store::read_chunk`] of each. Neighbours in a pack, as one conversion left them, are one read; their frames are
    /// slices of it.
    pub fn read_chunks(&self, digests: &[ChunkDigest]) -> Result<Vec<Option<Bytes>>, StoreError> {
        let end = |at: &Location| at.offset + RECORD_OVERHEAD + u64::from(at.payload_len);
        let mut out = Vec::with_capacity(digests.len());
        let mut run: Vec<(Location, &[u8])> = Vec::new();
        let mut rest = digests;
        while let Some(first) = rest.first() {
            run.clear();
            for digest in rest {
                let Some(at) = self.or_miss(self.chunk_location(digest))? else {
                    break;
                };
                let fits = match (run.first(), run.last()) {
                    (Some((first, _)), Some((last, _))) => {
                        at.pack == last.pack && at.offset == end(last) && end(&at) - first.offset <= RUN_BYTES_MAX
                    }
                    _ => true,
                };
                if !fits {
                    break;
                }
                run.push((at, digest.as_bytes()));
            }
            if run.len() < 2 {
                out.push(self.read_chunk(first)?);
                rest = &rest[1..];
                continue;
            }
            let (now, later) = rest.split_at(run.len());
            let mut read = self.inner.packs.read_run(RecordKind::Chunk, &run)?.into_iter();
            for digest in now {
                // One that moved since, or is damaged, by itself.
                out.push(match read.next().flatten() {
                    Some(frame) => Some(frame),
                    None => self.read_chunk(digest)?,
                });
            }
            rest = later;
        }
        Ok(out)
    }

    /// Publishes a converted layer: chunks synced and indexed, then the TOC and `Ready`, synced together and indexed at once.
    pub fn publish_layer(&self, layer: &BlobDigest, toc: &Toc) -> Result<TocSummary, StoreError> {
        self.publish(layer, toc, |_| {})
    }

    /// The same; `note` is told the TOC's digest before it is looked up.
    pub(super) fn publish(
        &self,
        layer: &BlobDigest,
        toc: &Toc,
        note: impl FnOnce(&TocDigest),
    ) -> Result<TocSummary, StoreError> {
        // The disk works meanwhile.
        let (encoded, committed) = std::thread::scope(|scope| {
            let name = std::thread::Builder::new().name("commit".into());
            let committing = name.spawn_scoped(scope, || self.commit());
            let encoded = toc.encode();
            let committed = match committing.map(ScopedJoinHandle::join) {
                Ok(Ok(committed)) => committed,
                // No thread could be had, or it panicked: once more here.
                Ok(Err(_)) | Err(_) => self.commit(),
            };
            (encoded, committed)
        });
        let encoded = encoded.map_err(StoreError::Toc)?;
        committed?;
        for c in toc.chunks().entries() {
            if self.inner.index.chunk(&c.digest)?.map(|at| at.payload_len) != Some(c.frame_len) {
                return Err(StoreError::MissingChunk(c.digest));
            }
        }
        let summary = TocSummary {
            digest: Toc::digest(&encoded),
            size: encoded.len() as u64,
            data_size: toc.chunks().data_size(),
            blob_size: toc.chunks().blob_size(),
            chunk_count: u64::from(toc.chunks().len()),
            entry_count: toc.tree().entries().len() as u64,
        };
        note(&summary.digest);
        if self.inner.index.toc(&summary.digest)?.is_none() {
            self.inner.packs.append_toc(&summary.digest, &encoded)?;
        }
        let ready = LayerRecord::Ready {
            diff_id: *toc.diff_id(),
            toc: summary.clone(),
        };
        self.touch_layer(layer);
        // Behind the TOC in the log, and committed with it: a replay believes it only if the TOC is whole.
        self.record_layer(layer, &ready)?;
        Ok(summary)
    }

    /// Records that a layer cannot be converted, for good.
    pub fn refuse_layer(&self, layer: &BlobDigest, reason: &str) -> Result<(), StoreError> {
        self.refuse_layer_on(layer, reason, Terms::default())
    }

    /// Records that it is not converted for as long as the terms hold.
    pub fn refuse_layer_on(&self, layer: &BlobDigest, reason: &str, terms: Terms) -> Result<(), StoreError> {
        let refused = LayerRecord::Refused {
            reason: reason.to_owned(),
            converter: CONVERTER_VERSION,
            terms,
        };
        self.record_layer(layer, &refused)
    }

    /// A layer of which something is damaged: it will be converted again. Not while the index is not believed: what it
    /// does not find may be there.
    pub fn unconvert_layer(&self, layer: &BlobDigest, why: &str) -> Result<(), StoreError> {
        match self.inner.index.believed() {
            Ok(()) => self.or_miss(self.unconvert(layer, why)),
            Err(_) => Ok(()),
        }
    }

    pub(super) fn unconvert(&self, layer: &BlobDigest, why: &str) -> Result<(), StoreError> {
        if !matches!(self.inner.index.layer(layer)?, Some(LayerRecord::Ready { .. })) {
            return Ok(());
        }
        tracing::error!(%layer, why, "a ready layer goes back to unconverted");
        self.inner.count_corruption("layer");
        self.record_layer(layer, &LayerRecord::Unconverted)
    }

    pub(super) fn record_layer(&self, layer: &BlobDigest, record: &LayerRecord) -> Result<(), StoreError> {
        self.inner.packs.append_layer(layer, record)?;
        self.commit()
    }

    /// The encoded TOC of a ready layer, verified. A damaged one makes the layer unconverted.
    pub fn toc(&self, layer: &BlobDigest) -> Result<Option<(TocSummary, Bytes)>, StoreError> {
        self.or_miss(self.sure_toc(layer))
    }

    pub(super) fn sure_toc(&self, layer: &BlobDigest) -> Result<Option<(TocSummary, Bytes)>, StoreError> {
        let Some(LayerRecord::Ready { toc, .. }) = self.sure_layer(layer)? else {
            return Ok(None);
        };
        let (inner, key) = (&self.inner, toc.digest.as_bytes());
        let bytes = inner
            .packs
            .read_located(RecordKind::Toc, key, || Ok(inner.index.toc(&toc.digest)?))?;
        match bytes {
            Some(Ok(bytes)) if Toc::digest(&bytes) == toc.digest => Ok(Some((toc, bytes))),
            // (The caller says whether that was a use: `touch_layer`.)
            // Evicted since the look: nothing is damaged.
            None if self.sure_layer(layer)?.is_none() => Ok(None),
            _ => {
                inner.index.believed()?;
                self.inner.index.forget_toc(&toc.digest)?;
                self.unconvert_layer(layer, "its TOC is damaged or missing")?;
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::refusal::Bounds;
    use super::*;

    #[test]
    fn refusals_without_terms_are_for_good() {
        let text = r#"{"state": "refused", "reason": "r", "converter": 2}"#;
        let record: LayerRecord = serde_json::from_str(text).unwrap();
        let allowance = Allowance {
            time_max_ms: u64::MAX,
            bounds: Bounds {
                tar_bytes: Some(u64::MAX),
                ..Bounds::default()
            },
        };
        assert!(record.is_settled(&allowance));
        let again = serde_json::to_string(&record).unwrap();
        assert!(!again.contains("over_"), "{again}");
    }
}
