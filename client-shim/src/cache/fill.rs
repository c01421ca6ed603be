//! Fetching the rest of a layer while nobody waits.
//!
//! In: a layer. Out: whether all of it is here. Invariant: one run at a time, of about a chunk's time in flight; a reader who
//! waits stops it between two chunks; it takes room only where there is plenty, and ends.
//! Not here: which layer, and what follows (`upkeep.rs`).

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::config::LazyConfig;
use super::layer::Layer;

/// Frames in one request: what is in the sockets when a reader comes is at most this.
const RUN_BYTES: u64 = 1 << 20;
/// Chunks in one request, however small.
const RUN_CHUNKS: usize = 64;
/// Time for one request.
const RUN_TIME: Duration = Duration::from_secs(60);
/// How long readers may hold up the next request at a time.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a fill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// Every chunk is here.
    Whole,
    /// No room for more.
    NoRoom,
    /// The servers did not give it; later, perhaps.
    Failed,
}

/// Fetches what is missing, in the order of the data space.
pub async fn fill(layer: &Layer, config: &LazyConfig) -> Filled {
    let file = layer.file();
    let mut next = 0;
    while let Some((run, bytes)) = run_from(layer, &mut next) {
        if !file.room().may_fill(bytes) {
            return Filled::NoRoom;
        }
        let flights = layer.reader().flights();
        flights.demand().quiet(PATIENCE).await;
        let started = Instant::now();
        if !flights.fill(&run, started + RUN_TIME).await {
            return Filled::Failed;
        }
        if let Some(rate) = std::num::NonZeroU64::new(config.fill_bytes_per_sec_max) {
            let due = Duration::from_millis(bytes.saturating_mul(1000) / rate);
            sleep(due.saturating_sub(started.elapsed())).await;
        }
    }
    match file.is_full() {
        true => Filled::Whole,
        false => Filled::NoRoom,
    }
}

/// The next missing chunks that are neighbours, and their bytes.
fn run_from(layer: &Layer, next: &mut u32) -> Option<(Vec<u32>, u64)> {
    let (file, chunks) = (layer.file(), layer.contents().chunks());
    let (mut run, mut frames, mut bytes) = (Vec::new(), 0, 0);
    while let Some(chunk) = chunks.chunk(*next) {
        let is_here = file.is_kept(chunk.index);
        if (is_here && !run.is_empty()) || frames >= RUN_BYTES || run.len() >= RUN_CHUNKS {
            break;
        }
        *next += 1;
        if !is_here {
            run.push(chunk.index);
            frames += chunk.frame.len;
            bytes += chunk.range.len;
        }
    }
    (!run.is_empty()).then_some((run, bytes))
}
