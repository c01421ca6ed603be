//! The conversion queue: a bounded list, a few threads, and who failed lately.
//!
//! In: [`Job`]s. Out: conversions run one a thread; changes of state announced. Images go in the order they came, and of one
//! image the smallest layer first: the small ones are ready early, and the whole image not later.
//! Invariant: a layer is in the queue at most once; a refusal is recorded, a failure only here, with a pause
//! that grows; one for which others leave no memory waits until another has ended, and then comes before all that is
//! behind it, so many times; one whose upstream is slow to answer or to send has no thread while others want it
//! ([`aside`]); every conversion's time, CPU time and bytes are logged and counted.
//! Not here: whether a layer should be queued ([`super::layers`]), getting at its blob ([`open`]), what is kept of how it
//! ended ([`outcome`]).

mod aside;
mod open;
mod outcome;

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use headstart_layer_format::api::{LayerState, LayerStatus};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;

use super::blobs::{Blob, Blobs};
use super::layers::unknown;
use super::patience::Patience;
use crate::ingest::{ConvertError, Failure, Ingest, IngestConfig, Progress, Rank};
use crate::metrics::{
    Metrics,
    names::{Gauge, Level},
};
use crate::store::Store;
use crate::store::facts::Source;
use crate::telemetry::Cause;
use crate::upstream::Caller;
use aside::Awaited;
use outcome::Outcome;

/// Failures remembered; with more, those whose pause is over are forgotten, then all.
const FAILURES_MAX: usize = 4096;
/// The pause after a failure doubles at most this often.
const DOUBLINGS_MAX: u32 = 6;
/// A layer for which others leave no memory is tried so often; then that is a failure like any other.
const TURNS_MAX: u32 = 16;
/// A stop waits this long for threads that may hang in a read; they end with their fetch.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// A layer to convert.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub layer: BlobDigest,
    /// Of whom it is a layer: [`Queue::image`].
    pub image: u64,
    /// Tried first; the recorded sources follow.
    pub source: Option<Source>,
    /// On whose behalf that one is asked. The others are asked for the server: nobody's credentials go elsewhere.
    pub caller: Caller,
    /// Size of the blob, if a manifest said so.
    pub size: Option<u64>,
    /// The request that wants it first.
    pub cause: Cause,
}

#[derive(Debug)]
pub(super) struct Queue {
    shared: Arc<Shared>,
    /// Closed when the last worker has ended.
    ended: tokio::sync::Mutex<mpsc::Receiver<()>>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    blobs: Blobs,
    config: IngestConfig,
    /// `None`: its threads could not be started.
    ingest: Option<Ingest>,
    metrics: Metrics,
    runtime: Handle,
    state: Mutex<State>,
    work: Condvar,
    changed: watch::Sender<()>,
    /// Ends those who wait for blobs.
    stop: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    /// By rank, then as they came.
    waiting: BTreeMap<(Rank, u64), Job>,
    /// Those that found too little memory, until another conversion ends.
    short: BTreeMap<(Rank, u64), Job>,
    /// Those whose upstreams are slow, until there is an answer, or the blob. No more than fetches that are under way.
    aside: HashMap<BlobDigest, Job>,
    /// The blobs of those that were, and are in the queue again.
    opened: HashMap<BlobDigest, Blob>,
    /// Counts jobs.
    pushed: u64,
    /// Counts images.
    images: u64,
    /// Waiting and running.
    known: HashMap<BlobDigest, Known>,
    failed: HashMap<BlobDigest, Failed>,
    stopping: bool,
}

#[derive(Clone, Debug)]
struct Known {
    size: Option<u64>,
    /// While it waits, in [`State::waiting`] or [`State::short`].
    place: (Rank, u64),
    running: Option<Progress>,
    /// How often it found too little memory, and how the last time was put.
    short: u32,
    reason: Option<String>,
}

#[derive(Clone, Debug)]
struct Failed {
    reason: String,
    tries: u32,
    retry_at: Instant,
}

impl Queue {
    pub fn start(store: Store, blobs: Blobs, config: IngestConfig, metrics: Metrics) -> Self {
        let workers = config.workers.max(1);
        let ingest = Ingest::start(&config, |config| yield_to_serving(config.niceness));
        let ingest = ingest.inspect_err(|error| tracing::error!(%error, "failed to start the conversions' threads"));
        let shared = Arc::new(Shared {
            store,
            blobs,
            config,
            ingest: ingest.ok(),
            metrics,
            runtime: Handle::current(),
            state: Mutex::default(),
            work: Condvar::new(),
            changed: watch::Sender::new(()),
            stop: CancellationToken::new(),
        });
        let (alive, ended) = mpsc::channel(1);
        for i in 0..workers {
            let (shared, alive) = (Arc::clone(&shared), alive.clone());
            let spawned = std::thread::Builder::new().name(format!("convert-{i}")).spawn(move || {
                let _alive = alive;
                yield_to_serving(shared.config.niceness);
                shared.run();
            });
            if let Err(error) = spawned {
                tracing::error!(%error, "failed to start a conversion thread");
            }
        }
        Self {
            shared,
            ended: tokio::sync::Mutex::new(ended),
        }
    }

    /// For the layers of one more image: those of earlier ones go first.
    pub fn image(&self) -> u64 {
        let mut state = self.shared.state();
        state.images += 1;
        state.images
    }

    /// Sees every change of any layer's state.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.shared.changed.subscribe()
    }

    /// Queued or converting, or not here.
    pub fn status(&self, layer: &BlobDigest) -> Option<LayerStatus> {
        self.shared.state().known.get(layer).map(|known| known.status(layer))
    }

    /// The last failure, if there is one.
    pub fn failed(&self, layer: &BlobDigest) -> Option<LayerStatus> {
        let failed = self.shared.state().failed.get(layer).cloned()?;
        Some(LayerStatus {
            state: LayerState::Failed,
            reason: Some(failed.reason),
            ..unknown(layer)
        })
    }

    /// Whether the pause after a failure is over.
    pub fn may_retry(&self, layer: &BlobDigest) -> bool {
        let state = self.shared.state();
        state.failed.get(layer).is_none_or(|f| f.retry_at <= Instant::now())
    }

    /// Queues the job unless its layer is in the queue, the queue is full or stopping; its state then.
    /// One that waits already moves up if it is wanted for an earlier image, or its size is known now.
    pub fn push(&self, job: Job) -> LayerStatus {
        let mut guard = self.shared.state();
        let state = &mut *guard;
        if let Some(known) = state.known.get_mut(&job.layer) {
            let better = (job.rank(), known.place.1);
            if better < known.place
                && let Some(mut waiting) = state.waiting.remove(&known.place)
            {
                (waiting.image, waiting.size) = (job.image, job.size);
                known.place = better;
                known.size = known.size.or(job.size);
                state.waiting.insert(better, waiting);
            }
            return known.status(&job.layer);
        }
        if state.stopping || state.waiting_count() >= self.shared.config.queue_max {
            return unknown(&job.layer);
        }
        state.pushed += 1;
        let place = (job.rank(), state.pushed);
        let known = Known {
            size: job.size,
            place,
            running: None,
            short: 0,
            reason: None,
        };
        let status = known.status(&job.layer);
        state.known.insert(job.layer, known);
        state.waiting.insert(place, job);
        self.shared.count_waiting(state);
        drop(guard);
        self.shared.work.notify_one();
        status
    }

    fn stop(&self) {
        let mut state = self.shared.state();
        state.stopping = true;
        state.waiting.clear();
        state.short.clear();
        state.aside.clear();
        state.opened.clear();
        self.shared.stop.cancel();
        state.known.retain(|_, known| known.running.is_some());
        for known in state.known.values() {
            known.running.iter().for_each(|progress| progress.cancel());
        }
        drop(state);
        self.shared.work.notify_all();
        self.shared.changed.send_replace(());
    }

    pub async fn shutdown(&self) {
        self.stop();
        let mut ended = self.ended.lock().await;
        // Nothing is ever sent: this returns when every worker has dropped its end.
        let _ = tokio::time::timeout(STOP_WAIT, ended.recv()).await;
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Job {
    fn rank(&self) -> Rank {
        Rank {
            image: self.image,
            // What is not known may be large.
            size: self.size.unwrap_or(u64::MAX),
        }
    }
}

impl Known {
    fn status(&self, layer: &BlobDigest) -> LayerStatus {
        let converted = self.running.as_ref().map(|p| p.compressed.load(Ordering::Relaxed));
        LayerStatus {
            state: if converted.is_some() {
                LayerState::Converting
            } else {
                LayerState::Queued
            },
            size: self.size,
            reason: self.reason.clone().filter(|_| converted.is_none()),
            converted,
            ..unknown(layer)
        }
    }
}

impl State {
    fn waiting_count(&self) -> usize {
        self.waiting.len() + self.short.len() + self.aside.len()
    }

    /// Whether a thread could do something else.
    fn is_thread_wanted(&self) -> bool {
        let is_any = !self.waiting.is_empty() || !self.short.is_empty();
        is_any && self.aside.len() + self.opened.len() < aside::ASIDE_MAX
    }

    fn is_any_running(&self) -> bool {
        self.known.values().any(|known| known.running.is_some())
    }

    /// Counts a turn; whether there is another.
    fn may_wait(&mut self, layer: &BlobDigest) -> bool {
        let stopping = self.stopping;
        self.known.get_mut(layer).is_some_and(|known| {
            known.short += 1;
            !stopping && known.short < TURNS_MAX
        })
    }

    /// Until another has ended: its memory is free then.
    fn wait_for_memory(&mut self, job: Job, reason: String) {
        let Some(known) = self.known.get_mut(&job.layer) else {
            return;
        };
        if self.stopping {
            self.known.remove(&job.layer);
            return;
        }
        known.running = None;
        known.reason = Some(reason);
        self.short.insert(known.place, job);
        // Two may have taken it from each other.
        if !self.is_any_running() {
            self.give_a_turn();
        }
    }

    /// Lets the first of those that wait for memory try again.
    fn give_a_turn(&mut self) {
        if let Some((place, job)) = self.short.pop_first() {
            self.waiting.insert(place, job);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(self: &Arc<Self>) {
        while let Some((job, progress)) = self.next() {
            let layer = job.layer;
            let started = Instant::now();
            let _held = self.metrics.hold(Level::Conversions, &[]);
            let span = tracing::error_span!(parent: None, "ingest", request_id = Empty, %layer, outcome = Empty);
            let _entered = job.cause.of(span).entered();
            let mut outcome = catch_unwind(AssertUnwindSafe(|| self.convert(&job, &progress)))
                .unwrap_or_else(|_| Outcome::Failed("convert: it panicked".into()));
            if let Outcome::NoMemory(reason) = &outcome
                && !self.state().may_wait(&layer)
            {
                outcome = Outcome::Failed(reason.clone());
            }
            // Before anybody can see that it ended.
            self.report(&layer, &outcome, started.elapsed(), &progress);
            let mut state = self.state();
            match outcome {
                Outcome::NoMemory(reason) => state.wait_for_memory(job, reason),
                Outcome::Slow(awaited) => {
                    self.set_aside(&mut state, job, awaited);
                    state.give_a_turn();
                }
                Outcome::Failed(reason) | Outcome::TimedOut(reason) => {
                    state.known.remove(&layer);
                    self.remember_failure(&mut state, layer, reason);
                    state.give_a_turn();
                }
                Outcome::Settled | Outcome::Ready | Outcome::Refused(_) => {
                    state.known.remove(&layer);
                    state.failed.remove(&layer);
                    state.give_a_turn();
                }
            }
            self.count_waiting(&state);
            drop(state);
            self.work.notify_one();
            self.changed.send_replace(());
        }
    }

    fn count_waiting(&self, state: &State) {
        self.metrics
            .set(Gauge::ConversionQueue, state.waiting_count() as u64, &[]);
    }

    fn next(&self) -> Option<(Job, Progress)> {
        let mut state = self.state();
        loop {
            if state.stopping {
                return None;
            }
            if let Some((place, job)) = state.waiting.pop_first() {
                self.count_waiting(&state);
                let progress = Progress::new(Duration::from_millis(self.config.time_max_ms));
                let known = state.known.entry(job.layer).or_insert_with(|| Known {
                    size: job.size,
                    place,
                    running: None,
                    short: 0,
                    reason: None,
                });
                known.running = Some(progress.clone());
                return Some((job, progress));
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn convert(self: &Arc<Self>, job: &Job, progress: &Progress) -> Outcome {
        let opened = self.state().opened.remove(&job.layer);
        match self.store.layer(&job.layer) {
            // Settled since it was queued.
            Ok(Some(record)) if record.is_settled(&self.config.allowance(self.store.bytes_max())) => {
                return Outcome::Settled;
            }
            Ok(_) => {}
            Err(e) => return Outcome::Failed(e.to_string()),
        }
        let opening = Instant::now();
        let blob = match opened.map_or_else(|| self.open(job, self.patience()), Ok) {
            Ok(blob) => blob,
            Err(outcome) => return outcome,
        };
        let for_head = opening.elapsed();
        if let Some(known) = self.state().known.get_mut(&job.layer) {
            known.size = Some(blob.size());
        }
        let Some(ingest) = &self.ingest else {
            return Outcome::Failed(Failure::WorkerGone.to_string());
        };
        let rank = Rank {
            size: blob.size(),
            ..job.rank()
        };
        let patience = self.patience();
        let (lost, waited) = (patience.lost(), patience.waited_nanos());
        match ingest.convert(blob.blocking_reader(patience), &job.layer, &self.store, rank, progress) {
            Ok(_) => Outcome::Ready,
            Err(ConvertError::Failed(_)) if lost.load(Ordering::Relaxed) && !progress.is_cancelled() => {
                Outcome::Slow(Awaited::Body(Box::new(blob)))
            }
            Err(error) => {
                let waited = for_head + Duration::from_nanos(waited.load(Ordering::Relaxed));
                self.outcome_of(&blob, error, waited)
            }
        }
    }

    /// With a slow upstream, as long as nobody else wants the thread.
    fn patience(self: &Arc<Self>) -> Patience {
        let others = Arc::downgrade(self);
        let is_wanted = move || others.upgrade().is_some_and(|shared| shared.state().is_thread_wanted());
        Patience::new(Duration::from_millis(self.config.slow_after_ms), is_wanted)
    }

    fn remember_failure(&self, state: &mut State, layer: BlobDigest, reason: String) {
        let now = Instant::now();
        if state.failed.len() >= FAILURES_MAX {
            state.failed.retain(|_, f| f.retry_at > now);
        }
        if state.failed.len() >= FAILURES_MAX {
            state.failed.clear();
        }
        let tries = state.failed.get(&layer).map_or(0, |f| f.tries);
        let pause_ms = self.config.retry_after_ms << tries.min(DOUBLINGS_MAX);
        let failed = Failed {
            reason,
            tries: tries + 1,
            retry_at: now + Duration::from_millis(pause_ms),
        };
        state.failed.insert(layer, failed);
    }
}

/// Lowers the priority of this thread and of those it starts (Linux: nice values are per thread and inherited).
fn yield_to_serving(niceness: u8) {
    let niceness = i32::from(niceness.min(19));
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        tracing::warn!(%error, "conversions run at the server's own priority");
    }
}
