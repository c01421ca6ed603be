//! What is done for layers while nobody asks: making room, fetching the rest, looking whether the whole is right.
//!
//! In: the layers this node has. Out: the same layers, complete and verified as far as servers, disk and readers let it.
//! Invariant: two tasks a node, one layer at a time; both end with the node. Not here: the work itself (`cache/evict.rs`,
//! `cache/fill.rs`, `cache/diff_id.rs`).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use crate::cache::diff_id::Verdict;
use crate::cache::fill::{Filled, fill};
use crate::cache::{Layer, LazyConfig, Room, evict};
use crate::telemetry::number;

/// Between two looks at what there is to do.
const LOOK: Duration = Duration::from_millis(500);
/// Between two counts of what layers take, unless somebody finds the disk tight.
const COUNT: Duration = Duration::from_secs(10);
/// Before a layer that could not be filled is tried again; doubles to [`AGAIN_MAX`].
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);

/// Says which layers containers use now.
#[derive(Clone, Default)]
pub struct InUse(Arc<Mutex<Option<Ask>>>);

type Ask = Box<dyn Fn() -> HashSet<BlobDigest> + Send + Sync>;

impl fmt::Debug for InUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InUse")
    }
}

impl InUse {
    /// From whoever knows; nothing is in use before.
    pub fn set(&self, ask: impl Fn() -> HashSet<BlobDigest> + Send + Sync + 'static) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(ask));
    }

    fn now(&self) -> HashSet<BlobDigest> {
        let ask = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ask.as_ref().map(|ask| ask()).unwrap_or_default()
    }
}

/// The layers of a node, as long as there is a node.
pub(crate) type Layers = Arc<dyn Fn() -> Option<Vec<Arc<Layer>>> + Send + Sync>;

/// Starts both tasks.
pub(crate) fn start(layers: Layers, room: Arc<Room>, config: LazyConfig, in_use: InUse, stop: CancellationToken) {
    let (evicted, stopped, used) = (Arc::clone(&layers), stop.clone(), in_use.clone());
    tokio::spawn(async move {
        stopped.run_until_cancelled(make_room(evicted, room, used)).await;
    });
    tokio::spawn(async move {
        stop.run_until_cancelled(complete(layers, config, in_use)).await;
    });
}

async fn make_room(layers: Layers, room: Arc<Room>, in_use: InUse) {
    loop {
        let Some(all) = layers() else { return };
        let used = in_use.clone();
        // A panic in there makes no room; the next round tries anew.
        let _ = tokio::task::spawn_blocking(move || evict::make_room(&all, &used.now())).await;
        // Not at once, also when it is tight still: what is used cannot always go.
        sleep(LOOK.min(COUNT)).await;
        let _ = timeout(COUNT, room.is_tight()).await;
    }
}

/// When a layer came, and how often it could not be filled.
struct Seen {
    at: Instant,
    failures: u32,
    not_before: Instant,
}

async fn complete(layers: Layers, config: LazyConfig, in_use: InUse) {
    let fill_after = Duration::from_millis(config.fill_after_ms);
    let mut seen: HashMap<u32, Seen> = HashMap::new();
    loop {
        let Some(mut all) = layers() else { return };
        let now = Instant::now();
        let slots: HashSet<u32> = all.iter().map(|l| l.slot()).collect();
        seen.retain(|slot, _| slots.contains(slot));
        for layer in &all {
            seen.entry(layer.slot()).or_insert(Seen {
                at: now,
                failures: 0,
                not_before: now,
            });
        }
        all.retain(|l| !l.file().is_verified() && !l.file().is_quarantined());
        all.retain(|l| seen.get(&l.slot()).is_some_and(|s| s.not_before <= now));
        let used = match all.is_empty() {
            true => HashSet::new(),
            false => in_use.now(),
        };
        // Full ones first, for they need no network; then what containers use, the latest read first.
        all.sort_by_key(|l| {
            let idle = !used.contains(l.digest());
            (!l.file().is_full(), idle, u64::MAX - l.file().last_used())
        });
        let is_due = |l: &Arc<Layer>| {
            let is_old = seen
                .get(&l.slot())
                .is_some_and(|s| now.duration_since(s.at) >= fill_after);
            l.file().is_full() || (config.background_fill && is_old)
        };
        let Some(layer) = all.into_iter().find(is_due) else {
            sleep(LOOK).await;
            continue;
        };
        let done = work_on(&layer, &config).await;
        if let Some(seen) = seen.get_mut(&layer.slot()) {
            seen.failures = if done { 0 } else { seen.failures.saturating_add(1) };
            let pause = AGAIN.saturating_mul(1 << seen.failures.min(10)).min(AGAIN_MAX);
            seen.not_before = Instant::now() + if done { Duration::ZERO } else { pause };
        }
    }
}

async fn traced_fill(layer: &Arc<Layer>, config: &LazyConfig) -> Filled {
    let (before, empty) = (layer.file().chunk_count(), tracing::field::Empty);
    let span =
        info_span!(parent: None, "fill", layer = %layer.digest(), chunks = empty, server = empty, outcome = empty);
    let filled = fill(layer, config).instrument(span.clone()).await;
    span.record("chunks", number(layer.file().chunk_count().saturating_sub(before)));
    span.record("outcome", tracing::field::debug(filled));
    filled
}

/// Fills and verifies. False: it is no use to go on with this one now.
async fn work_on(layer: &Arc<Layer>, config: &LazyConfig) -> bool {
    if !layer.file().is_full() && traced_fill(layer, config).await != Filled::Whole {
        return false;
    }
    let verified = Arc::clone(layer);
    let verdict = tokio::task::spawn_blocking(move || {
        // What is called whole should be so after power loss too.
        verified.file().flush()?;
        verified.file().verify()
    });
    match verdict.await {
        Ok(Ok(Verdict::Right)) => {
            tracing::info!(layer = %layer.digest(), "layer-complete");
            true
        }
        Ok(Ok(Verdict::Lies)) => true,
        // What this disk does not keep is not fetched over and over without a pause.
        Ok(Ok(Verdict::Rotten(_))) => false,
        Ok(Err(error)) => {
            tracing::warn!(layer = %layer.digest(), %error, "layer-not-verified");
            false
        }
        Err(_) => false,
    }
}
