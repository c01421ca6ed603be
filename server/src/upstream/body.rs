//! A blob's body on its way from an upstream.
//!
//! In: a response whose head was read. Out: its bytes, counted.
//! Invariant: a body that breaks off is one failure, one that ends is a success. A body brings bytes of `start..end` and never one beyond `end`, whatever the upstream sends.
//! Not here: verification, and resuming (`read/`).

use bytes::Bytes;
use reqwest::Response;

use super::{
    UpstreamError,
    breaker::Breaker,
    budget::{Budget, Place},
};
use crate::metrics::Metrics;

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
    flow: Box<Flow>,
    /// Bytes that the budget has not been asked for.
    owed: u64,
}

/// What a body needs of its upstream while it runs.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) upstream: String,
    pub(super) breaker: Breaker,
    pub(super) budget: Budget,
    pub(super) metrics: Metrics,
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
            flow: Box::new(flow),
            owed: 0,
        }
    }

    /// The next bytes; `None` at the end of the body.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let left = self.end.map(|end| end.saturating_sub(self.at));
        if left == Some(0) {
            return Ok(None);
        }
        let chunk = match self.response.chunk().await {
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
        if Some(self.at) == self.end {
            self.flow.breaker.succeeded();
        }
        Ok(Some(chunk))
    }
}
