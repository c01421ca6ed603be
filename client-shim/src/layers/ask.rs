//! The question for a layer's TOC, until there is an answer.
//!
//! In: a layer, and how long there is. Out: its TOC, or why there is none. Invariant: ends at the deadline; an answer that
//! cannot change is not asked for again.
//! Not here: which server is asked, and whether the TOC is right (`fetch::servers`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::limits::TOC_WAIT_MS_MAX;
use headstart_layer_format::{BlobDigest, Toc};
use tokio::time::sleep;
use tracing::Span;

use super::LayersError;
use crate::contents::EncodedToc;
use crate::fetch::servers::{Servers, TocAnswer};
use crate::telemetry::number;

/// Pause before a server is asked again about a layer whose conversion failed, or that could not be reached.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Asks the servers until there is a TOC, a definite no, or no time.
pub(super) async fn toc(
    servers: &Servers,
    layer: &BlobDigest,
    deadline: Instant,
) -> Result<(EncodedToc, Arc<Toc>), LayersError> {
    // A server that takes the question and never answers must not use up the time of those behind it: the first
    // round waits for no conversion, later ones for half of what is left.
    let mut wait_ms = 0;
    loop {
        let answer = servers.toc(layer, wait_ms).await;
        let left = deadline.saturating_duration_since(Instant::now()) / 2;
        wait_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).min(TOC_WAIT_MS_MAX);
        let retry = match answer {
            Ok(TocAnswer::Ready { encoded, toc }) => {
                Span::current().record("bytes", number(encoded.bytes().len()));
                return Ok((encoded, toc));
            }
            Ok(TocAnswer::Unknown) => return Err(LayersError::Unknown),
            Ok(TocAnswer::NotReady(status)) => LayersError::not_ready(*status),
            Err(e) => LayersError::Fetch(e),
        };
        let again = match &retry {
            LayersError::NotReady(_) => true,
            LayersError::Fetch(e) => e.is_transient(),
            _ => false,
        };
        if !again || deadline.saturating_duration_since(Instant::now()) <= ASK_AGAIN {
            return Err(retry);
        }
        sleep(ASK_AGAIN).await;
    }
}
