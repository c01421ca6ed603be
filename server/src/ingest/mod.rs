//! Conversion: an original layer becomes a published TOC and chunks. All synchronous.
//!
//! In: the original blob as a `Read`. Out: a published layer, or a [`Refusal`] or [`Failure`] and nothing published.
//! Invariant: the compressed digest was verified before anything is published *or refused*; the DiffID in the TOC is
//! computed from the bytes that were scanned. Whether it is the one an image's config claims is a question about that
//! image, not about the layer (a lying image must not spoil an honest one's layer), and is asked in `read/images.rs`.
//! Not here: which layers are converted when (`read/layers.rs`). Nothing is ever extracted to the server's disk.
//!
//! The byte's way: [`inflate`] on a thread of its own ([`ahead`]), a few layers at a time ([`places`]) -> [`tar_scan`] ([`tar_header`], [`pax`], [`sparse`]) ->
//! [`assemble`] into [`tree`], the skeleton and [`cut`], on the caller's -> [`chunks`] (hash, compress as [`frame`], store), on
//! the threads of the [`pool`] that all conversions share -> `Store::publish_layer`.

mod ahead;
mod assemble;
mod attributes;
mod chunks;
pub mod config;
mod cut;
mod dir_times;
mod error;
mod frame;
pub(crate) mod fuzz;
mod gear;
mod gzip;
mod inflate;
pub(crate) mod memory;
mod nodes;
mod path;
mod pax;
mod places;
mod pool;
mod progress;
mod resolve;
mod sparse;
pub mod survey;
mod tar_header;
mod tar_scan;
mod tree;

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use headstart_layer_format::api::TocSummary;
use headstart_layer_format::toc::{ChunkEntry, ChunkTable, Skeleton, Toc, Tree};
use headstart_layer_format::{BlobDigest, DiffId};

use crate::store::{Store, conversion::Conversion};
use ahead::Ahead;
use assemble::Assembler;
use chunks::Storing;
pub use config::IngestConfig;
pub use cut::CutSizes;
pub use error::{ConvertError, Failure, Refusal};
use inflate::{Original, TarBudget, TarStream};
use memory::Memory;
use places::{Aside, Places, Seat};
use pool::Pool;
pub use pool::Rank;
pub use progress::Progress;

/// The last is what they keep in memory, until they are published.
type Parts = (Tree, Vec<ChunkEntry>, Skeleton, DiffId, Memory);

/// What all conversions of a process share.
#[derive(Debug)]
pub struct Ingest {
    config: IngestConfig,
    pool: Pool,
    places: Places,
}

/// Converts and publishes one layer, on threads of its own. Blocks.
pub fn convert(
    original: impl Read + Send,
    layer: &BlobDigest,
    store: &Store,
    config: &IngestConfig,
    progress: &Progress,
) -> Result<TocSummary, ConvertError> {
    let ingest = Ingest::start(config, |_| {}).map_err(Failure::Threads)?;
    ingest.convert(original, layer, store, Rank::default(), progress)
}

impl Ingest {
    /// Starts the threads; `prepare` runs first on each.
    pub fn start(config: &IngestConfig, prepare: fn(&IngestConfig)) -> std::io::Result<Self> {
        let pool = Pool::start(config, prepare)?;
        let config = config.clone();
        let places = Places::of_this_machine();
        Ok(Self { config, pool, places })
    }

    /// Converts and publishes. Blocks; `progress` tells how far it is and can cancel it.
    pub fn convert(
        &self,
        original: impl Read + Send,
        layer: &BlobDigest,
        store: &Store,
        rank: Rank,
        progress: &Progress,
    ) -> Result<TocSummary, ConvertError> {
        let outcome = progress.count_cpu(|| {
            let seat = Arc::new(self.places.seat(rank));
            let original = Aside::new(original, Arc::clone(&seat));
            let mut original = Original::new(original, *layer, progress);
            // What it is told is stored stays until the layer is published.
            let conversion = Arc::new(store.begin_conversion());
            let parts = self.take_apart(&mut original, &seat, &conversion, rank, progress);
            let parts = match parts {
                Err(e @ ConvertError::Failed(_)) => return Err(e),
                // Before any verdict: are these the right bytes at all?
                other => original.finish().and(other),
            };
            let (tree, chunks, skeleton, diff_id, _memory) = parts?;
            let toc = Toc::new(*layer, diff_id, tree, ChunkTable::new(chunks)?, skeleton)?;
            Ok(conversion.publish_layer(layer, &toc)?)
        });
        self.config.memory.give_back();
        outcome
    }

    fn take_apart<R: Read + Send>(
        &self,
        original: &mut Original<'_, R>,
        seat: &Seat,
        store: &Arc<Conversion>,
        rank: Rank,
        progress: &Progress,
    ) -> Result<Parts, ConvertError> {
        let work = Storing {
            store: Arc::clone(store),
            progress: progress.clone(),
        };
        std::thread::scope(|scope| {
            let memory = Memory::start(&self.config)?;
            let ahead = Ahead::start(scope, original, seat, &self.config, progress).map_err(Failure::Threads)?;
            let mut tar = TarStream::new(Box::new(ahead), TarBudget::of(&self.config), progress);
            let lane = self.pool.lane(rank, Arc::new(work));
            let mut assembler = Assembler::new(&self.config, lane, memory)?;
            let scanned = tar_scan::scan(&mut tar, &mut assembler);
            progress.tar.fetch_add(tar.size(), Ordering::Relaxed);
            let (tree, chunks, skeleton, memory) = assembler.finish(scanned)?;
            Ok((tree, chunks, skeleton, tar.diff_id(), memory))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Duration;

    use headstart_loadtest::corpus::{Compression, Dialect, LayerBuilder, Meta, Rng, SyntheticLayer};

    use super::*;

    const WAIT: Duration = Duration::from_secs(60);

    fn layer(seed: u64) -> SyntheticLayer {
        let mut layer = LayerBuilder::new(Dialect::Pax);
        layer.file("noise", Meta::mode(0o644), Rng::new(seed).bytes(3 << 20));
        layer.finish(Compression::Gzip)
    }

    /// Half of it, and the rest when that is said.
    struct Slow<'a> {
        half: &'a [u8],
        rest: &'a [u8],
        go_on: Receiver<()>,
    }

    impl Read for Slow<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            if self.half.is_empty() && !self.rest.is_empty() {
                self.go_on.recv_timeout(WAIT).map_err(io::Error::other)?;
                self.half = std::mem::take(&mut self.rest);
            }
            self.half.read(buf)
        }
    }

    /// One place, however many cores there are.
    #[test]
    fn a_layer_whose_upstream_is_slow_is_in_nobodys_way() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut ingest = Ingest::start(&IngestConfig::default(), |_| {}).unwrap();
        ingest.places = Places::new(1);
        let (slow, other) = (layer(1), layer(2));
        let (arrives, go_on) = channel();
        let convert = |original: &mut (dyn Read + Send), layer: &SyntheticLayer, image| {
            let (rank, progress) = (Rank { image, size: 1 }, Progress::new(10 * WAIT));
            ingest
                .convert(original, &layer.digest, &store, rank, &progress)
                .unwrap();
        };
        std::thread::scope(|scope| {
            let (convert, slow) = (&convert, &slow);
            scope.spawn(move || {
                let (half, rest) = slow.blob.split_at(slow.blob.len() / 2);
                convert(&mut Slow { half, rest, go_on }, slow, 1);
            });
            convert(&mut &other.blob[..], &other, 2);
            arrives.send(()).unwrap();
        });
        for layer in [&slow, &other] {
            assert!(matches!(
                store.layer(&layer.digest),
                Ok(Some(crate::store::LayerRecord::Ready { .. }))
            ));
        }
    }
}
