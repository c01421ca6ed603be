//! One image's prefetch: the profile's missing chunks, as one stream, into the layers' caches.
//!
//! In: a profile and the layers it speaks of. Out: chunks, verified and kept, in the profile's order. Invariant: what comes
//! is what was asked for, or the stream is at its end; never more bytes than the plan allows, over all tries; a frame or two
//! in memory; a chunk that demand brought meanwhile is not written again; streams of several images take turns, chunk by chunk.
//! A long stream is asked for in parts, each before the one before it has ended, so that the link is never idle for that; of
//! all streams of the node one at a time does so, for what nobody reads yet takes room that readers' answers need (HTTP/2 has one
//! window for a connection). Whose first bytes have come is not given up because a server has no room for more just now.
//! Not here: which images, and how many at once (`profile/starts.rs`), what a part is (`profile/parts.rs`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use headstart_layer_format::TocDigest;
use headstart_layer_format::api::ChunksRequest;
use headstart_layer_format::chunk_stream::ChunkStatus;
use headstart_layer_format::limits::{CHUNK_LAYERS_MAX, CHUNK_REQUEST_MAX};
use headstart_layer_format::profile::{Profile, ProfileRequest};
use headstart_layer_format::{BlobDigest, ChunkDigest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, Span, info_span};

use super::config::PrefetchConfig;
use super::parts::{Part, Parts};
use super::plan::{Plan, Wanted};
use super::state::{Progress, State};
use crate::cache::Layer;
use crate::counters::Counters;
use crate::fetch::{ChunkSink as _, FetchError, ProfileStream, Servers};
use crate::telemetry::{self, Cause, number};

/// A stream that breaks is begun again, for what is missing then.
const TRIES: usize = 3;
/// The next part is asked for when so much of one is left, or what comes within a round trip, if that is more.
const AHEAD: u64 = 1 << 20;
/// A part for which a server has no room is asked for again so often, after this time. More than an image's time, by default,
/// with what each of them waits for by itself.
const ROOM_TRIES: u32 = 30;
const ROOM_PAUSE: Duration = Duration::from_secs(1);
/// Chunks of one stream under check at once.
const CHECKS_MAX: usize = 2;
/// Frames may be longer than this node's TOCs say, made by another zstd: by a quarter, and this.
const SLACK: u64 = 64 << 10;

pub(super) struct Work<'a> {
    pub manifest: BlobDigest,
    pub profile: &'a Profile,
    pub tocs: &'a [Option<TocDigest>],
    pub layers: &'a [Arc<Layer>],
    pub config: &'a PrefetchConfig,
    pub servers: &'a Servers,
    pub counters: &'a Arc<Counters>,
    /// One a chunk that is being received or checked, on the whole node. Fair.
    pub turns: &'a Arc<Semaphore>,
    /// Whose next part is asked for before the one under way has ended: one, on the whole node.
    pub ahead: &'a Arc<Semaphore>,
    pub state: &'a Arc<State>,
    pub stop: &'a CancellationToken,
    /// What it is for.
    pub cause: &'a Cause,
}

/// Until nothing is missing, or no more can be had.
pub(super) async fn run(work: &Work<'_>) -> Progress {
    let empty = tracing::field::Empty;
    let span = info_span!(
        parent: None, "prefetch", otel.kind = "client", manifest = %work.manifest, starts = number(work.profile.starts),
        server = empty, chunks = empty, asked_bytes = empty, received_chunks = empty, received_bytes = empty,
        late_bytes = empty, near_chunks = empty, outcome = empty,
    );
    let told = Told(work.cause.of(span), work.state);
    let progress = tries(work).instrument(told.0.clone()).await;
    told.0.record("outcome", tracing::field::debug(progress));
    progress
}

/// What has come when it ends, however that is. Without an outcome its time was up, or nobody wants it any more.
struct Told<'a>(Span, &'a State);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        let (span, now) = (&self.0, self.1.now());
        span.record("chunks", number(now.chunks));
        span.record("asked_bytes", number(now.asked_bytes));
        span.record("received_chunks", number(now.received_chunks));
        span.record("received_bytes", number(now.received_bytes));
        span.record("late_bytes", number(now.late_bytes));
        span.record("near_chunks", number(now.near_chunks));
    }
}

async fn tries(work: &Work<'_>) -> Progress {
    let mut allowance: Option<u64> = None;
    let mut error = FetchError::Deadline;
    for _ in 0..TRIES {
        let Some(mut plan) = Plan::of(work.profile, work.tocs, work.layers, work.config) else {
            return Progress::OtherTocs;
        };
        let allowance = allowance.get_or_insert_with(|| {
            work.state.change(|s| {
                s.chunks = plan.chunks as u64;
                s.asked_chunks = plan.wanted.len() as u64;
                s.asked_bytes = plan.bytes;
            });
            if plan.over > 0 {
                tracing::info!(image = %work.manifest, chunks = plan.over, "prefetch-over-its-bound");
            }
            plan.bytes.saturating_add(plan.bytes / 4).saturating_add(SLACK)
        });
        let mut parts = Parts::of(&mut plan);
        let near = take_near(work, plan.near);
        let streamed = match parts.next_part() {
            None => Ok(Progress::Done),
            Some(first) => {
                work.state.change(|s| s.progress = Progress::Streaming);
                once(work, first, parts, allowance).await
            }
        };
        // What it could not copy is a reader's to fetch.
        let _ = near.await;
        match streamed {
            Ok(progress) => return progress,
            Err(e) => error = e,
        }
        if !error.is_transient() {
            break;
        }
    }
    tracing::warn!(image = %work.manifest, %error, "prefetch-failed");
    telemetry::failed(&Span::current(), &error);
    Progress::Failed
}

/// Copies what other layers have. Runs beside the stream.
fn take_near(work: &Work<'_>, near: Vec<Wanted>) -> tokio::task::JoinHandle<()> {
    let (state, stop) = (Arc::clone(work.state), work.stop.clone());
    tokio::task::spawn_blocking(move || {
        for wanted in near {
            if stop.is_cancelled() {
                return;
            }
            let file = wanted.layer.file();
            if file.room().may_fill(wanted.chunk.range.len) && file.take_near(wanted.chunk.index) {
                state.change(|s| s.near_chunks += 1);
            }
        }
    })
}

/// A part that is on its way, or was refused.
struct Asked {
    wanted: VecDeque<Wanted>,
    bytes: u64,
    stream: AbortOnDropHandle<Result<ProfileStream, FetchError>>,
    /// Until it is read.
    ahead: Option<OwnedSemaphorePermit>,
}

fn ask(work: &Work<'_>, part: Part, ahead: Option<OwnedSemaphorePermit>) -> Asked {
    work.counters.prefetch_streams.add(1);
    let request = ProfileRequest {
        image: work.manifest,
        profile: work.profile.digest,
        have: part.have,
    };
    let (servers, listed) = (work.servers.clone(), listed(&part.wanted));
    let stream = async move { servers.profile_stream(&request, &listed).await };
    Asked {
        wanted: part.wanted,
        bytes: part.bytes,
        stream: AbortOnDropHandle::new(tokio::spawn(stream.in_current_span())),
        ahead,
    }
}

/// The next part before the one under way has ended, if nobody else on the node is so far.
fn ask_ahead(work: &Work<'_>, parts: &mut Parts) -> Option<Asked> {
    let ahead = Arc::clone(work.ahead).try_acquire_owned().ok()?;
    let part = parts.next_part()?;
    Some(ask(work, part, Some(ahead)))
}

/// The answer to a question, and what it asked for. `None`: nothing of that is missing any more.
async fn answer(
    work: &Work<'_>,
    mut asked: Asked,
    parts: &mut Parts,
) -> Result<Option<(Asked, ProfileStream)>, FetchError> {
    let mut tries = 0;
    loop {
        let broken = |_| Err(FetchError::Malformed("a request broke"));
        let error = match (&mut asked.stream).await.unwrap_or_else(broken) {
            Ok(stream) => {
                asked.ahead = None;
                return Ok(Some((asked, stream)));
            }
            Err(error) => error,
        };
        // Of an image of which nothing has come, readers fetch by themselves.
        if !error.is_for_want_of_room() || work.state.now().received_chunks == 0 || tries >= ROOM_TRIES {
            return Err(error);
        }
        // Who asked ahead had a place already, which is free by now.
        if asked.ahead.is_none() {
            tries += 1;
            tokio::time::sleep(ROOM_PAUSE).await;
        }
        parts.put_back(asked.wanted);
        match parts.next_part() {
            Some(part) => asked = ask(work, part, None),
            None => return Ok(None),
        }
    }
}

/// All parts, one after the other.
async fn once(work: &Work<'_>, first: Part, mut parts: Parts, allowance: &mut u64) -> Result<Progress, FetchError> {
    let mut checks: JoinSet<Result<(), FetchError>> = JoinSet::new();
    let mut asked = ask(work, first, None);
    let mut outcome = loop {
        let mut next = None;
        match receive(work, asked, &mut parts, &mut next, &mut checks, allowance).await {
            Ok(Progress::Done) => {}
            ended => break ended,
        }
        match next.or_else(|| Some(ask(work, parts.next_part()?, None))) {
            Some(next) => asked = next,
            None => break Ok(Progress::Done),
        }
    };
    while let Some(check) = checks.join_next().await {
        if let Err(e) = checked(work, check) {
            outcome = Err(e);
        }
    }
    outcome
}

/// One part, and before its end the question for the next.
async fn receive(
    work: &Work<'_>,
    asked: Asked,
    parts: &mut Parts,
    next_asked: &mut Option<Asked>,
    checks: &mut JoinSet<Result<(), FetchError>>,
    allowance: &mut u64,
) -> Result<Progress, FetchError> {
    let Some((asked, mut stream)) = answer(work, asked, parts).await? else {
        return Ok(Progress::Done);
    };
    let (mut expected, mut left) = (asked.wanted, asked.bytes);
    loop {
        if expected.is_empty() {
            return Ok(Progress::Done);
        }
        if next_asked.is_none() && left <= work.servers.pace().span().max(AHEAD) {
            *next_asked = ask_ahead(work, parts);
        }
        let Some(header) = stream.header().await? else {
            // What this node may not read is left out.
            return Ok(Progress::Done);
        };
        let Some(next) = skip_to(&mut expected, &mut left, &header.digest) else {
            return Err(FetchError::Malformed("a chunk came that was not asked for"));
        };
        let ChunkStatus::Found { frame_len } = header.status else {
            continue;
        };
        let Some(allowed) = allowance.checked_sub(u64::from(frame_len)) else {
            return Err(FetchError::Malformed("a prefetch is longer than its chunks"));
        };
        *allowance = allowed;
        if !next.layer.file().room().may_fill(next.chunk.range.len) {
            return Ok(Progress::NoRoom);
        }
        let Ok(turn) = Arc::clone(work.turns).acquire_owned().await else {
            return Ok(Progress::Stopped);
        };
        // From now on a reader of this chunk waits for this frame.
        let arrival = next.layer.reader().flights().arriving(next.chunk.index);
        let frame = stream.frame(frame_len).await?;
        let len = u64::from(frame_len);
        work.counters.fetched_bytes.add(len);
        work.counters.prefetch_bytes.add(len);
        work.state.change(|s| {
            s.received_chunks += 1;
            s.received_bytes += len;
        });
        let Some(arrival) = arrival else {
            work.counters.prefetch_late_bytes.add(len);
            work.state.change(|s| s.late_bytes += len);
            continue;
        };
        checks.spawn_blocking(move || {
            let _turn = turn;
            arrival.accept(&frame)
        });
        if checks.len() >= CHECKS_MAX
            && let Some(check) = checks.join_next().await
        {
            checked(work, check)?;
        }
    }
}

fn checked(work: &Work<'_>, check: Result<Result<(), FetchError>, tokio::task::JoinError>) -> Result<(), FetchError> {
    let outcome = check.unwrap_or(Err(FetchError::Malformed("a frame broke its decoder")));
    if let Err(FetchError::Corrupt(_)) = &outcome {
        work.counters.corrupt_chunks.add(1);
    }
    outcome
}

/// The next chunk with this digest; those before it do not come any more. `left` is what is still expected, in bytes.
fn skip_to(expected: &mut VecDeque<Wanted>, left: &mut u64, digest: &ChunkDigest) -> Option<Wanted> {
    while let Some(next) = expected.pop_front() {
        *left = left.saturating_sub(next.chunk.frame.len);
        if next.chunk.digest == *digest {
            return Some(next);
        }
    }
    None
}

/// The same for a server that does not know the profile.
fn listed(wanted: &VecDeque<Wanted>) -> ChunksRequest {
    let mut layers: Vec<BlobDigest> = Vec::new();
    for wanted in wanted {
        if !layers.contains(wanted.layer.digest()) && layers.len() < CHUNK_LAYERS_MAX {
            layers.push(*wanted.layer.digest());
        }
    }
    let chunks = wanted.iter().filter(|w| layers.contains(w.layer.digest()));
    ChunksRequest {
        chunks: chunks.map(|w| w.chunk.digest).take(CHUNK_REQUEST_MAX).collect(),
        layers,
    }
}
