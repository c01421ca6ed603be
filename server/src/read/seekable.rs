//! The seekable blob of a layer: chunk frames in table order, as one virtual file. And chunks by digest.
//!
//! In: a layer digest and byte ranges of its seekable blob, or chunk digests. Out: frames from the packs, a part at a time.
//! Invariant: every frame was checked against its pack record, and its length against the layer's table, before a byte of
//! it leaves; a chunk that is not there any more is an error and sends its layer back to conversion. A part is no more than
//! [`PART_BYTES`], or one frame. However many ask for a layer at once, its TOC is read and decoded once.
//! Not here: HTTP, and who reads when (`http/parts.rs`), packs (`store`). All of this blocks, for a moment: each part is a
//! short blocking task, so a slow client holds no thread.

use std::{collections::HashSet, ops::Range, sync::Arc};

use bytes::Bytes;
use headstart_layer_format::{
    BlobDigest, BlobOffset, BlobRange, ChunkDigest, Toc, TocDigest,
    api::TocSummary,
    chunk_stream::{ChunkHeader, ChunkStatus},
    toc::ChunkTable,
};
use moka::sync::Cache;

use crate::store::{LayerHold, LayerRecord, Store, StoreError};

/// Decoded chunk tables kept, in bytes of memory: the tables of some 200 large layers.
const TABLES_SIZE_MAX: u64 = 64 << 20;
/// Memory of one chunk in a table: entry and two running sums.
const CHUNK_MEMORY: u32 = 56;
/// Read in one blocking task, so that the hop between threads is small beside the read; at least one frame, and at most
/// [`FRAMES_MAX`].
pub const PART_BYTES: u64 = 1 << 20;
/// Frames may be of a few bytes.
const FRAMES_MAX: usize = 64;

/// Why a stream of frames ended early.
#[derive(Debug, thiserror::Error)]
pub enum SeekError {
    #[error("read chunk: {0}")]
    Store(#[from] StoreError),
    #[error("read chunk {0}: it is damaged or gone")]
    Gone(ChunkDigest),
    #[error("read chunk: the task was cancelled")]
    Cancelled,
}

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
enum NoTable {
    #[error("the layer is not ready any more")]
    NotReady,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Readers of every converted layer.
#[derive(Clone, Debug)]
pub struct Seekable {
    store: Store,
    /// By TOC: a layer that is converted again may get another.
    tables: Cache<TocDigest, Arc<LayerData>>,
}

/// One digest in `POST chunks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Chunk(ChunkDigest),
    /// To be answered as missing, whether it is here or not.
    Missing(ChunkDigest),
}

/// A ready layer's seekable blob.
#[derive(Debug)]
pub struct LayerData {
    layer: BlobDigest,
    pub summary: TocSummary,
    table: ChunkTable,
}

/// A layer that stays while it is read.
#[derive(Clone, Debug)]
pub struct Opened {
    data: Arc<LayerData>,
    _hold: Arc<LayerHold>,
}

impl std::ops::Deref for Opened {
    type Target = LayerData;

    fn deref(&self) -> &LayerData {
        &self.data
    }
}

impl Seekable {
    pub fn new(store: Store) -> Self {
        let tables = Cache::builder()
            .max_capacity(TABLES_SIZE_MAX)
            .weigher(|_, data: &Arc<LayerData>| data.table.len().saturating_mul(CHUNK_MEMORY).saturating_add(256))
            .build();
        Self { store, tables }
    }

    /// The layer's blob; `None` when it is not ready. Blocks for a read of the TOC when the table is not cached.
    pub fn open(&self, layer: &BlobDigest) -> Result<Option<Opened>, StoreError> {
        if !matches!(self.store.layer(layer)?, Some(LayerRecord::Ready { .. })) {
            return Ok(None);
        }
        // Before the look that counts, so that an eviction either sees the hold or is seen.
        let Some(hold) = self.store.hold_layer(layer) else {
            return Ok(None);
        };
        let _hold = Arc::new(hold);
        Ok(self.data(layer)?.map(|data| Opened { data, _hold }))
    }

    fn data(&self, layer: &BlobDigest) -> Result<Option<Arc<LayerData>>, StoreError> {
        // The record is asked every time: a layer that went back to unconverted must not be served from the cache.
        let Some(LayerRecord::Ready { toc: summary, .. }) = self.store.layer(layer)? else {
            return Ok(None);
        };
        // Those who come meanwhile wait for the first.
        match self
            .tables
            .try_get_with(summary.digest, || self.read_table(layer, &summary.digest))
        {
            // A TOC names its layer.
            Ok(data) => Ok((data.layer == *layer).then_some(data)),
            Err(error) => match &*error {
                NoTable::NotReady => Ok(None),
                NoTable::Store(error) => Err(StoreError::Io {
                    what: "read a TOC",
                    source: std::io::Error::other(error.to_string()),
                }),
            },
        }
    }

    fn read_table(&self, layer: &BlobDigest, digest: &TocDigest) -> Result<Arc<LayerData>, NoTable> {
        let read = self.store.toc(layer)?;
        // Or it was converted again since.
        let read = read.filter(|(summary, _)| summary.digest == *digest);
        let (summary, encoded) = read.ok_or(NoTable::NotReady)?;
        let toc = match Toc::decode(&encoded) {
            Ok(toc) => toc,
            Err(error) => {
                self.store
                    .unconvert_layer(layer, &format!("its TOC does not decode: {error}"))?;
                return Err(NoTable::NotReady);
            }
        };
        Ok(Arc::new(LayerData::of(&toc, summary)))
    }

    /// The next frames of bytes `range` of the seekable blob, cut to it, from the chunk `first` on; and the chunk that
    /// follows. Blocks.
    pub fn part(&self, opened: &Opened, range: &Range<u64>, first: u32) -> Result<(Vec<Bytes>, u32), SeekError> {
        let chunks = opened.part(range, first);
        let next = chunks.end;
        Ok((opened.frames(&self.store, chunks, range)?, next))
    }

    /// Counts as a use of the layers that are ready, and keeps them until dropped.
    pub fn hold(&self, layers: &[BlobDigest]) -> Result<Vec<LayerHold>, StoreError> {
        let mut held = Vec::new();
        for layer in layers {
            // Not for what anybody makes up: a use is remembered.
            if let Some(LayerRecord::Ready { .. }) = self.store.layer(layer)? {
                held.extend(self.store.hold_layer(layer));
            }
        }
        Ok(held)
    }

    /// Which of `chunks` are of one of the layers; the others count as missing. Blocks as [`Seekable::open`] does, for
    /// each layer; the caller has [`Seekable::hold`] of them.
    pub fn of_layers(&self, layers: &[BlobDigest], chunks: Vec<ChunkDigest>) -> Result<Vec<Wanted>, StoreError> {
        let asked: HashSet<ChunkDigest> = chunks.iter().copied().collect();
        let mut found = HashSet::new();
        for layer in layers {
            let Some(data) = self.open(layer)? else { continue };
            let entries = data.table.entries().iter().map(|e| e.digest);
            found.extend(entries.filter(|digest| asked.contains(digest)));
        }
        let wanted = chunks.into_iter().map(|digest| match found.contains(&digest) {
            true => Wanted::Chunk(digest),
            false => Wanted::Missing(digest),
        });
        Ok(wanted.collect())
    }

    /// The beginning of the framed answer to `POST chunks`, in the order asked, and how many it is of. Blocks.
    pub fn framed(&self, wanted: &[Wanted]) -> Result<(Vec<Bytes>, usize), SeekError> {
        let (mut bytes, mut count) = (0, 0);
        for wanted in wanted.iter().take(FRAMES_MAX) {
            if let Wanted::Chunk(digest) = wanted {
                bytes += u64::from(self.store.chunk_frame_len(digest)?.unwrap_or_default());
            }
            if count > 0 && bytes > PART_BYTES {
                break;
            }
            count += 1;
        }
        Ok((framed(&self.store, &wanted[..count])?, count))
    }
}

impl Opened {
    /// What is known of the layer, without the promise that it stays.
    pub fn data(&self) -> Arc<LayerData> {
        self.data.clone()
    }
}

impl LayerData {
    /// Of a layer that is in no store.
    pub fn of(toc: &Toc, summary: TocSummary) -> Self {
        Self {
            layer: *toc.layer_digest(),
            summary,
            table: toc.chunks().clone(),
        }
    }

    pub fn layer(&self) -> BlobDigest {
        self.layer
    }

    pub fn table(&self) -> &ChunkTable {
        &self.table
    }

    /// The chunks that bytes `range` of the blob are in.
    pub fn covering(&self, range: &Range<u64>) -> Range<u32> {
        self.table.covering_frames(BlobRange {
            start: BlobOffset(range.start),
            len: range.end.saturating_sub(range.start),
        })
    }

    /// Those of one part.
    fn part(&self, range: &Range<u64>, first: u32) -> Range<u32> {
        let (mut bytes, mut end) = (0, first);
        for chunk in (first..self.covering(range).end)
            .take(FRAMES_MAX)
            .map_while(|i| self.table.chunk(i))
        {
            bytes += chunk.frame.len;
            if end > first && bytes > PART_BYTES {
                break;
            }
            end += 1;
        }
        first..end
    }

    /// Frames of `chunks`, cut to `range`.
    fn frames(&self, store: &Store, chunks: Range<u32>, range: &Range<u64>) -> Result<Vec<Bytes>, SeekError> {
        let chunks: Vec<_> = chunks.map_while(|index| self.table.chunk(index)).collect();
        let digests: Vec<_> = chunks.iter().map(|chunk| chunk.digest).collect();
        let mut out = Vec::with_capacity(chunks.len());
        for (chunk, frame) in chunks.iter().zip(store.read_chunks(&digests)?) {
            // A frame of another length is another conversion's: right bytes, but not where the table says.
            let Some(frame) = frame.filter(|f| f.len() as u64 == chunk.frame.len) else {
                store.unconvert_layer(&self.layer, "one of its chunks is damaged or gone")?;
                return Err(SeekError::Gone(chunk.digest));
            };
            let from = range.start.saturating_sub(chunk.frame.start.0).min(chunk.frame.len);
            let to = range.end.saturating_sub(chunk.frame.start.0).min(chunk.frame.len);
            // Both are at most the frame's length, which is in memory.
            out.push(frame.slice(from as usize..to as usize));
        }
        Ok(out)
    }
}

fn framed(store: &Store, wanted: &[Wanted]) -> Result<Vec<Bytes>, SeekError> {
    let here = wanted.iter().filter_map(|wanted| match wanted {
        Wanted::Chunk(digest) => Some(*digest),
        Wanted::Missing(_) => None,
    });
    let mut frames = store.read_chunks(&here.collect::<Vec<_>>())?.into_iter();
    let mut out = Vec::with_capacity(2 * wanted.len());
    for wanted in wanted {
        let (digest, frame) = match wanted {
            Wanted::Chunk(digest) => (digest, frames.next().flatten()),
            Wanted::Missing(digest) => (digest, None),
        };
        let status = match &frame {
            Some(frame) => ChunkStatus::Found {
                frame_len: u32::try_from(frame.len()).map_err(|_| SeekError::Gone(*digest))?,
            },
            None => ChunkStatus::Missing,
        };
        let header = ChunkHeader {
            digest: *digest,
            status,
        };
        out.push(Bytes::copy_from_slice(&header.encode()));
        out.extend(frame);
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
