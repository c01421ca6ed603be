//! A blob's body on its way from an upstream.
//!
//! In: a response whose head was read. Out: its bytes, counted.
//! Invariant: a body that breaks off is one failure, one that ends is a success. A body brings bytes of `start..end` and
//! never one beyond `end`, whatever the upstream sends. One that drips is given up: it would hold a turn, and everybody
//! who waits for its end, for as long as the upstream likes.
//! Not here: verification, and resuming (`read/`).

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use reqwest::Response;

use super::{
    UpstreamError,
    breaker::Breaker,
    budget::{Budget, Place},
};
use crate::{config::FetchConfig, metrics::Metrics};

/// Answer to GET of a blob from an offset on.
#[derive(Debug)]
pub enum BlobAnswer {
    Body(BlobBody),
    /// The range asked for begins at the end of the blob, which has this size.
    Complete {
        size: u64,
    },
}

/// Answer to GET of a part of a blob.
#[derive(Debug)]
pub enum RangeAnswer {
    /// Begins where asked; its `size` and `end` are known; ends there or, if the blob or the upstream's patience does,
    /// before.
    Part(BlobBody),
    /// The upstream ignored the range: everything, from 0.
    Whole(BlobBody),
    /// The range begins at or behind the end of the blob, which has this size.
    PastEnd { size: u64 },
}

/// A blob's body from `start` on.
#[derive(Debug)]
pub struct BlobBody {
    /// 0 when the upstream ignored the range.
    pub start: u64,
    /// Where the body ends, when the upstream said so.
    pub end: Option<u64>,
    /// Size of the whole blob, when the upstream said so.
    pub size: Option<u64>,
    at: u64,
    response: Box<Response>,
    /// Looked at, and not read yet: an answer of `response`.
    peeked: Option<reqwest::Result<Option<Bytes>>>,
    flow: Box<Flow>,
    /// Bytes that the budget has not been asked for.
    owed: u64,
    /// Of this window: what came, and how long we waited for it. What the disk and the budget take is our own time.
    came: u64,
    waited: Duration,
}

/// A body that brings less than this is given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Bytes.
    pub(super) least: u64,
    pub(super) window: Duration,
}

impl Pace {
    pub(super) fn new(fetch: &FetchConfig) -> Self {
        let window = Duration::from_millis(fetch.min_rate_window_ms);
        let least = u128::from(fetch.min_rate_bytes_per_sec) * window.as_millis() / 1000;
        Self {
            least: u64::try_from(least).unwrap_or(u64::MAX),
            window,
        }
    }
}

/// What a body needs of its upstream while it runs.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) upstream: String,
    pub(super) breaker: Breaker,
    pub(super) budget: Budget,
    pub(super) metrics: Metrics,
    pub(super) pace: Pace,
    #[expect(dead_code, reason = "held for its drop")]
    pub(super) place: Place,
}

impl BlobBody {
    pub(super) fn new(response: Response, start: u64, end: Option<u64>, size: Option<u64>, flow: Flow) -> Self {
        Self {
            start,
            end,
            size,
            at: start,
            response: Box::new(response),
            peeked: None,
            flow: Box::new(flow),
            owed: 0,
            came: 0,
            waited: Duration::ZERO,
        }
    }

    /// The next bytes if they have come already, of `start..end`; they are still to be read. Waits for nothing, the budget
    /// included.
    pub fn peek(&mut self) -> &[u8] {
        if self.peeked.is_none() {
            self.peeked = self.response.chunk().now_or_never();
        }
        let Some(Ok(Some(chunk))) = &self.peeked else {
            return &[];
        };
        let left = self.end.map_or(u64::MAX, |end| end.saturating_sub(self.at));
        &chunk[..chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX))]
    }

    /// The next bytes; `None` at the end of the body.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let left = self.end.map(|end| end.saturating_sub(self.at));
        if left == Some(0) {
            return Ok(None);
        }
        let asked = Instant::now();
        let chunk = match self.peeked.take() {
            Some(peeked) => peeked,
            None => self.response.chunk().await,
        };
        self.waited += asked.elapsed();
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                self.flow.breaker.failed();
                return Err(error.into());
            }
        };
        let Some(mut chunk) = chunk else {
            self.flow.breaker.succeeded();
            return Ok(None);
        };
        let came = chunk.len() as u64;
        self.flow.metrics.upstream_bytes(&self.flow.upstream, came);
        self.flow.budget.bytes(came, &mut self.owed).await;
        if let Some(left) = left {
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        self.at += chunk.len() as u64;
        self.came += came;
        if Some(self.at) == self.end {
            self.flow.breaker.succeeded();
        } else if self.waited >= self.flow.pace.window {
            if self.came < self.flow.pace.least {
                self.flow.breaker.failed();
                return Err(UpstreamError::Timeout);
            }
            (self.came, self.waited) = (0, Duration::ZERO);
        }
        Ok(Some(chunk))
    }
}
