//! Asking an upstream whether it gives what is missing.
//!
//! In: what is missing. Out: yes, or what the upstream said.
//! Invariant: asked once for everybody, and not again for a while. What an outage says is the whole upstream's; a no is about
//! what was asked for, and so is a GET that brings nothing. A promise ([`Way::Head`]) is never taken for a proof
//! ([`Way::FirstByte`]).
//! Not here: what is missing ([`super::missing`]).

use std::{sync::Arc, time::Instant};

use super::{Missing, Obtainable};
use crate::{
    read::{
        blobs::{Blobs, Way},
        coalesce::NoResult,
        error::ReadError,
    },
    store::facts::{ManifestFact, Source},
    upstream::{Caller, Reference, Upstream, UpstreamError},
};

impl Obtainable {
    /// "No": as far as can be told, it can be had.
    pub(super) async fn ask_for(
        &self,
        caller: &Caller,
        fact: &ManifestFact,
        missing: Missing,
        way: Way,
    ) -> Result<bool, ReadError> {
        let (inner, source, way) = (&self.inner, &fact.source, missing.way(way));
        let Some(upstream) = inner.upstreams.get(&source.upstream).cloned() else {
            return Ok(false);
        };
        match self.probe(source, caller, upstream, missing, way).await {
            Ok(()) => Ok(true),
            Err(UpstreamError::Busy) => Ok(false),
            // A limit passes; and another may hold for a GET.
            Err(UpstreamError::TooManyRequests { .. } | UpstreamError::Timeout) if way == Way::Head => Ok(false),
            Err(error) => {
                tracing::info!(
                    manifest = %fact.digest, blob = %missing.digest(), upstream = source.upstream, repository = source.repository,
                    %error, "manifest is withheld: the upstream has it, but does not give its blobs"
                );
                // The repository has other images, too: they are asked about, and not condemned.
                inner.suspect.insert((source.clone(), caller.clone()), ());
                Err(error.into())
            }
        }
    }

    /// Asks the upstream for what is missing: once for everybody, and not again for a while. Of a child, for its head.
    pub(super) async fn probe(
        &self,
        source: &Source,
        caller: &Caller,
        upstream: Arc<Upstream>,
        missing: Missing,
        way: Way,
    ) -> Result<(), UpstreamError> {
        let way = missing.way(way);
        if let Some(error) = self.inner.down.get(&source.upstream) {
            return Err(error);
        }
        let key = (source.clone(), caller.clone(), missing, way);
        if let Some(known) = self.inner.probed.get(&key) {
            return known;
        }
        let asked = Instant::now();
        let probe = self.probes.run(key.clone(), || {
            let ((source, caller, ..), blobs) = (key.clone(), self.inner.blobs.clone());
            async move { ask(&blobs, &upstream, &source, &caller, missing, way).await }
        });
        let answer = probe.await.unwrap_or_else(|why| match why {
            NoResult::Busy => Err(UpstreamError::Busy),
            NoResult::Panicked => Err(UpstreamError::Timeout),
        });
        match &answer {
            // Our own limit: it says nothing about the upstream.
            Err(UpstreamError::Busy) => {}
            // A status is about what was asked for, until the breaker has seen enough of them. A limit passes.
            Err(
                UpstreamError::Status(_) | UpstreamError::TooManyRequests { .. } | UpstreamError::Unavailable { .. },
            ) => self.inner.probed.insert(key, answer.clone()),
            Err(UpstreamError::Timeout | UpstreamError::BadAnswer(_)) if way == Way::FirstByte => {
                self.inner.probed.insert(key, answer.clone())
            }
            Err(error) if error.is_outage() => self.inner.down.insert(source.upstream.clone(), error.clone()),
            _ => self.inner.probed.insert(key, answer.clone()),
        }
        tracing::debug!(
            upstream = source.upstream,
            ?missing,
            took_ms = asked.elapsed().as_millis() as u64,
            up = answer.is_ok(),
            ?way,
            "asked the upstream for what is missing"
        );
        answer
    }
}

async fn ask(
    blobs: &Blobs,
    upstream: &Upstream,
    source: &Source,
    caller: &Caller,
    missing: Missing,
    way: Way,
) -> Result<(), UpstreamError> {
    let answer = match missing {
        Missing::Blob(digest) | Missing::Word(digest) => match blobs.asked(source, caller, &digest, way).await {
            Ok(()) => Ok(()),
            Err(ReadError::Upstream(error)) => Err(error),
            Err(ReadError::DigestMismatch) => Err(UpstreamError::BadAnswer("an empty blob in place of another")),
            // Ours, and nothing that the upstream said.
            Err(_) => Err(UpstreamError::Busy),
        },
        Missing::Child(digest) => {
            let reference = Reference::Digest(digest);
            let head = upstream
                .manifest_head(&source.repository, caller, &reference, &[])
                .await;
            match head.map(drop) {
                // Some indexes name children that were never pushed; the others can be had.
                Err(UpstreamError::NotFound { .. }) => Ok(()),
                head => head,
            }
        }
    };
    match answer {
        // A registry without HEAD is there all the same.
        Err(UpstreamError::Status(400 | 405 | 501)) => Ok(()),
        answer => answer,
    }
}
