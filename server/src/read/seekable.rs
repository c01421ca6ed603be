//! The seekable blob of a layer: chunk frames in table order, as one virtual file. And chunks by digest.
//!
//! In: a layer digest and byte ranges of its seekable blob, or chunk digests. Out: streams of frames from the packs.
//! Invariant: every frame was checked against its pack record, and its length against the layer's table, before a byte of
//! it leaves; a chunk that is not there any more ends the stream with an error and sends its layer back to conversion,
//! so a client never takes a gap for the end.
//! Not here: HTTP (`http/headstart.rs`), packs (`store`). This is a border between async and the synchronous store: each
//! step of a stream is one short blocking task, so a slow client holds no thread.

use std::{collections::HashSet, ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use headstart_layer_format::{
    BlobDigest, BlobOffset, BlobRange, ChunkDigest, Toc,
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
/// Frames read in one blocking task: about 1 MiB of the usual 64-256 KiB frames, so that the hop between threads is
/// small beside the read.
const FRAMES_A_STEP: u32 = 8;
/// Steps in flight per stream: one being sent, one being read.
const STEPS_AHEAD: usize = 2;

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

/// Readers of every converted layer.
#[derive(Clone, Debug)]
pub struct Seekable {
    store: Store,
    tables: Cache<BlobDigest, Arc<LayerData>>,
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
    hold: Arc<LayerHold>,
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
            self.tables.invalidate(layer);
            return Ok(None);
        }
        // Before the look that counts, so that an eviction either sees the hold or is seen.
        let Some(hold) = self.store.hold_layer(layer) else {
            return Ok(None);
        };
        let hold = Arc::new(hold);
        Ok(self.data(layer)?.map(|data| Opened { data, hold }))
    }

    fn data(&self, layer: &BlobDigest) -> Result<Option<Arc<LayerData>>, StoreError> {
        // The record is asked every time: a layer that went back to unconverted must not be served from the cache.
        let Some(LayerRecord::Ready { toc: summary, .. }) = self.store.layer(layer)? else {
            self.tables.invalidate(layer);
            return Ok(None);
        };
        if let Some(known) = self.tables.get(layer).filter(|d| d.summary.digest == summary.digest) {
            return Ok(Some(known));
        }
        let Some((summary, encoded)) = self.store.toc(layer)? else {
            return Ok(None);
        };
        let toc = match Toc::decode(&encoded) {
            Ok(toc) => toc,
            Err(error) => {
                self.store
                    .unconvert_layer(layer, &format!("its TOC does not decode: {error}"))?;
                return Ok(None);
            }
        };
        let data = Arc::new(LayerData {
            layer: *layer,
            summary,
            table: toc.chunks().clone(),
        });
        self.tables.insert(*layer, data.clone());
        Ok(Some(data))
    }

    /// Bytes `range` of the seekable blob, within its size.
    pub fn stream(
        &self,
        opened: &Opened,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, SeekError>> + Send + 'static + use<> {
        let chunks = opened.table.covering_frames(BlobRange {
            start: BlobOffset(range.start),
            len: range.end.saturating_sub(range.start),
        });
        let (store, opened) = (self.store.clone(), opened.clone());
        let steps = chunks.clone().step_by(FRAMES_A_STEP as usize).map(move |first| {
            let step = first..first.saturating_add(FRAMES_A_STEP).min(chunks.end);
            let (store, data, range) = (store.clone(), opened.data.clone(), range.clone());
            let hold = opened.hold.clone();
            blocking(move || {
                let frames = data.frames(&store, step, &range);
                drop(hold);
                frames
            })
        });
        flatten(steps)
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

    /// A part of a framed answer, for streams that take turns. Blocks.
    pub fn framed(&self, wanted: &[Wanted]) -> Result<Vec<Bytes>, SeekError> {
        framed(&self.store, wanted)
    }

    /// The framed answer to `POST chunks`, in the order asked.
    pub fn chunks(
        &self,
        digests: Vec<Wanted>,
    ) -> impl Stream<Item = Result<Bytes, SeekError>> + Send + 'static + use<> {
        let store = self.store.clone();
        let digests: Arc<[Wanted]> = digests.into();
        let steps = (0..digests.len()).step_by(FRAMES_A_STEP as usize).map(move |first| {
            let (store, digests) = (store.clone(), digests.clone());
            let step = first..(first + FRAMES_A_STEP as usize).min(digests.len());
            blocking(move || framed(&store, &digests[step]))
        });
        flatten(steps)
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

async fn blocking(
    work: impl FnOnce() -> Result<Vec<Bytes>, SeekError> + Send + 'static,
) -> Result<Vec<Bytes>, SeekError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or(Err(SeekError::Cancelled))
}

/// Steps in order, a few ahead; the first error is the last item.
fn flatten<F>(
    steps: impl Iterator<Item = F> + Send + 'static,
) -> impl Stream<Item = Result<Bytes, SeekError>> + Send + 'static
where
    F: Future<Output = Result<Vec<Bytes>, SeekError>> + Send + 'static,
{
    stream::iter(steps).buffered(STEPS_AHEAD).flat_map(|step| {
        stream::iter(match step {
            Ok(frames) => frames.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    })
}
