//! Whether what a manifest names can be had, asked before a manifest is served from here.
//!
//! In: a manifest that is here, and what is known about its upstream. Out: yes, or why not.
//! Invariant: podman, skopeo and CRI-O choose their mirror by the manifest, and fail for good if a blob of it cannot be
//! had afterwards. So a manifest whose blobs are neither here nor to be had is refused, and the client goes to its next
//! mirror. An image that is here as a whole costs no upstream call; that one is not is asked about once, for everybody who
//! asks within [`REMEMBERED`]. That an upstream has confirmed a manifest just now does not mean that its blobs can be had
//! (they are often elsewhere, behind another name or a firewall). For who asks for its head only, the head of one of them is
//! asked for, once a repository and [`BLOBS_GOOD_FOR`]; a head that takes long is taken for a yes. Who asks for the manifest
//! itself will fetch its blobs: all that are not here are begun or asked about ([`pull`]).
//! A blob is here only for repositories that are known to have it: where not everybody may read everything, one that came
//! with another repository is confirmed in the background while the upstream is up ([`Obtainable::confirm_soon`]).
//! Not here: which manifests are confirmed when ([`super::manifests`]), what is not here ([`missing`]), and how an upstream is
//! asked ([`probe`]).

mod missing;
mod probe;
mod pull;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headstart_layer_format::BlobDigest;
use moka::sync::Cache;

use super::{
    blobs::{Blobs, Way},
    blocking::blocking,
    coalesce::Coalesce,
    document::{is_foreign, is_index},
    error::ReadError,
};
use crate::{
    store::{
        Store,
        facts::{ManifestFact, Source},
    },
    upstream::{Caller, Health, UpstreamError, Upstreams},
};
use missing::Missing;
use pull::Pull;

/// What an upstream is asked about, on whose behalf, and how.
type Question = (Source, Caller, Missing, Way);

/// An upstream that answered this recently is taken to be up.
const GOOD_FOR: Duration = Duration::from_secs(5);

/// A repository one of whose blobs was to be had this recently is taken to have the others.
const BLOBS_GOOD_FOR: Duration = Duration::from_secs(60);

/// Nobody waits longer before a confirmed manifest is served: a slow upstream is not one that has nothing.
pub const VOUCH_MAX: Duration = Duration::from_secs(2);

/// How long an answer about one manifest is good. Blobs may be evicted, and upstreams recover.
const REMEMBERED: Duration = Duration::from_secs(5);

/// Manifests remembered: what a cluster pulls within a few seconds.
const ENTRIES_MAX: u64 = 8192;

/// Clones share what is remembered.
#[derive(Clone, Debug)]
pub struct Obtainable {
    inner: Arc<Inner>,
    probes: Coalesce<Question, Result<(), UpstreamError>>,
    beginning: Coalesce<Pull, Result<bool, ReadError>>,
}

#[derive(Debug)]
struct Inner {
    blobs: Blobs,
    store: Store,
    upstreams: Upstreams,
    complete: Cache<(Source, BlobDigest), ()>,
    /// Manifests whose blobs were looked at in the background.
    confirmed: Cache<(Source, BlobDigest), ()>,
    probed: Cache<Question, Result<(), UpstreamError>>,
    /// Manifests of which everything is here, has begun to come, or was promised a moment ago; and until when that is good.
    begun: Cache<Pull, Instant>,
    /// An outage concerns everything of an upstream.
    down: Cache<String, UpstreamError>,
    /// Repositories that gave the head of a blob, or did not: of these, an upstream that answers is no proof.
    vouched: Cache<(Source, Caller), ()>,
    suspect: Cache<(Source, Caller), ()>,
}

impl Obtainable {
    pub fn new(blobs: Blobs, store: Store, upstreams: Upstreams) -> Self {
        Self {
            inner: Arc::new(Inner {
                blobs,
                store,
                upstreams,
                complete: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(REMEMBERED)
                    .build(),
                confirmed: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(REMEMBERED)
                    .build(),
                probed: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(REMEMBERED)
                    .build(),
                begun: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(BLOBS_GOOD_FOR)
                    .build(),
                down: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(REMEMBERED)
                    .build(),
                vouched: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(BLOBS_GOOD_FOR)
                    .build(),
                suspect: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(REMEMBERED)
                    .build(),
            }),
            probes: Coalesce::default(),
            beginning: Coalesce::default(),
        }
    }

    /// `way`: how the upstream is asked, if it is. `trouble` is what the upstream has just said about the manifest itself, if it was asked.
    pub async fn check(
        &self,
        caller: &Caller,
        fact: &ManifestFact,
        way: Way,
        trouble: Option<&UpstreamError>,
    ) -> Result<(), ReadError> {
        let inner = &self.inner;
        let source = &fact.source;
        let key = (source.clone(), fact.digest);
        if inner.complete.contains_key(&key) {
            return Ok(());
        }
        let upstream = inner.upstreams.get(&source.upstream).cloned();
        let upstream = upstream.ok_or(UpstreamError::NotFound { name_unknown: true })?;
        let suspect = inner.suspect.contains_key(&(source.clone(), caller.clone()));
        let is_good = || matches!(upstream.health(), Health::Good { since } if since.elapsed() < GOOD_FOR);
        if !suspect && trouble.is_none() && is_good() {
            return Ok(());
        }
        let Some(missing) = self.missing(fact, trouble.is_none()).await? else {
            // What only arrives is not here yet.
            if self.is_whole(fact).await? {
                inner.complete.insert(key, ());
            }
            return Ok(());
        };
        // Registries count manifests and blobs apart, so a limit on the one says nothing about the other; nor does a
        // manifest that is gone.
        let decided = trouble.filter(|e| e.is_outage() && !matches!(e, UpstreamError::TooManyRequests { .. }));
        let answer = match decided {
            Some(error) => Err(error.clone()),
            None => self.probe(source, caller, upstream, missing, way).await,
        };
        Ok(answer.inspect_err(|error| {
            tracing::info!(
                manifest = %fact.digest, upstream = source.upstream, repository = source.repository, %error,
                "manifest is withheld: not all of its blobs are here or can be had"
            );
        })?)
    }

    /// Whether everything that an image needs is here; of an index, whether one of its images is.
    pub async fn is_whole(&self, fact: &ManifestFact) -> Result<bool, ReadError> {
        Ok(self.missing(fact, false).await?.is_none())
    }

    /// Whether nothing needs to be asked before a manifest that the upstream has just confirmed is served.
    pub fn is_vouched(&self, source: &Source, caller: &Caller) -> bool {
        self.inner.vouched.contains_key(&(source.clone(), caller.clone()))
    }

    /// The upstream has just given or confirmed this manifest, so it can be asked about blobs, too: those that are here
    /// because of another repository and whose place in this one only the manifest claims. Does not block.
    pub fn confirm_soon(&self, caller: &Caller, fact: &ManifestFact) {
        let inner = &self.inner;
        let key = (fact.source.clone(), fact.digest);
        if !inner.store.doubts_manifests() || is_index(&fact.media_type) || inner.confirmed.contains_key(&key) {
            return;
        }
        inner.confirmed.insert(key, ());
        let members = fact.members.iter().filter(|digest| !is_foreign(fact, digest));
        inner
            .blobs
            .confirm_soon(&fact.source, caller, members.copied().collect());
    }

    /// Of an image whose manifest the upstream has just confirmed: whether its repository gives blobs at all.
    pub async fn vouch(&self, caller: &Caller, fact: &ManifestFact) -> Result<(), ReadError> {
        let Some(missing) = self.missing(fact, true).await? else {
            return Ok(());
        };
        if self.ask_for(caller, fact, missing, Way::Head).await? {
            self.inner.vouched.insert((fact.source.clone(), caller.clone()), ());
        }
        Ok(())
    }

    /// Whether something that the manifest names could not be had a moment ago. Costs no upstream call, so it is asked of
    /// manifests that the upstream has just confirmed, too.
    pub async fn no_setback(&self, caller: &Caller, fact: &ManifestFact) -> Result<(), ReadError> {
        let inner = &self.inner;
        let of_index = is_index(&fact.media_type);
        let setback = |digest: &BlobDigest| {
            let error = match of_index {
                true => inner.blobs.withheld(&fact.source, caller, digest),
                false => inner.blobs.setback(&fact.source, caller, digest),
            };
            Some((*digest, error?))
        };
        let needed = fact.members.iter().filter(|digest| !is_foreign(fact, digest));
        let mut setbacks: Vec<_> = needed.filter_map(setback).collect();
        if !of_index && !setbacks.is_empty() {
            let (inner, source) = (inner.clone(), fact.source.clone());
            setbacks = blocking(move || {
                let mut left = Vec::new();
                for setback in setbacks {
                    if !inner.is_here(&source, &setback.0)? {
                        left.push(setback);
                    }
                }
                Ok(left)
            })
            .await?;
        }
        if of_index && setbacks.is_empty() && !inner.blobs.has_no_setbacks() {
            let (inner, fact, caller) = (inner.clone(), fact.clone(), caller.clone());
            setbacks = blocking(move || Ok(inner.below(&fact, &caller)?.into_iter().collect())).await?;
        }
        let Some((_, error)) = setbacks.into_iter().next() else {
            return Ok(());
        };
        // One broken platform must not keep those from their image whose platform is here as a whole.
        if of_index && self.is_whole(fact).await? {
            return Ok(());
        }
        tracing::info!(
            manifest = %fact.digest, upstream = fact.source.upstream, repository = fact.source.repository, %error,
            "manifest is withheld: one of its blobs could not be had a moment ago"
        );
        if !of_index {
            // So that the index above it is withheld next time: its platform is chosen after the mirror.
            inner.blobs.withhold(&fact.source, caller, &fact.digest, &error);
        }
        Err(error)
    }
}
