//! Getting at a layer's original.
//!
//! In: a job. Out: its blob as soon as an upstream has told the size; or, when others want the thread before, what the
//! layer waits for.
//! Invariant: sources are tried in order, and a bounded number of them; only the job's own is asked on behalf of its caller.
//! Not here: reading it ([`crate::read::blob`]).

use headstart_layer_format::BlobDigest;
use tokio::time::timeout_at;
use tracing::{Instrument as _, Span};

use super::aside::Awaited;
use super::outcome::Outcome;
use super::{Job, Shared};
use crate::read::blobs::{Blob, Blobs};
use crate::read::patience::Patience;
use crate::store::facts::Source;
use crate::upstream::Caller;

/// Sources tried for one conversion.
const SOURCES_TRIED_MAX: usize = 4;

impl Shared {
    pub(super) fn open(&self, job: &Job, mut patience: Patience) -> Result<Blob, Outcome> {
        let recorded = self.store.sources(&job.layer);
        let recorded = recorded.map_err(|error| Outcome::Failed(error.to_string()))?;
        let mut sources: Vec<(Source, Caller)> = Vec::new();
        sources.extend(job.source.clone().map(|source| (source, job.caller.clone())));
        let others = recorded.into_iter().filter(|s| job.source.as_ref() != Some(s));
        sources.extend(others.map(|source| (source, Caller::Server)));
        sources.truncate(SOURCES_TRIED_MAX);

        let opening = open_first(self.blobs.clone(), job.layer, sources);
        let opening = self.stop.clone().run_until_cancelled_owned(opening);
        let mut opening = self.runtime.spawn(opening.instrument(Span::current()));
        loop {
            let look_at = patience.until();
            let opened = self
                .runtime
                .block_on(async { timeout_at(look_at.into(), &mut opening).await });
            match opened {
                Ok(Ok(Some(opened))) => return opened.map_err(Outcome::Failed),
                Ok(Ok(None) | Err(_)) => {
                    return Err(Outcome::Failed("read the original: the server is stopping".into()));
                }
                // Nothing is here, and something is missing.
                Err(_) if patience.is_over(0, 1) => return Err(Outcome::Slow(Awaited::Head(opening))),
                Err(_) => {}
            }
        }
    }
}

async fn open_first(blobs: Blobs, layer: BlobDigest, sources: Vec<(Source, Caller)>) -> Result<Blob, String> {
    let mut reason = "read the original: no source is known".to_owned();
    for (source, caller) in &sources {
        match blobs.open(source, caller, &layer).await {
            Ok(blob) => return Ok(blob),
            Err(error) => reason = format!("read the original: {error}"),
        }
    }
    Err(reason)
}
