//! One fetch a chunk, however many readers.
//!
//! In: chunk indices that readers want. Out: nothing but the wait: afterwards the sink has the chunks.
//! Invariant: a (layer, chunk) is in at most one run at a time; whoever wants it too waits for that run. A chunk leaves
//! the table of flights only after the sink has it or its run has given up, so a reader finds it in one of the two.
//! Not here: how a run gets its bytes (`fetch/run.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{sleep, timeout_at};

use super::arrival::Arrival;
pub use super::data::LayerKey;
use super::demand::Demand;
use super::error::FetchError;
use super::original::Sources;
use super::original::rebuild::{Rebuilds, Watch, Work};
use super::run::{self, Claim, Why};
use super::servers::Servers;
use super::verify::ChunkSink;
use crate::contents::Contents;
use crate::counters::Counters;

/// A run ends at its time by itself and says why; who waits for it looks a little later.
const RUN_GRACE: Duration = Duration::from_secs(1);

/// How often memory is asked for again.
const MEMORY_PAUSE: Duration = Duration::from_millis(5);

/// All of it is taken now.
#[derive(Debug)]
struct NoMemory;

/// How a flight stands.
#[derive(Clone, Debug)]
pub(super) enum Flight {
    Running,
    Landed,
    Failed(FetchError),
}

/// The flights of one layer. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Flights(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) servers: Servers,
    pub(super) key: LayerKey,
    pub(super) contents: Arc<Contents>,
    pub(super) sink: Arc<dyn ChunkSink>,
    pub(super) counters: Arc<Counters>,
    pub(super) rebuilds: Arc<Rebuilds>,
    runtime: Handle,
    running: Mutex<HashMap<u32, watch::Receiver<Flight>>>,
}

/// A claim on chunks, and the memory for them if it is there already.
type Run = (Arc<Claim>, Option<OwnedSemaphorePermit>);

/// A flight somebody waits for.
struct Wait {
    flight: watch::Receiver<Flight>,
    /// Started by this call: its failure is this reader's answer.
    own: bool,
}

impl Flights {
    /// `runtime` drives the runs: they outlive the readers that started them.
    pub fn new(
        servers: Servers,
        contents: Arc<Contents>,
        sink: Arc<dyn ChunkSink>,
        sources: Arc<Sources>,
        counters: Arc<Counters>,
        runtime: Handle,
    ) -> Self {
        Self(Arc::new(Inner {
            rebuilds: Rebuilds::new(Arc::clone(servers.originals()), sources),
            servers,
            key: LayerKey {
                layer: *contents.layer(),
                toc: *contents.toc_digest(),
            },
            contents,
            sink,
            counters,
            runtime,
            running: Mutex::default(),
        }))
    }

    /// Returns when the sink has all of `demand`, or an error when that could not be had until `deadline`. Chunks of
    /// `along` that are missing ride in the same runs, but nobody waits for them.
    pub async fn fetch(&self, demand: &[u32], along: &[u32], deadline: Instant) -> Result<(), FetchError> {
        let _waiting = self.0.servers.demand().begin();
        let mut along = along;
        // Runs end at the deadline, unless they have turned to the layer's original.
        let patience = match self.0.rebuilds.is_possible() {
            true => deadline + self.0.rebuilds.config().wait_max() + RUN_GRACE,
            false => deadline,
        };
        loop {
            let waits = self.join(demand, along, deadline);
            along = &[];
            let mut own_failure = None;
            let mut others_failed = false;
            for mut wait in waits {
                match landed(&mut wait.flight, patience).await {
                    Ok(()) => {}
                    Err(e) if wait.own => own_failure = Some(e),
                    Err(e) if Instant::now() >= deadline => return Err(e),
                    // That run was started earlier, by a reader whose time was up earlier.
                    Err(_) => others_failed = true,
                }
            }
            match own_failure {
                Some(e) => return Err(e),
                None if others_failed => continue,
                None => return Ok(()),
            }
        }
    }

    /// Starts fetching what is missing of `wanted` if there is room for it now. Nobody waits, errors are dropped.
    pub fn prefetch(&self, wanted: &[u32], deadline: Instant) {
        let mut runs = Vec::new();
        let mut running = self.lock();
        let missing = self.missing(&running, wanted);
        for chunks in self.split(missing) {
            if let Some(permit) = self.0.servers.budget().try_acquire(self.cost(&chunks)) {
                runs.push((self.claim(&mut running, &chunks, Why::Ahead), Some(permit)));
            }
        }
        drop(running);
        self.start(runs, deadline);
    }

    /// For a chunk whose frame is about to arrive by itself; `None`: it is here, or on its way to a reader.
    pub(crate) fn arriving(&self, index: u32) -> Option<Arrival> {
        let chunk = self.0.contents.chunks().chunk(index)?;
        let mut running = self.lock();
        if self.missing(&running, &[index]).is_empty() {
            return None;
        }
        Some(Arrival::new(chunk, self.claim(&mut running, &[index], Why::Ahead)))
    }

    /// Neither here nor on its way.
    pub(crate) fn is_missing(&self, index: u32) -> bool {
        !self.missing(&self.lock(), &[index]).is_empty()
    }

    /// Fetches what is missing of `wanted` in the background, giving way to readers. Says whether all of it is here.
    pub async fn fill(&self, wanted: &[u32], deadline: Instant) -> bool {
        match self.claim_missing(wanted, Why::Fill) {
            Ok(Some((claim, permit))) => run::drive(claim, Some(permit), deadline).await,
            Ok(None) => {}
            Err(NoMemory) => return false,
        }
        wanted.iter().all(|&i| self.0.sink.has(i))
    }

    /// The same beside readers, one of whom will want it soon; memory is waited for, behind them.
    pub(crate) async fn ahead(&self, wanted: &[u32], deadline: Instant) {
        while Instant::now() < deadline {
            match self.claim_missing(wanted, Why::Ahead) {
                Ok(Some((claim, permit))) => return run::drive(claim, Some(permit), deadline).await,
                Ok(None) => return,
                Err(NoMemory) => sleep(MEMORY_PAUSE).await,
            }
        }
    }

    /// With memory for it, or not at all.
    fn claim_missing(&self, wanted: &[u32], why: Why) -> Result<Option<(Arc<Claim>, OwnedSemaphorePermit)>, NoMemory> {
        let mut running = self.lock();
        let missing = self.missing(&running, wanted);
        if missing.is_empty() {
            return Ok(None);
        }
        let permit = self
            .0
            .servers
            .budget()
            .try_acquire(self.cost(&missing))
            .ok_or(NoMemory)?;
        Ok(Some((self.claim(&mut running, &missing, why), permit)))
    }

    /// Whether readers of this node wait.
    pub fn demand(&self) -> &Demand {
        self.0.servers.demand()
    }

    /// Joins the flights of `demand`, starting those that are missing.
    fn join(&self, demand: &[u32], along: &[u32], deadline: Instant) -> Vec<Wait> {
        let mut running = self.lock();
        let mut waits: Vec<Wait> = demand
            .iter()
            .filter_map(|i| running.get(i))
            .map(|flight| Wait {
                flight: flight.clone(),
                own: false,
            })
            .collect();
        let missing = self.missing(&running, demand);
        if missing.is_empty() {
            return waits;
        }
        let mut all = [&missing[..], &self.missing(&running, along)].concat();
        all.sort_unstable();
        all.dedup();
        let runs = self.split(all).into_iter();
        let runs: Vec<Run> = runs
            .map(|chunks| (self.claim(&mut running, &chunks, Why::Demand), None))
            .collect();
        waits.extend(missing.iter().filter_map(|i| running.get(i)).map(|flight| Wait {
            flight: flight.clone(),
            own: true,
        }));
        drop(running);
        self.start(runs, deadline);
        waits
    }

    fn missing(&self, running: &HashMap<u32, watch::Receiver<Flight>>, wanted: &[u32]) -> Vec<u32> {
        let mut missing: Vec<u32> = wanted
            .iter()
            .copied()
            .filter(|i| !running.contains_key(i) && !self.0.sink.has(*i))
            .collect();
        missing.sort_unstable();
        missing.dedup();
        missing
    }

    /// Runs of neighbours, each at most `run_bytes_max` of frames (but one chunk at least).
    fn split(&self, sorted: Vec<u32>) -> Vec<Vec<u32>> {
        let bytes_max = self.0.servers.config().run_bytes_max;
        let mut runs: Vec<Vec<u32>> = Vec::new();
        let mut bytes = 0;
        for index in sorted {
            let frame_len = self.0.contents.chunks().chunk(index).map_or(0, |c| c.frame.len);
            match runs.last_mut() {
                Some(run) if run.last().is_some_and(|l| l + 1 == index) && bytes + frame_len <= bytes_max => {
                    run.push(index);
                    bytes += frame_len;
                }
                _ => {
                    runs.push(vec![index]);
                    bytes = frame_len;
                }
            }
        }
        runs
    }

    /// Memory a run may take: its frames, and what they decompress to.
    fn cost(&self, chunks: &[u32]) -> u64 {
        let chunk = |i: &u32| self.0.contents.chunks().chunk(*i);
        chunks.iter().filter_map(chunk).map(|c| c.frame.len + c.range.len).sum()
    }

    /// Puts chunks into the table of flights.
    fn claim(&self, running: &mut HashMap<u32, watch::Receiver<Flight>>, chunks: &[u32], why: Why) -> Arc<Claim> {
        let mut senders = Vec::with_capacity(chunks.len());
        for &index in chunks {
            let (sender, receiver) = watch::channel(Flight::Running);
            running.insert(index, receiver);
            senders.push((index, sender));
        }
        Claim::new(Arc::clone(&self.0), senders, self.cost(chunks), why)
    }

    /// Never under the lock of the table: a runtime that is shutting down drops the task within `spawn`, and the claim
    /// with it, which then ends its flights.
    fn start(&self, runs: Vec<Run>, deadline: Instant) {
        for (claim, permit) in runs {
            self.0.runtime.spawn(run::drive(claim, permit, deadline));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, watch::Receiver<Flight>>> {
        self.0.lock()
    }
}

impl Inner {
    /// Has the layer's original fetched, if there is any hope in that.
    pub(super) fn rebuild(&self) -> Option<Watch> {
        self.rebuilds.start(Work {
            layer: self.key.layer,
            contents: Arc::clone(&self.contents),
            sink: Arc::clone(&self.sink),
            counters: Arc::clone(&self.counters),
        })
    }

    /// Ends flights: readers that come now look at the sink.
    pub(super) fn forget(&self, index: u32) {
        self.lock().remove(&index);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, watch::Receiver<Flight>>> {
        self.running.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Waits for the end of a flight.
async fn landed(flight: &mut watch::Receiver<Flight>, deadline: Instant) -> Result<(), FetchError> {
    let ended = flight.wait_for(|f| !matches!(f, Flight::Running));
    match timeout_at(deadline.into(), ended).await {
        Err(_) => Err(FetchError::Deadline),
        // The sender went away without a word; the run's guard says `Failed` first, so this is a bug's last resort.
        Ok(Err(_)) => Err(FetchError::Deadline),
        Ok(Ok(state)) => match &*state {
            Flight::Failed(e) => Err(e.clone()),
            Flight::Running | Flight::Landed => Ok(()),
        },
    }
}
