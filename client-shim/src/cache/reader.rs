//! Reading a layer's data space, whether the bytes are here or not.
//!
//! In: ranges. Out: bytes, after fetching the chunks that are missing. Invariant: bytes come only from verified chunks;
//! a wait ends at its deadline. Not here: files, names (`fuse/tree_fs.rs` turns a file's bytes into ranges).

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::{LayerOffset, LayerRange};

use super::config::LazyConfig;
use super::foreseen::{Foreseen, Foresight};
use super::layer_file::LayerFile;
use super::pattern::Patterns;
use super::reads::Found;
use super::transit::Wanted;
use crate::counters::Counters;
use crate::fetch::{ChunkSink, FetchError, Flights};

#[derive(Clone, Debug)]
pub struct LayerReader {
    file: Arc<LayerFile>,
    flights: Flights,
    demand_timeout: Duration,
    small_file_bytes_max: u64,
    counters: Arc<Counters>,
    patterns: Arc<Patterns>,
    foresight: Foresight,
}

impl LayerReader {
    pub fn new(file: Arc<LayerFile>, flights: Flights, config: &LazyConfig, counters: Arc<Counters>) -> Self {
        Self {
            file,
            flights,
            demand_timeout: config.demand_timeout(),
            small_file_bytes_max: config.small_file_bytes_max,
            counters,
            patterns: Arc::new(Patterns::new(config.readahead_bytes)),
            foresight: Foresight::default(),
        }
    }

    pub fn flights(&self) -> &Flights {
        &self.flights
    }

    /// Fills `out` from `range` if it is all here, else says false. Reads a local file: microseconds from the page
    /// cache, a disk's latency otherwise; never the network.
    pub fn read_cached(&self, range: LayerRange, out: &mut [u8]) -> io::Result<bool> {
        self.file.read(range, out)
    }

    /// The same, if it is in memory: never waits for the disk either.
    pub fn read_now(&self, range: LayerRange, out: &mut [u8]) -> io::Result<Found> {
        self.file.read_now(range, out)
    }

    /// Whoever is about to fetch `demand`, to read it then, holds this meanwhile.
    pub fn want(&self, demand: &[LayerRange]) -> Wanted {
        Wanted::new(&self.file, self.indices(demand))
    }

    /// Fetches whatever is missing of `demand`, with what habit says to take along: the rest of a small body, the next
    /// stretch of a large one that is read in order.
    pub async fn fetch(&self, demand: &[LayerRange], bodies: &[LayerRange]) -> Result<(), FetchError> {
        let begun = Instant::now();
        let chunks = self.indices(demand);
        let along = self.along(demand, bodies);
        let fetched = self.flights.fetch(&chunks, &along, begun + self.demand_timeout).await;
        self.counters.miss_seconds.record(begun.elapsed());
        fetched
    }

    /// Until the guard is dropped reads of what is here say nothing of what comes next: somebody knows, and fetched it.
    pub fn foresee(&self) -> Foreseen {
        self.foresight.begin()
    }

    /// After a read that was all here: keeps a sequential reader's next stretch coming.
    pub fn read_ahead(&self, demand: &[LayerRange], bodies: &[LayerRange]) {
        // Pages of a large program are read in order too, up to where it is not used. A miss asks for its next stretch still.
        if self.foresight.is() || total(bodies) <= self.small_file_bytes_max {
            return;
        }
        let ahead = self.ahead(demand, bodies);
        // Half the window is refilled at once, so that runs stay long.
        let middle = ahead.get(ahead.len() / 2);
        if middle.is_some_and(|&i| !self.file.has(i)) {
            self.flights.prefetch(&ahead, Instant::now() + self.demand_timeout);
        }
    }

    fn along(&self, demand: &[LayerRange], bodies: &[LayerRange]) -> Vec<u32> {
        if total(bodies) <= self.small_file_bytes_max {
            self.indices(bodies)
        } else {
            self.ahead(demand, bodies)
        }
    }

    /// Chunks behind `demand` in its body, as many as the way in which that is read makes likely.
    fn ahead(&self, demand: &[LayerRange], bodies: &[LayerRange]) -> Vec<u32> {
        let (Some(first), Some(last)) = (demand.first(), demand.last()) else {
            return Vec::new();
        };
        let Some(body) = bodies.iter().find(|b| b.start <= last.start && last.end() <= b.end()) else {
            return Vec::new();
        };
        let from = first.start.0.max(body.start.0);
        let start = last.end();
        let window = self.file.room().ahead(self.patterns.note(body.start.0, from, start.0));
        let end = body.end().0.min(start.0.saturating_add(window));
        self.indices(&[LayerRange {
            start: LayerOffset(start.0),
            len: end.saturating_sub(start.0),
        }])
    }

    fn indices(&self, ranges: &[LayerRange]) -> Vec<u32> {
        let mut out: Vec<u32> = ranges.iter().flat_map(|r| self.file.chunks().covering(*r)).collect();
        out.sort_unstable();
        out.dedup();
        out
    }
}

fn total(ranges: &[LayerRange]) -> u64 {
    ranges.iter().fold(0, |sum, r| sum.saturating_add(r.len))
}
