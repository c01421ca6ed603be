//! Who asks which upstream for what, and the room that all such errands share.
//!
//! In: a source, a caller and a digest. Out: requests upstream with those filled in, and permits to make them.
//! Invariant: what runs at once is bounded (fetches of the whole, ranged fetches, pass-through streams), and so is the
//! wait for a turn: who has waited in vain is told to come back rather than kept.
//! Not here: what becomes of the bytes.

use std::{
    io,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use headstart_layer_format::BlobDigest;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    error::ReadError,
    recheck::Rechecks,
    suspects::{SUSPECTED, Suspects},
    turns::{Asker, FetchTurn, Turns},
};
use crate::{
    config::{FetchConfig, HoldMode},
    metrics::Metrics,
    store::originals::Originals,
    upstream::{BlobAnswer, Caller, RangeAnswer, Upstream, UpstreamError},
};

/// After a failed write, blobs that are not here pass through unkept for this long, before one tries the disk again.
const DISK_PAUSE: Duration = Duration::from_secs(5);

/// Pauses between tries of one request: the first, and the longest.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The longest `Retry-After` that is waited for with a client at the other end.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);

/// What all errands share.
#[derive(Debug)]
pub struct Yard {
    pub originals: Originals,
    pub config: FetchConfig,
    pub metrics: Metrics,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
    pub rechecks: Rechecks,
    pub suspects: Suspects,
    wholes: Turns,
    ranges: Turns,
    passages: Turns,
    disk_failed: Mutex<Option<Instant>>,
}

impl Yard {
    pub fn new(originals: Originals, config: FetchConfig, metrics: Metrics) -> Self {
        Self {
            wholes: Turns::new(config.blobs_max),
            ranges: Turns::new(config.ranges_max),
            passages: Turns::new(config.pass_through_max),
            originals,
            config,
            metrics,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            rechecks: Rechecks::default(),
            suspects: Suspects::new(SUSPECTED),
            disk_failed: Mutex::default(),
        }
    }

    /// A turn to fetch a whole blob.
    pub async fn whole(&self, asker: Asker) -> Result<FetchTurn, ReadError> {
        self.turn(&self.wholes, asker).await
    }

    /// Whether blobs may be begun before somebody asks for them.
    pub fn begins_early(&self) -> bool {
        self.config.cold_range && !self.wholes.is_crowded() && !self.is_disk_bad()
    }

    /// A turn to fetch a range.
    pub async fn range(&self, asker: Asker) -> Result<FetchTurn, ReadError> {
        self.turn(&self.ranges, asker).await
    }

    /// A turn to stream past a disk that takes nothing.
    pub async fn passage(&self, asker: Asker) -> Result<FetchTurn, ReadError> {
        self.turn(&self.passages, asker).await
    }

    async fn turn(&self, of: &Turns, asker: Asker) -> Result<FetchTurn, ReadError> {
        let wait = Duration::from_millis(self.config.turn_wait_ms);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(ReadError::Stopping),
            turn = of.take(asker, wait) => turn.ok_or(ReadError::Busy),
        }
    }

    /// A write failed: nothing else is tried on this disk for a while, and if it is full, space is made.
    pub fn disk_failed(&self, error: &io::Error) {
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            self.originals.disk_full();
        }
        *self.disk_failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Whether a write failed a moment ago.
    pub fn is_disk_bad(&self) -> bool {
        let failed = *self.disk_failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_some_and(|at| at.elapsed() < DISK_PAUSE)
    }
}

/// Who asks which upstream for what.
#[derive(Clone, Debug)]
pub struct Errand {
    pub yard: Arc<Yard>,
    pub upstream: Arc<Upstream>,
    pub repository: String,
    pub caller: Caller,
    pub digest: BlobDigest,
    pub asker: Asker,
}

impl Errand {
    /// The blob from a byte on.
    pub async fn from(&self, at: u64) -> Result<BlobAnswer, UpstreamError> {
        self.upstream
            .blob(&self.repository, &self.caller, &self.digest, at)
            .await
    }

    /// Whether clients get nothing of it before it is verified.
    pub fn is_held(&self) -> bool {
        match self.upstream.hold_mode() {
            HoldMode::Never => false,
            HoldMode::Suspect => self.yard.suspects.has(self.upstream.name()),
            HoldMode::Always => true,
        }
    }

    /// The upstream has sent bytes that are not what the digest names. To be called before anybody is told: who asks again
    /// must find it suspected.
    pub fn lied(&self) {
        self.yard.metrics.corruption("upstream_blob");
        let upstream = self.upstream.name();
        if self.yard.suspects.add(upstream, &self.digest) && self.upstream.hold_mode() == HoldMode::Suspect {
            let for_secs = SUSPECTED.as_secs();
            tracing::warn!(
                upstream,
                for_secs,
                "upstream sends wrong bytes; nothing of its blobs goes out unverified for a while"
            );
        }
    }

    /// A part of the blob.
    pub async fn range(&self, range: Range<u64>) -> Result<RangeAnswer, UpstreamError> {
        self.upstream
            .blob_range(&self.repository, &self.caller, &self.digest, range)
            .await
    }

    /// Whether the upstream says that it has it, and its size if that is said, too.
    pub async fn word(&self) -> Result<Option<u64>, UpstreamError> {
        self.upstream
            .blob_head(&self.repository, &self.caller, &self.digest)
            .await
    }

    /// Its size, if the upstream says so in any way that costs no more than a byte.
    pub async fn size(&self) -> Result<Option<u64>, UpstreamError> {
        self.upstream
            .blob_size(&self.repository, &self.caller, &self.digest)
            .await
    }

    /// The same, where an upstream that says so in no such way is asked for all of it next.
    pub async fn size_or_all(&self) -> Result<Option<u64>, UpstreamError> {
        match self.size().await {
            Err(UpstreamError::Status(400 | 405 | 501)) => Ok(None),
            size => size,
        }
    }

    /// Its size, if the upstream says so, which has given its first byte.
    pub async fn proof(&self) -> Result<Option<u64>, UpstreamError> {
        self.upstream
            .blob_proof(&self.repository, &self.caller, &self.digest)
            .await
    }
}

/// Doubles from try to try, or is what the upstream asks for, within reason.
pub fn pause(tries: u32, error: &ReadError) -> Duration {
    if let ReadError::Upstream(
        UpstreamError::TooManyRequests {
            retry_after_secs: Some(secs),
        }
        | UpstreamError::Unavailable { retry_after_secs: secs },
    ) = error
    {
        return Duration::from_secs(*secs).clamp(PAUSE_FIRST, RETRY_AFTER_MAX);
    }
    PAUSE_FIRST
        .saturating_mul(1 << tries.saturating_sub(1).min(16))
        .min(PAUSE_MAX)
}

/// Whether the same request may succeed later.
pub fn may_pass(error: &ReadError) -> bool {
    match error {
        ReadError::Incomplete => true,
        ReadError::Upstream(UpstreamError::TooManyRequests { .. } | UpstreamError::Unavailable { .. }) => true,
        ReadError::Upstream(error) => error.is_transient(),
        _ => false,
    }
}
