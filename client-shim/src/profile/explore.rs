//! A start of which nothing is known: what lies near what it reads is fetched too, while the servers are far.
//!
//! In: reads of an image's layers. Out: regions around them, in the layers' caches. Invariant: nobody waits here; at most
//! [`AT_ONCE`] requests of a region each are under way, so a reader's own is behind no more than that; what was read into comes
//! before what may be; never more bytes than an image's allowance; it ends when nothing new was read for a while.
//! Not here: which regions (`profile/vicinity.rs`), how far the servers are (`fetch/pace.rs`), when (`profile/starts.rs`).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headstart_layer_format::toc::Chunk;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::vicinity::Vicinity;
use crate::cache::Layer;
use crate::counters::Counters;
use crate::fetch::ChunkSink as _;

/// Regions under way. One is on the way while the next is being asked for.
const AT_ONCE: usize = 2;
/// The reader's own request goes first.
const BEHIND_READER: Duration = Duration::from_millis(1);
/// Time for one region.
const REGION_TIME: Duration = Duration::from_secs(10);
/// Layers of at most this many regions are fetched before anybody reads: what a build adds last is small, and is its program.
const SMALL_REGIONS: usize = 2;
/// Of these together.
const SMALL_REGIONS_MAX: usize = 8;

/// A region of a layer of the image.
type Place = (usize, usize);

#[derive(Debug)]
pub struct Explorer {
    seen: Mutex<Seen>,
    more: Notify,
}

#[derive(Debug)]
struct Seen {
    layers: Vec<Vicinity>,
    /// The latest last.
    read: Vec<Place>,
    near: VecDeque<Place>,
    last: Option<Instant>,
}

impl Explorer {
    /// `layers`: the image's, bottom first.
    pub(super) fn new(layers: &[Arc<Layer>], span: u64) -> Arc<Self> {
        let vicinity = |layer: &Arc<Layer>| Vicinity::new(layer.contents().chunks(), span);
        let mut layers: Vec<Vicinity> = layers.iter().map(vicinity).collect();
        let mut near = VecDeque::new();
        for (position, layer) in layers.iter_mut().enumerate().rev() {
            if layer.regions() <= SMALL_REGIONS && near.len() + layer.regions() <= SMALL_REGIONS_MAX {
                near.extend(layer.rest().into_iter().map(|region| (position, region)));
            }
        }
        let seen = Seen {
            layers,
            read: Vec::new(),
            near,
            last: None,
        };
        Arc::new(Self {
            seen: Mutex::new(seen),
            more: Notify::new(),
        })
    }

    /// A chunk of the layer at this position is read.
    pub(super) fn read(&self, position: usize, chunk: u32) {
        let mut seen = self.lock();
        let Some(layer) = seen.layers.get_mut(position) else {
            return;
        };
        let Some((own, regions)) = layer.read(chunk) else {
            return;
        };
        let (read, near): (Vec<_>, Vec<_>) = regions.into_iter().map(|r| (position, r)).partition(|p| p.1 == own);
        seen.last = Some(Instant::now());
        seen.read.extend(read);
        // One that is waiting and is read into now comes first.
        if let Some(at) = seen.near.iter().position(|place| *place == (position, own)) {
            seen.near.remove(at);
            seen.read.push((position, own));
        }
        seen.near.extend(near);
        drop(seen);
        self.more.notify_one();
    }

    fn next(&self) -> Option<Place> {
        let mut seen = self.lock();
        seen.read.pop().or_else(|| seen.near.pop_front())
    }

    fn chunks(&self, (position, region): Place) -> std::ops::Range<u32> {
        self.lock().layers.get(position).map_or(0..0, |l| l.chunks(region))
    }

    /// Fetches until nothing new was read for `quiet`, the layers have `allowance` more compressed bytes, or the disk is full.
    /// Returns how many were asked for.
    pub(super) async fn run(
        self: &Arc<Self>,
        layers: &[Arc<Layer>],
        allowance: u64,
        quiet: Duration,
        counters: &Counters,
    ) -> u64 {
        for (position, layer) in layers.iter().enumerate() {
            layer.recorder().explore(self, position);
        }
        let _told = Told { explorer: self, layers };
        self.fetch(layers, allowance, quiet, counters).await
    }

    async fn fetch(&self, layers: &[Arc<Layer>], allowance: u64, quiet: Duration, counters: &Counters) -> u64 {
        let mut under_way: JoinSet<()> = JoinSet::new();
        let mut asked = 0u64;
        let began = Instant::now();
        loop {
            while under_way.len() < AT_ONCE
                && let Some(place) = self.next()
            {
                let Some(layer) = layers.get(place.0) else { continue };
                let missing = missing(layer, self.chunks(place));
                let compressed: u64 = missing.iter().map(|c| c.frame.len).sum();
                let bytes: u64 = missing.iter().map(|c| c.range.len).sum();
                if missing.is_empty() {
                    continue;
                }
                if asked.saturating_add(compressed) > allowance || !layer.file().room().may_fill(bytes) {
                    return asked;
                }
                asked += compressed;
                counters.explored_bytes.add(compressed);
                let layer = Arc::clone(layer);
                under_way.spawn(async move {
                    let chunks: Vec<u32> = missing.iter().map(|c| c.index).collect();
                    let flights = layer.reader().flights();
                    // What does not come is a reader's to fetch.
                    flights.ahead(&chunks, Instant::now() + REGION_TIME).await;
                });
            }
            let over = self.lock().last.unwrap_or(began) + quiet;
            tokio::select! {
                Some(_) = under_way.join_next(), if !under_way.is_empty() => {}
                () = self.more.notified(), if under_way.len() < AT_ONCE => sleep(BEHIND_READER).await,
                () = sleep_until(over.into()) => {
                    if self.lock().last.unwrap_or(began) + quiet <= Instant::now() {
                        return asked;
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The layers' reads are told to the explorer, until it is dropped: whoever runs one may give up on it at any moment.
struct Told<'a> {
    explorer: &'a Arc<Explorer>,
    layers: &'a [Arc<Layer>],
}

impl Drop for Told<'_> {
    fn drop(&mut self) {
        for layer in self.layers {
            layer.recorder().explored(self.explorer);
        }
    }
}

fn missing(layer: &Layer, chunks: std::ops::Range<u32>) -> Vec<Chunk> {
    let table = layer.contents().chunks();
    let missing = chunks.filter(|index| !layer.file().has(*index));
    missing.filter_map(|index| table.chunk(index)).collect()
}
