//! The conversion queue: a bounded list, a few threads, and who failed lately.
//!
//! In: [`Job`]s. Out: conversions run one a thread; changes of state announced. Images go in the order they came, and of one
//! image the smallest layer first: the small ones are ready early, and the whole image not later.
//! Invariant: a layer is in the queue at most once; a refusal is recorded for good, a failure only here, with a pause
//! that grows; one for which others leave no memory waits until another has ended, and then comes before all that is
//! behind it, so many times; one whose blob arrives slowly has no thread while others want it ([`aside`]); every
//! conversion's time, CPU time and bytes are logged and counted.
//! Not here: whether a layer should be queued ([`super::layers`]).

mod aside;

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
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
use crate::store::facts::Source;
use crate::store::{Store, StoreError};
use crate::telemetry::Cause;
use crate::upstream::Caller;

/// Sources tried for one conversion.
const SOURCES_TRIED_MAX: usize = 4;
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
    /// Those whose blobs arrive slowly, until they are here. No more than fetches that are under way.
    aside: HashMap<BlobDigest, Job>,
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
        is_any && self.aside.len() < aside::ASIDE_MAX
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
                Outcome::Slow(blob) => {
                    self.set_aside(&mut state, job, blob);
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
        match self.store.layer(&job.layer) {
            Ok(None) => {}
            // Settled since it was queued.
            Ok(Some(_)) => return Outcome::Settled,
            Err(e) => return Outcome::Failed(e.to_string()),
        }
        let blob = match self.open(job) {
            Ok(blob) => blob,
            Err(reason) => return Outcome::Failed(reason),
        };
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
        let others = Arc::downgrade(self);
        let is_wanted = move || others.upgrade().is_some_and(|shared| shared.state().is_thread_wanted());
        let patience = Patience::new(Duration::from_millis(self.config.slow_after_ms), is_wanted);
        let lost = patience.lost();
        match ingest.convert(blob.blocking_reader(patience), &job.layer, &self.store, rank, progress) {
            Ok(_) => Outcome::Ready,
            Err(ConvertError::Failed(_)) if lost.load(Ordering::Relaxed) && !progress.is_cancelled() => {
                Outcome::Slow(blob)
            }
            Err(ConvertError::Refused(refusal)) => {
                let reason = refusal.to_string();
                match self.store.refuse_layer(&job.layer, &reason) {
                    Ok(()) => {
                        self.metrics.ingest_refusal(refusal.label());
                        Outcome::Refused(reason)
                    }
                    Err(e) => Outcome::Failed(e.to_string()),
                }
            }
            Err(ConvertError::Failed(failure @ Failure::NoMemory)) => Outcome::NoMemory(failure.to_string()),
            Err(ConvertError::Failed(failure @ Failure::TimedOut)) => Outcome::TimedOut(failure.to_string()),
            Err(ConvertError::Failed(failure)) => {
                if matches!(failure, Failure::DigestMismatch) {
                    // It was read from a disk that lies; the next try fetches it again.
                    let forgotten = self.runtime.block_on(self.blobs.forget_damaged(&job.layer));
                    if let Err(error) = forgotten {
                        tracing::error!(%error, layer = %job.layer, "failed to forget a damaged original");
                    }
                }
                Outcome::Failed(failure.to_string())
            }
        }
    }

    fn open(&self, job: &Job) -> Result<Blob, String> {
        let recorded = self.store.sources(&job.layer).map_err(|e: StoreError| e.to_string())?;
        let mut sources: Vec<Source> = job.source.iter().cloned().collect();
        sources.extend(recorded.into_iter().filter(|s| job.source.as_ref() != Some(s)));
        let mut reason = "read the original: no source is known".to_owned();
        for source in sources.iter().take(SOURCES_TRIED_MAX) {
            let caller = match job.source.as_ref() == Some(source) {
                true => &job.caller,
                false => &Caller::Server,
            };
            match self.runtime.block_on(self.blobs.open(source, caller, &job.layer)) {
                Ok(blob) => return Ok(blob),
                Err(error) => reason = format!("read the original: {error}"),
            }
        }
        Err(reason)
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

    fn report(&self, layer: &BlobDigest, outcome: &Outcome, wall: Duration, progress: &Progress) {
        let (name, reason) = match outcome {
            Outcome::Settled => return,
            Outcome::Ready => ("ready", ""),
            Outcome::Refused(reason) => ("refused", reason.as_str()),
            Outcome::Failed(reason) => ("failed", reason.as_str()),
            Outcome::TimedOut(reason) => ("timed_out", reason.as_str()),
            Outcome::NoMemory(reason) => ("postponed", reason.as_str()),
            Outcome::Slow(_) => ("postponed", aside::REASON),
        };
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let bytes = [
            ("compressed", read(&progress.compressed)),
            ("tar", read(&progress.tar)),
            ("new_chunks", read(&progress.new_chunks)),
            ("reused_chunks", read(&progress.reused_chunks)),
        ];
        self.metrics.ingest_layer(name);
        tracing::Span::current().record("outcome", name);
        self.metrics
            .ingest_seconds(wall.as_secs_f64(), progress.cpu().as_secs_f64());
        for (kind, n) in bytes {
            self.metrics.ingest_bytes(kind, n);
        }
        tracing::info!(
            %layer,
            outcome = name,
            reason,
            wall_ms = wall.as_millis() as u64,
            cpu_ms = progress.cpu().as_millis() as u64,
            compressed_bytes = bytes[0].1,
            tar_bytes = bytes[1].1,
            new_chunk_bytes = bytes[2].1,
            reused_chunk_bytes = bytes[3].1,
            "a conversion ended"
        );
    }
}

#[derive(Debug)]
enum Outcome {
    /// Nothing was left to do.
    Settled,
    Ready,
    Refused(String),
    Failed(String),
    /// A failure like any other, and the one that the layer's maker can cause.
    TimedOut(String),
    /// Others have it.
    NoMemory(String),
    /// It arrives slowly, and others wait.
    Slow(Blob),
}

/// Lowers the priority of this thread and of those it starts (Linux: nice values are per thread and inherited).
fn yield_to_serving(niceness: u8) {
    let niceness = i32::from(niceness.min(19));
    if let Err(error) = rustix::process::setpriority_process(None, niceness) {
        tracing::warn!(%error, "conversions run at the server's own priority");
    }
}
