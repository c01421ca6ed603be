//! Manifests, by tag and by digest.
//!
//! In: a source, a reference and what the client takes. Out: a verified [`Manifest`], byte for byte the upstream's.
//! Invariant: by digest, bytes are kept for ever and given to whoever's repository has them. By tag, the policy of the
//! upstream says how long its word is good; after that it is asked by HEAD, and only when it is in trouble does the last
//! digest it confirmed answer, marked so. A client is given for a tag what it takes, or whatever the upstream gives to
//! its own `Accept`; never a 406 of ours. Requests for the same thing at the same time are one request upstream.
//! Looking at a manifest starts nothing; being given it ([`Manifests::given`]) starts the conversion of its layers, for which
//! the whole image is fetched.
//! Not here: the disk ([`super::shelf`]), what a manifest names ([`pull`], [`super::obtainable`]), and the conversion
//! (`layers.rs` is told, and does not delay us).

mod pull;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use tokio::time::timeout_at;

use super::{
    accept::{Accept, Class},
    blobs::Blobs,
    coalesce::Coalesce,
    document::is_index,
    error::ReadError,
    layers::Layers,
    negative::{Negative, What},
    obtainable::Obtainable,
    policy::{Policies, Policy},
    shelf::{self, Found, Shelf},
};
use crate::{
    config::FetchConfig,
    metrics::Metrics,
    store::{
        Store,
        facts::{ManifestFact, Source},
        hasher::BlobHasher,
        originals::Originals,
    },
    upstream::{Caller, Reference, Tag, Upstream, UpstreamError, Upstreams},
};

/// Tags whose last confirmation is kept in memory, to the millisecond; for others the store knows it to the second.
const RECENT_MAX: u64 = 65_536;

pub use self::pull::Purpose;

/// A manifest to serve.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub digest: BlobDigest,
    pub media_type: String,
    pub bytes: Bytes,
    pub warning: Option<Warning>,
    fact: ManifestFact,
}

/// Why a tag's answer may not be what the upstream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The upstream could not be asked.
    Stale,
    /// The upstream said that the tag is gone.
    Deleted,
}

/// Requests with the same key get the same answer, whatever their purpose: what a look has asked for more, or a pull for
/// less, is made up for by [`Manifests::ready`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: Source,
    caller: Caller,
    reference: Reference,
    class: Class,
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

    /// Whether a client that is about to be given this manifest can have what it names, as far as the upstream can be asked
    /// at once. Costs nothing when all of it is here. Of what is not, a pull's first requests have begun afterwards.
    pub async fn ready(&self, manifest: &Manifest, caller: &Caller, accept: &Accept) -> Result<(), ReadError> {
        // What is served in spite of the upstream's trouble was looked at for just that.
        let begins = self.inner.layers.converts() && !is_index(&manifest.fact.media_type);
        if manifest.warning.is_some() || self.inner.obtainable.is_begun(caller, &manifest.fact, begins) {
            return Ok(());
        }
        self.inner.ready(manifest, caller, accept).await
    }

    /// The same as [`Manifests::get`], by this time. When the upstream has not answered by then, that is trouble as any
    /// other: a tag's last digest may be served for it. What was begun goes on, for who asks next.
    pub async fn get_by(
        &self,
        by: Instant,
        purpose: Purpose,
        source: &Source,
        caller: &Caller,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<Manifest, ReadError> {
        let got = timeout_at(by.into(), self.get(purpose, source, caller, reference, accept)).await;
        match (got, reference) {
            (Ok(got), _) => got,
            (Err(_), Reference::Digest(_)) => Err(UpstreamError::Timeout.into()),
            (Err(_), Reference::Tag(tag)) => {
                let policy = self.inner.policies.of(&source.upstream);
                let last = self.inner.last(source, tag, accept, &policy).await?;
                let last = last.map(|(digest, _)| digest);
                let spite = self
                    .inner
                    .in_spite(source, caller, tag, last, UpstreamError::Timeout, &policy);
                spite.await
            }
        }
    }

    /// The manifest that `reference` means.
    pub async fn get(
        &self,
        purpose: Purpose,
        source: &Source,
        caller: &Caller,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<Manifest, ReadError> {
        let tag = match reference {
            Reference::Digest(digest) => {
                let digest = self.inner.by_digest(purpose, source, caller, digest, accept);
                return digest.await;
            }
            Reference::Tag(tag) => tag.clone(),
        };
        // Most requests end here; joining others would cost more than the answer.
        if let Some(found) = self.inner.by_fresh_tag(source, caller, &tag, accept).await? {
            return Ok(found);
        }
        let key = Key {
            source: source.clone(),
            caller: caller.clone(),
            reference: reference.clone(),
            class: accept.class(),
        };
        let (inner, accept) = (self.inner.clone(), accept.clone());
        let result = self.running.run(key.clone(), || async move {
            inner.by_tag(purpose, &key, &tag, &accept).await
        });
        result.await.unwrap_or(Err(ReadError::Stopping))
    }
}

impl Inner {
    async fn by_digest(
        self: &Arc<Self>,
        purpose: Purpose,
        source: &Source,
        caller: &Caller,
        digest: &BlobDigest,
        accept: &Accept,
    ) -> Result<Manifest, ReadError> {
        if let Some(found) = self.shelf.find(source, digest).await? {
            self.obtainable.check(caller, &found.fact, None).await?;
            return self.hand_out(found, caller, None).await;
        }
        let what = What::Manifest(Reference::Digest(*digest), accept.class());
        if let Some(no) = self.negative.get(source, caller, &what) {
            return Err(no.into());
        }
        let found = self.fetch_digest(source, caller, digest, accept, Some(what)).await?;
        self.vouch(purpose, caller, &found, accept).await?;
        self.hand_out(found, caller, None).await
    }

    /// Without asking anybody where the tag points, if it may be believed.
    async fn by_fresh_tag(
        &self,
        source: &Source,
        caller: &Caller,
        tag: &Tag,
        accept: &Accept,
    ) -> Result<Option<Manifest>, ReadError> {
        let policy = self.policies.of(&source.upstream);
        let Some((digest, true)) = self.last(source, tag, accept, &policy).await? else {
            return Ok(None);
        };
        let Some(found) = self.shelf.find(source, &digest).await? else {
            return Ok(None);
        };
        self.obtainable.check(caller, &found.fact, None).await?;
        Ok(Some(self.hand_out(found, caller, None).await?))
    }

    async fn by_tag(
        self: &Arc<Self>,
        purpose: Purpose,
        key: &Key,
        tag: &Tag,
        accept: &Accept,
    ) -> Result<Manifest, ReadError> {
        let policy = self.policies.of(&key.source.upstream);
        let last = self.last(&key.source, tag, accept, &policy).await?;
        if let Some((digest, true)) = last
            && let Some(found) = self.shelf.find(&key.source, &digest).await?
        {
            self.obtainable.check(&key.caller, &found.fact, None).await?;
            return self.hand_out(found, &key.caller, None).await;
        }
        let last = last.map(|(digest, _)| digest);
        let what = What::Manifest(key.reference.clone(), key.class);
        let answer = match self.negative.get(&key.source, &key.caller, &what) {
            Some(no) => Err(no.into()),
            None => {
                let answer = self.revalidate(key, tag, accept, last.as_ref()).await;
                self.learn(&key.source, &key.caller, what, &answer);
                answer
            }
        };
        match answer {
            Ok(found) => {
                self.vouch(purpose, &key.caller, &found, accept).await?;
                self.hand_out(found, &key.caller, None).await
            }
            Err(ReadError::Upstream(error)) => self.in_spite(&key.source, &key.caller, tag, last, error, &policy).await,
            Err(error) => Err(error),
        }
    }

    /// What the tag meant last, where the policy allows that in spite of this error.
    async fn in_spite(
        &self,
        source: &Source,
        caller: &Caller,
        tag: &Tag,
        last: Option<BlobDigest>,
        error: UpstreamError,
        policy: &Policy,
    ) -> Result<Manifest, ReadError> {
        let Some(warning) = in_spite_of(&error, policy) else {
            return Err(error.into());
        };
        let found = match &last {
            Some(digest) => self.shelf.find(source, digest).await?,
            None => None,
        };
        let Some(found) = found else {
            return Err(error.into());
        };
        self.obtainable.check(caller, &found.fact, Some(&error)).await?;
        tracing::warn!(
            upstream = source.upstream, repository = source.repository, tag = tag.as_str(), %error,
            "tag is served without the upstream's word"
        );
        self.hand_out(found, caller, Some(warning)).await
    }

    /// Where the tag pointed last, for a client that takes `accept`; and whether that may be answered without asking.
    async fn last(
        &self,
        source: &Source,
        tag: &Tag,
        accept: &Accept,
        policy: &Policy,
    ) -> Result<Option<(BlobDigest, bool)>, ReadError> {
        let recent = self.recent.get(&(source.clone(), tag.clone(), accept.class()));
        let recent = recent.map(|(digest, at)| (digest, Some(at.elapsed())));
        let is_fresh = |age: &Option<Duration>| age.is_some_and(|age| policy.fresh.covers(age));
        if let Some((digest, age)) = recent
            && is_fresh(&age)
        {
            return Ok(Some((digest, true)));
        }
        let stored = self.shelf.tag(source, tag).await?;
        let stored = stored
            .filter(|stored| accept.takes(&stored.media_type))
            .map(|stored| (stored.digest, shelf::age(&stored)));
        // The younger word of the two; one without a time is the older.
        let word = [recent, stored]
            .into_iter()
            .flatten()
            .min_by_key(|(_, age)| age.unwrap_or(Duration::MAX));
        Ok(word.map(|(digest, age)| (digest, is_fresh(&age))))
    }

    /// A tag that was never seen is fetched: whatever it points at is needed. For one that is known, HEAD first: it does
    /// not count against the rate limits of the large registries, and most tags did not move.
    async fn revalidate(
        self: &Arc<Self>,
        key: &Key,
        tag: &Tag,
        accept: &Accept,
        last: Option<&BlobDigest>,
    ) -> Result<Found, ReadError> {
        let upstream = self.upstream(&key.source)?;
        let mut head = None;
        if last.is_some() {
            let (repository, caller) = (&key.source.repository, &key.caller);
            head = match upstream
                .manifest_head(repository, caller, &key.reference, accept.headers())
                .await
            {
                Ok(head) => head.digest,
                // Some registries have no HEAD; and a HEAD cannot say whether tag or repository is unknown.
                Err(UpstreamError::Status(400..=499 | 501) | UpstreamError::NotFound { .. }) => None,
                Err(error) => return Err(error.into()),
            };
        }
        let found = match head {
            // By digest, so that a tag that moves meanwhile cannot mix two answers.
            Some(digest) => match self.shelf.find(&key.source, &digest).await? {
                Some(found) => found,
                None => {
                    self.fetch_digest(&key.source, &key.caller, &digest, accept, None)
                        .await?
                }
            },
            None => self.fetch(&key.source, &key.caller, &key.reference, accept).await?,
        };
        self.confirm(&key.source, tag, accept, &found.fact).await;
        Ok(found)
    }

    async fn confirm(&self, source: &Source, tag: &Tag, accept: &Accept, fact: &ManifestFact) {
        let key = (source.clone(), tag.clone(), accept.class());
        self.recent.insert(key, (fact.digest, Instant::now()));
        self.shelf.confirm(source, tag, accept, fact).await;
    }

    /// A "no" to `what` is believed, and remembered, within the one fetch: who comes between its end and its being
    /// remembered would ask again.
    async fn fetch_digest(
        self: &Arc<Self>,
        source: &Source,
        caller: &Caller,
        digest: &BlobDigest,
        accept: &Accept,
        what: Option<What>,
    ) -> Result<Found, ReadError> {
        let key = (source.clone(), caller.clone(), *digest, accept.class());
        let (inner, accept) = (self.clone(), accept.clone());
        let fetched = self.fetches.run(key.clone(), || async move {
            let (source, caller, digest, _) = key;
            let no = what
                .as_ref()
                .and_then(|what| inner.negative.get(&source, &caller, what));
            if let Some(no) = no {
                return Err(no.into());
            }
            let reference = Reference::Digest(digest);
            let fetched = inner.fetch(&source, &caller, &reference, &accept).await;
            if let Some(what) = what {
                inner.learn(&source, &caller, what, &fetched);
            }
            fetched
        });
        fetched.await.unwrap_or(Err(ReadError::Stopping))
    }

    /// From the upstream, verified and kept.
    async fn fetch(
        &self,
        source: &Source,
        caller: &Caller,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<Found, ReadError> {
        let upstream = self.upstream(source)?;
        let answer = upstream
            .manifest(&source.repository, caller, reference, accept.headers(), self.size_max)
            .await?;
        let expected = match reference {
            Reference::Digest(digest) => Some(*digest),
            Reference::Tag(_) => answer.digest,
        };
        let digest = expected.unwrap_or_else(|| BlobDigest::of(&answer.bytes));
        let is_right = |digest: &BlobDigest| BlobHasher::matches(digest, &answer.bytes);
        if !is_right(&digest) || answer.digest.is_some_and(|said| said != digest && !is_right(&said)) {
            self.metrics.corruption("upstream_manifest");
            tracing::warn!(%digest, upstream = upstream.name(), "upstream's manifest does not match its digest");
            return Err(ReadError::DigestMismatch);
        }
        let media_type = answer
            .media_type
            .ok_or(ReadError::BadManifest("it comes without a Content-Type"))?;
        let found = self.shelf.keep(source, digest, media_type, answer.bytes).await?;
        self.negative.forget_blobs(source, caller, &found.fact.members);
        Ok(found)
    }

    async fn hand_out(&self, found: Found, caller: &Caller, warning: Option<Warning>) -> Result<Manifest, ReadError> {
        self.obtainable.no_setback(caller, &found.fact).await?;
        Ok(Manifest {
            digest: found.fact.digest,
            media_type: found.fact.media_type.clone(),
            bytes: found.bytes,
            warning,
            fact: found.fact,
        })
    }

    fn learn(&self, source: &Source, caller: &Caller, what: What, answer: &Result<Found, ReadError>) {
        match answer {
            Ok(_) => self.negative.learn(source, caller, what, Ok(())),
            Err(ReadError::Upstream(error)) => self.negative.learn::<()>(source, caller, what, Err(error)),
            Err(_) => {}
        }
    }

    fn upstream(&self, source: &Source) -> Result<Arc<Upstream>, ReadError> {
        let upstream = self.upstreams.get(&source.upstream).cloned();
        upstream.ok_or(ReadError::Upstream(UpstreamError::NotFound { name_unknown: true }))
    }
}

/// Whether a tag that is known is answered although the upstream said this.
fn in_spite_of(error: &UpstreamError, policy: &Policy) -> Option<Warning> {
    match error {
        // Whoever configures that wants what is here.
        UpstreamError::Offline => Some(Warning::Stale),
        UpstreamError::NotFound { .. } => policy.serve_deleted.then_some(Warning::Deleted),
        error => (error.is_outage() && policy.stale_if_error).then_some(Warning::Stale),
    }
}
