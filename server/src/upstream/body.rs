//! A blob's body on its way from an upstream.
//!
//! In: a response whose head was read. Out: its bytes, counted.
//! Invariant: a body brings bytes of `start..end` and never one beyond `end`, whatever the upstream sends.
//! Not here: verification, and resuming (`read/`).

use bytes::Bytes;
use reqwest::Response;

use super::UpstreamError;
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
    response: Response,
    upstream: String,
    metrics: Metrics,
}

impl BlobBody {
    pub(super) fn new(
        response: Response,
        start: u64,
        end: Option<u64>,
        size: Option<u64>,
        upstream: &str,
        metrics: &Metrics,
    ) -> Self {
        Self {
            start,
            end,
            size,
            at: start,
            response,
            upstream: upstream.to_owned(),
            metrics: metrics.clone(),
        }
    }

    /// The next bytes; `None` at the end of the body.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let left = self.end.map(|end| end.saturating_sub(self.at));
        if left == Some(0) {
            return Ok(None);
        }
        let Some(mut chunk) = self.response.chunk().await? else {
            return Ok(None);
        };
        self.metrics.upstream_bytes(&self.upstream, chunk.len() as u64);
        if let Some(left) = left {
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        }
        self.at += chunk.len() as u64;
        Ok(Some(chunk))
    }
}
