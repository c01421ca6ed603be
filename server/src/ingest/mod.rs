//! Conversion: an original layer becomes a published TOC and chunks. All synchronous.
//!
//! In: the original blob as a `Read`. Out: a published layer, or a [`Refusal`] or [`Failure`] and nothing published.
//! Invariant: the compressed digest was verified before anything is published *or refused*; the DiffID in the TOC is
//! computed from the bytes that were scanned. Whether it is the one an image's config claims is a question about that
//! image, not about the layer (a lying image must not spoil an honest one's layer), and is asked in `read/images.rs`.
//! Not here: which layers are converted when (`read/layers.rs`). Nothing is ever extracted to the server's disk.
//!
//! The byte's way: [`inflate`] -> [`tar_scan`] ([`tar_header`], [`pax`], [`sparse`]) -> [`assemble`] into [`tree`], the
//! skeleton and [`cut`] -> [`chunks`] (hash, compress, store) -> `Store::publish_layer`.

mod assemble;
mod chunks;
pub mod config;
mod cut;
mod error;
pub(crate) mod fuzz;
mod gear;
mod inflate;
mod path;
mod pax;
mod progress;
mod sparse;
pub mod survey;
mod tar_header;
mod tar_scan;
mod tree;

use std::io::Read;
use std::sync::atomic::Ordering;

use headstart_layer_format::api::TocSummary;
use headstart_layer_format::toc::{ChunkEntry, ChunkTable, Skeleton, Toc, Tree};
use headstart_layer_format::{BlobDigest, DiffId};

use crate::store::{Store, conversion::Conversion};
use assemble::Assembler;
use chunks::ChunkPool;
pub use config::IngestConfig;
pub use cut::CutSizes;
pub use error::{ConvertError, Failure, Refusal};
use inflate::{Original, TarBudget, TarStream, inflate};
pub use progress::Progress;

type Parts = (Tree, Vec<ChunkEntry>, Skeleton, DiffId);

/// Converts and publishes. Blocks; `progress` tells how far it is and can cancel it.
pub fn convert(
    original: impl Read,
    layer: &BlobDigest,
    store: &Store,
    config: &IngestConfig,
    progress: &Progress,
) -> Result<TocSummary, ConvertError> {
    progress.count_cpu(|| {
        let mut original = Original::new(original, *layer, progress);
        // What it is told is stored stays until the layer is published.
        let conversion = store.begin_conversion();
        let parts = take_apart(&mut original, &conversion, config, progress);
        let parts = match parts {
            Err(e @ ConvertError::Failed(_)) => return Err(e),
            // Before any verdict: are these the right bytes at all?
            other => original.finish().and(other),
        };
        let (tree, chunks, skeleton, diff_id) = parts?;
        let toc = Toc::new(*layer, diff_id, tree, ChunkTable::new(chunks)?, skeleton)?;
        Ok(conversion.publish_layer(layer, &toc)?)
    })
}

fn take_apart<R: Read>(
    original: &mut Original<'_, R>,
    store: &Conversion,
    config: &IngestConfig,
    progress: &Progress,
) -> Result<Parts, ConvertError> {
    let mut tar = TarStream::new(inflate(original)?, TarBudget::of(config), progress);
    std::thread::scope(|scope| {
        let pool = ChunkPool::start(scope, config.compress_threads, config.zstd_level, store, progress);
        let mut assembler = Assembler::new(config, pool)?;
        let scanned = tar_scan::scan(&mut tar, &mut assembler);
        progress.tar.fetch_add(tar.size(), Ordering::Relaxed);
        let (tree, chunks, skeleton) = assembler.finish(scanned)?;
        Ok((tree, chunks, skeleton, tar.diff_id()))
    })
}
