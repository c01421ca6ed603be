//! One run: a few chunks, fetched together, from whichever server has good bytes.
//!
//! In: a [`Claim`] on chunks, and a deadline. Out: each chunk is put into the sink, then its flight lands; or it fails.
//! Invariant: every claimed flight ends, also when this task panics or is dropped (the claim's guard). A chunk that
//! fails its check is asked again elsewhere and never reaches the sink.
//! Not here: who waits (`fetch/single_flight.rs`), and the two request forms (`fetch/data.rs`).

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use headstart_layer_format::toc::Chunk;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout, timeout_at};
use tracing::{Instrument as _, Span, info_span};

use super::data::Frame;
use super::error::FetchError;
use super::servers::Server;
use super::single_flight::{Flight, Inner};
use super::verify::VerifiedChunk;
use crate::telemetry::{self, number};

/// First pause between two rounds over the servers; doubles up to `retry_pause_ms_max`.
const PAUSE: Duration = Duration::from_millis(25);
/// Rounds in which servers answered, but none with good bytes, before a reader is told so. One more than a server that
/// is just being restarted or repaired needs; waiting longer for a definite no is no use to anybody.
const REFUSED_ROUNDS_MAX: u32 = 3;

/// How long the background fill stands still for readers at a time: enough for any one of them, not for ever when there
/// always is another.
const FILL_PATIENCE: Duration = Duration::from_millis(500);

/// Who is behind a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// A reader waits.
    Demand,
    /// A reader will, most likely.
    Ahead,
    /// Nobody does.
    Fill,
}

/// Flights of a run that have not ended.
#[derive(Debug)]
pub(super) struct Claim {
    inner: Arc<Inner>,
    open: Mutex<BTreeMap<u32, watch::Sender<Flight>>>,
    /// Memory the whole run may take.
    cost: u64,
    why: Why,
}

impl Claim {
    pub(super) fn new(inner: Arc<Inner>, flights: Vec<(u32, watch::Sender<Flight>)>, cost: u64, why: Why) -> Arc<Self> {
        Arc::new(Self {
            inner,
            open: Mutex::new(flights.into_iter().collect()),
            cost,
            why,
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, watch::Sender<Flight>>> {
        self.open.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn chunks(&self) -> Vec<Chunk> {
        let table = self.inner.contents.chunks();
        self.lock().keys().filter_map(|&i| table.chunk(i)).collect()
    }

    fn end(&self, index: u32, how: Flight) {
        let sender = self.lock().remove(&index);
        if let Some(sender) = sender {
            self.inner.forget(index);
            sender.send_replace(how);
        }
    }

    fn fail(&self, error: &FetchError) {
        let indices: Vec<u32> = self.lock().keys().copied().collect();
        for index in indices {
            self.end(index, Flight::Failed(error.clone()));
        }
    }

    /// Checks a frame and keeps the chunk. Blocks: CPU and disk.
    pub(super) fn accept(&self, chunk: Chunk, frame: &Bytes) -> Result<(), FetchError> {
        let verified = VerifiedChunk::open(chunk, frame)?;
        self.inner
            .sink
            .put(verified)
            .map_err(|e| FetchError::Disk(e.to_string()))?;
        self.end(chunk.index, Flight::Landed);
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.fail(&FetchError::Deadline);
    }
}

impl Claim {
    /// Ends the flights of chunks that came another way.
    fn collect(&self) {
        let here: Vec<u32> = self
            .lock()
            .keys()
            .copied()
            .filter(|&i| self.inner.sink.has(i))
            .collect();
        for index in here {
            self.end(index, Flight::Landed);
        }
    }

    /// Takes what other layers of this node have.
    async fn take_near(self: &Arc<Self>) {
        let near: Vec<u32> = self
            .lock()
            .keys()
            .copied()
            .filter(|&i| self.inner.sink.is_near(i))
            .collect();
        if near.is_empty() {
            return;
        }
        let claim = Arc::clone(self);
        // A panic in there leaves chunks that are fetched.
        let _ = tokio::task::spawn_blocking(move || {
            for index in near {
                if claim.inner.sink.take_near(index) {
                    claim.end(index, Flight::Landed);
                }
            }
        })
        .await;
    }

    /// Whether a reader has joined: the table of flights has one receiver of each itself.
    fn is_wanted(&self) -> bool {
        self.lock().values().any(|flight| flight.receiver_count() > 1)
    }

    /// Between two chunks: lets readers have the connection, unless it is this run that they wait for.
    async fn give_way(&self) {
        if self.why == Why::Fill {
            let demand = self.inner.servers.demand();
            demand.quiet_unless(FILL_PATIENCE, || self.is_wanted()).await;
        }
    }

    /// Of runs that readers wait for, if there are not too many. Others are part of what they are for.
    fn span(&self) -> Span {
        if self.why != Why::Demand {
            return Span::none();
        }
        telemetry::miss(|without_span| {
            let (chunks, empty) = (self.chunks(), tracing::field::Empty);
            let frame_bytes: u64 = chunks.iter().map(|c| c.frame.len).sum();
            info_span!(
                parent: None, "miss", otel.kind = "client", layer = %self.inner.key.layer,
                chunks = number(chunks.len()), frame_bytes = number(frame_bytes), without_span = number(without_span),
                server = empty, source = empty,
            )
        })
    }

    fn is_done(&self) -> bool {
        self.lock().is_empty()
    }
}

/// Fetches until every flight of the claim has landed, the servers have said no, or time is up. With a permit given it is
/// a prefetch: one round, so that a server in trouble is not kept busy with what nobody waits for (a reader who joined
/// starts a run of his own).
pub(super) async fn drive(claim: Arc<Claim>, permit: Option<OwnedSemaphorePermit>, deadline: Instant) {
    let span = claim.span();
    fetch(claim, permit, deadline).instrument(span).await;
}

async fn fetch(claim: Arc<Claim>, permit: Option<OwnedSemaphorePermit>, deadline: Instant) {
    let last_error = Mutex::new(FetchError::Deadline);
    let is_demand = permit.is_none();
    let _ = timeout_at(deadline.into(), rounds(&claim, permit, &last_error)).await;
    if is_demand && !claim.is_done() {
        from_original(&claim, &last_error, deadline).await;
    }
    let left = claim.lock().len();
    if left > 0 {
        let error = last_error.lock().unwrap_or_else(|p| p.into_inner()).clone();
        claim.inner.counters.failed_runs.add(1);
        tracing::warn!(layer = %claim.inner.key.layer, chunks = left, error = %error, "chunk-fetch-failed");
        telemetry::failed(&Span::current(), &error);
        claim.fail(&error);
    }
}

async fn rounds(claim: &Arc<Claim>, mut permit: Option<OwnedSemaphorePermit>, last_error: &Mutex<FetchError>) {
    claim.take_near().await;
    if claim.is_done() {
        Span::current().record("source", "near");
        return;
    }
    let servers = &claim.inner.servers;
    let prefetch = permit.is_some();
    let pause_max = Duration::from_millis(servers.config().retry_pause_ms_max);
    let mut pause = PAUSE;
    let mut refused_rounds = 0;
    let started = Instant::now();
    let mut original = None;
    loop {
        let mut refused = true;
        for server in servers.order() {
            // Held while bytes may flow only: a run that pauses leaves the memory to others.
            let held = match permit.take() {
                Some(permit) => Some(permit),
                None if prefetch => match servers.budget().try_acquire(claim.cost) {
                    Some(permit) => Some(permit),
                    None => return,
                },
                None => servers.budget().acquire(claim.cost).await,
            };
            let outcome = from_server(claim, &server).await;
            drop(held);
            match outcome {
                Ok(()) => {
                    Span::current().record("source", "server");
                    return;
                }
                Err(e) => {
                    refused &= !e.is_transient();
                    let disk = matches!(e, FetchError::Disk(_));
                    *last_error.lock().unwrap_or_else(|p| p.into_inner()) = e;
                    if disk {
                        return;
                    }
                }
            }
        }
        if prefetch {
            return;
        }
        if refused {
            refused_rounds += 1;
            if refused_rounds >= REFUSED_ROUNDS_MAX {
                return;
            }
        }
        if started.elapsed() >= claim.inner.rebuilds.config().start_after() {
            original = claim.inner.rebuild();
        }
        let this_pause = jittered(pause);
        // What comes out of the original need not wait for the next round.
        match &mut original {
            Some(watch) => {
                if let Ok(Err(_)) = timeout(this_pause, watch.changed()).await {
                    sleep(this_pause).await;
                }
            }
            None => sleep(this_pause).await,
        }
        claim.collect();
        if claim.is_done() {
            return;
        }
        pause = (pause * 2).min(pause_max);
    }
}

/// The servers have failed, by saying no or until the deadline. The layer's original is slow and sure.
async fn from_original(claim: &Arc<Claim>, last_error: &Mutex<FetchError>, deadline: Instant) {
    if matches!(
        &*last_error.lock().unwrap_or_else(|p| p.into_inner()),
        FetchError::Disk(_)
    ) {
        return;
    }
    let Some(mut watch) = claim.inner.rebuild() else {
        return;
    };
    let until = deadline + claim.inner.rebuilds.config().wait_max();
    let landing = async {
        loop {
            claim.collect();
            if claim.is_done() || watch.changed().await.is_err() {
                break;
            }
        }
    };
    let _ = timeout_at(until.into(), landing).await;
    claim.collect();
    Span::current().record("source", "original");
}

/// Between half of it and all of it: nodes that lost the same server at the same time do not come back together.
pub(super) fn jittered(pause: Duration) -> Duration {
    // A hasher's keys are random, and this is no secret.
    let random = RandomState::new().build_hasher().finish() % 512;
    pause / 2 + pause * random as u32 / 1024
}

/// Asks one server for what is still open: by Range, and if that gives wrong or no answers, by digest.
async fn from_server(claim: &Arc<Claim>, server: &Server) -> Result<(), FetchError> {
    let chunks = claim.chunks();
    let neighbours = chunks.windows(2).all(|w| w[0].index + 1 == w[1].index);
    if neighbours {
        match attempt(claim, server, Ask::Range, chunks).await {
            Ok(()) => return Ok(()),
            Err(e @ (FetchError::Unreachable(_) | FetchError::Disk(_))) => return Err(e),
            Err(_) => {}
        }
    }
    attempt(claim, server, Ask::Digests, claim.chunks()).await
}

#[derive(Clone, Copy, Debug)]
enum Ask {
    Range,
    Digests,
}

async fn attempt(claim: &Arc<Claim>, server: &Server, ask: Ask, chunks: Vec<Chunk>) -> Result<(), FetchError> {
    let inner = &claim.inner;
    inner.counters.requests.add(1);
    let mut frames = match ask {
        Ask::Range => inner.servers.range_frames(server, &inner.key, chunks).await?,
        Ask::Digests => inner.servers.listed_frames(server, &inner.key, chunks).await?,
    };
    let (began, mut bytes) = (Instant::now(), 0);
    // Checking runs beside receiving: a chunk lands as soon as its own frame is complete.
    let mut checks = JoinSet::new();
    let mut failure = None;
    let received = loop {
        claim.give_way().await;
        match inner.servers.noting(server, frames.next().await) {
            Ok(None) => break Ok(()),
            Ok(Some((_, Frame::Missing))) => failure = Some(FetchError::Rejected { status: 404 }),
            Ok(Some((chunk, Frame::Found(frame)))) => {
                bytes += frame.len() as u64;
                inner.counters.fetched_bytes.add(frame.len() as u64);
                if claim.why == Why::Fill {
                    inner.counters.fill_bytes.add(frame.len() as u64);
                }
                let claim = Arc::clone(claim);
                checks.spawn_blocking(move || claim.accept(chunk, &frame));
            }
            Err(e) => break Err(e),
        }
    };
    if claim.why != Why::Fill {
        inner.servers.pace().brought(bytes, began.elapsed());
    }
    while let Some(check) = checks.join_next().await {
        match check {
            Ok(Ok(())) => {}
            Ok(Err(e)) => {
                if let FetchError::Corrupt(why) = &e {
                    inner.counters.corrupt_chunks.add(1);
                    server.health.failed();
                    tracing::warn!(server = %server.base, layer = %inner.key.layer, %why, "chunk-corrupt");
                }
                failure = Some(e);
            }
            Err(_) => failure = Some(FetchError::Malformed("a frame broke its decoder")),
        }
    }
    match failure {
        Some(e) => Err(e),
        None => received,
    }
}
