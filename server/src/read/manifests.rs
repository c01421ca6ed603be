//! Manifests, by tag and by digest.
//!
//! In: a source, a reference and what the client takes. Out: a verified [`Manifest`], byte for byte the upstream's.
//! Invariant: by digest, bytes are kept for ever and given to whoever's repository has them. By tag, the policy of the
//! upstream says how long its word is good; after that it is asked by HEAD, and only when it is in trouble does the last
//! digest it confirmed answer, marked so. A client is given for a tag what it takes, or whatever the upstream gives to
//! its own `Accept`; never a 406 of ours. Requests for the same thing at the same time are one request upstream.
//! Looking at a manifest starts nothing; being given it ([`Manifests::given`]) starts the conversion of its layers, for which
//! the whole image is fetched.
//! Not here: asking an upstream ([`fetch`]), what a tag means ([`tag`]), the disk ([`super::shelf`]), what a manifest names
//! ([`pull`], [`super::obtainable`]), and the conversion (`layers.rs` is told, and does not delay us).

mod at_hand;
mod fetch;
mod pull;
mod request;
mod tag;

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use tokio::time::timeout_at;

use super::{
    accept::Class,
    blobs::Blobs,
    coalesce::{Coalesce, NoResult},
    document::is_index,
    error::ReadError,
    layers::Layers,
    negative::{Negative, What},
    obtainable::Obtainable,
    policy::Policies,
    shelf::{Found, Shelf},
};
use crate::{
    config::FetchConfig,
    metrics::Metrics,
    store::{
        Store,
        facts::{ManifestFact, Source},
        originals::Originals,
    },
    upstream::{Caller, Reference, Tag, UpstreamError, Upstreams},
};
use request::Key;

/// Tags whose last confirmation is kept in memory, to the millisecond; for others the store knows it to the second.
const RECENT_MAX: u64 = 65_536;

pub use self::request::{Purpose, Request};

/// A manifest to serve.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub bytes: Bytes,
    pub warning: Option<Warning>,
    fact: Arc<ManifestFact>,
}

impl Manifest {
    pub fn digest(&self) -> &BlobDigest {
        &self.fact.digest
    }

    pub fn media_type(&self) -> &str {
        &self.fact.media_type
    }
}

/// Why a tag's answer may not be what the upstream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The upstream could not be asked.
    Stale,
    /// The upstream said that the tag is gone.
    Deleted,
}

/// All manifests; clones share one state.
#[derive(Clone, Debug)]
pub struct Manifests {
    inner: Arc<Inner>,
    running: Coalesce<Key, Result<Manifest, ReadError>>,
}

#[derive(Debug)]
struct Inner {
    shelf: Shelf,
    upstreams: Upstreams,
    layers: Layers,
    obtainable: Obtainable,
    policies: Policies,
    negative: Negative,
    size_max: u64,
    metrics: Metrics,
    recent: moka::sync::Cache<(Source, Tag, Class), (BlobDigest, Instant)>,
    /// By digest, so that a tag and its digest do not fetch the same bytes twice. And by class: an upstream may have
    /// nothing for a client that takes too little, which is no answer to others.
    fetches: Coalesce<(Source, Caller, BlobDigest, Class), Result<Found, ReadError>>,
}

/// What [`Manifests`] works with.
#[derive(Debug)]
pub struct Parts {
    pub originals: Originals,
    pub store: Store,
    pub upstreams: Upstreams,
    pub blobs: Blobs,
    pub layers: Layers,
    pub policies: Policies,
    pub negative: Negative,
    pub metrics: Metrics,
}

impl Manifests {
    pub fn new(parts: Parts, config: &FetchConfig) -> Self {
        let Parts {
            originals,
            store,
            upstreams,
            blobs,
            layers,
            policies,
            negative,
            metrics,
        } = parts;
        let size_max = config.manifest_size_max;
        Self {
            inner: Arc::new(Inner {
                obtainable: Obtainable::new(blobs, store.clone(), upstreams.clone()),
                shelf: Shelf::new(originals, store, size_max, metrics.clone()),
                upstreams,
                layers,
                policies,
                negative,
                size_max,
                metrics,
                recent: moka::sync::Cache::new(RECENT_MAX),
                fetches: Coalesce::default(),
            }),
            running: Coalesce::default(),
        }
    }

    /// A client is given this manifest, with its bytes: it will most likely pull what it names. Does not block.
    pub fn given(&self, manifest: &Manifest, caller: &Caller) {
        self.inner.layers.manifest_served(&manifest.fact, caller);
    }

    /// Whether a client that is about to be given this manifest, the answer to `request`, can have what it names, as far as
    /// the upstream can be asked at once. Costs nothing when all of it is here. Of what is not, a pull's first requests have
    /// begun afterwards.
    pub async fn ready(&self, request: &Request, manifest: &Manifest) -> Result<(), ReadError> {
        // What is served in spite of the upstream's trouble was looked at for just that.
        let begins = self.inner.begins(&manifest.fact);
        let obtainable = &self.inner.obtainable;
        if manifest.warning.is_some() || obtainable.is_begun(&request.caller, &manifest.fact, begins) {
            return Ok(());
        }
        self.inner.ready(request, manifest).await
    }

    /// The same as [`Manifests::get`], by this time. When the upstream has not answered by then, that is trouble as any
    /// other: a tag's last digest may be served for it. What was begun goes on, for who asks next.
    pub async fn get_by(&self, by: Instant, request: &Request) -> Result<Manifest, ReadError> {
        match (timeout_at(by.into(), self.get(request)).await, &request.reference) {
            (Ok(got), _) => got,
            (Err(_), Reference::Digest(_)) => Err(UpstreamError::Timeout.into()),
            (Err(_), Reference::Tag(tag)) => self.inner.without_answer(request, tag, UpstreamError::Timeout).await,
        }
    }

    /// The manifest that is asked for.
    pub async fn get(&self, request: &Request) -> Result<Manifest, ReadError> {
        let tag = match &request.reference {
            Reference::Digest(digest) => return self.inner.by_digest(request, digest).await,
            Reference::Tag(tag) => tag,
        };
        // Most requests end here; joining others would cost more than the answer.
        if let Some(found) = self.inner.by_fresh_tag(request, tag).await? {
            return Ok(found);
        }
        let result = self.running.run(request.key(), || {
            let (inner, request, tag) = (self.inner.clone(), request.clone(), tag.clone());
            async move { inner.by_tag(&request, &tag).await }
        });
        match result.await {
            Ok(result) => result,
            Err(NoResult::Busy) => self.inner.without_answer(request, tag, UpstreamError::Busy).await,
            Err(why) => Err(why.into()),
        }
    }
}

impl Inner {
    /// Whether a pull of the manifest begins its blobs.
    fn begins(&self, fact: &ManifestFact) -> bool {
        self.layers.converts() && !is_index(&fact.media_type)
    }

    async fn by_digest(self: &Arc<Self>, request: &Request, digest: &BlobDigest) -> Result<Manifest, ReadError> {
        let Request { source, caller, .. } = request;
        if let Some(found) = self.shelf.find(source, digest).await? {
            self.obtainable.check(caller, &found.fact, request.way(), None).await?;
            return self.hand_out(request, found, None).await;
        }
        let what = What::Manifest(Reference::Digest(*digest), request.accept.class());
        if let Some(no) = self.negative.get(source, caller, &what) {
            return Err(no.into());
        }
        let found = self.fetch_digest(request, digest, Some(what)).await?;
        self.vouch(request, &found).await?;
        self.hand_out(request, found, None).await
    }

    async fn hand_out(&self, request: &Request, found: Found, warning: Option<Warning>) -> Result<Manifest, ReadError> {
        self.obtainable.no_setback(&request.caller, &found.fact).await?;
        Ok(Manifest {
            bytes: found.bytes,
            warning,
            fact: found.fact,
        })
    }
}
