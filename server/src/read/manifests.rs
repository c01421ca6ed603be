//! Manifests, by tag and by digest.
//!
//! In: a source, a reference and the client's `Accept` values. Out: a verified [`Manifest`], byte for byte the
//! upstream's.
//! Invariant: by digest, bytes are kept for ever and given to whoever's repository has them. By tag, the upstream is
//! asked on every request (unless `tag_fresh_ms` says otherwise), and only when it is in trouble does the last digest
//! it confirmed answer, marked stale. What a manifest names is recorded before it is served, so that the requests
//! that follow are known to belong to the repository.
//! Not here: blobs, and the conversion that a served manifest starts (`layers.rs` is told, and does not delay us).

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use http::HeaderValue;

use super::{
    blocking::blocking,
    coalesce::Coalesce,
    document::{self, Document},
    error::ReadError,
    layers::Layers,
};
use crate::{
    config::FetchConfig,
    metrics::Metrics,
    store::{
        Store,
        facts::{ManifestFact, Source, TagFact},
        hasher::BlobHasher,
        originals::{Originals, Stored},
    },
    upstream::{Caller, Reference, Tag, Upstream, UpstreamError, Upstreams},
};

/// A tag that was confirmed less than this ago is not written to the store again for the same digest.
const CONFIRM_EVERY: Duration = Duration::from_secs(60);

/// A manifest to serve.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub digest: BlobDigest,
    pub media_type: String,
    pub bytes: Bytes,
    /// The upstream could not be asked whether the tag still points here.
    pub stale: bool,
}

/// Requests with the same key get the same answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    source: Source,
    caller: Caller,
    reference: Reference,
    /// Upstreams choose by it.
    accept: Vec<HeaderValue>,
}

/// All manifests; clones share one state.
#[derive(Clone, Debug)]
pub struct Manifests {
    inner: Arc<Inner>,
    running: Coalesce<Key, Result<Manifest, ReadError>>,
}

#[derive(Debug)]
struct Inner {
    originals: Originals,
    store: Store,
    upstreams: Upstreams,
    layers: Layers,
    config: FetchConfig,
    metrics: Metrics,
}

impl Manifests {
    pub fn new(
        originals: Originals,
        store: Store,
        upstreams: Upstreams,
        layers: Layers,
        config: FetchConfig,
        metrics: Metrics,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                originals,
                store,
                upstreams,
                layers,
                config,
                metrics,
            }),
            running: Coalesce::default(),
        }
    }

    /// The manifest that `reference` means.
    pub async fn get(
        &self,
        source: &Source,
        caller: &Caller,
        reference: &Reference,
        accept: &[HeaderValue],
    ) -> Result<Manifest, ReadError> {
        let key = Key {
            source: source.clone(),
            caller: caller.clone(),
            reference: reference.clone(),
            accept: accept.to_vec(),
        };
        let inner = self.inner.clone();
        let result = self.running.run(key.clone(), || async move {
            match &key.reference {
                Reference::Tag(tag) => inner.by_tag(&key, tag).await,
                Reference::Digest(digest) => inner.by_digest(&key, digest).await,
            }
        });
        result.await.unwrap_or(Err(ReadError::Stopping))
    }
}

impl Inner {
    async fn by_digest(self: &Arc<Self>, key: &Key, digest: &BlobDigest) -> Result<Manifest, ReadError> {
        if let Some(known) = self.known(&key.source, digest).await? {
            return Ok(known);
        }
        let fetched = self.fetch(key, &Reference::Digest(*digest)).await?;
        self.keep(&key.source, None, fetched).await
    }

    async fn by_tag(self: &Arc<Self>, key: &Key, tag: &Tag) -> Result<Manifest, ReadError> {
        let last = self.tag(&key.source, tag).await?;
        let fresh = Duration::from_millis(self.config.tag_fresh_ms);
        if let Some(last) = last.as_ref().filter(|last| age(last) < fresh)
            && let Some(known) = self.known(&key.source, &last.digest).await?
        {
            return Ok(known);
        }
        match self.revalidate(key, tag, last.as_ref()).await {
            Err(ReadError::Upstream(error)) if error.is_outage() => {
                let known = match &last {
                    Some(last) => self.known(&key.source, &last.digest).await?,
                    None => None,
                };
                let Some(known) = known else {
                    return Err(error.into());
                };
                tracing::warn!(
                    upstream = key.source.upstream, repository = key.source.repository, tag = tag.as_str(), %error,
                    "tag is served stale"
                );
                Ok(Manifest { stale: true, ..known })
            }
            other => other,
        }
    }

    /// HEAD first: it does not count against the rate limits of the large registries, and most tags did not move.
    async fn revalidate(self: &Arc<Self>, key: &Key, tag: &Tag, last: Option<&TagFact>) -> Result<Manifest, ReadError> {
        let upstream = self.upstream(&key.source)?;
        let head = match upstream
            .manifest_head(&key.source.repository, &key.caller, &key.reference, &key.accept)
            .await
        {
            Ok(head) => Some(head),
            // Some registries have no HEAD; and a HEAD cannot say whether tag or repository is unknown.
            Err(UpstreamError::Status(400..=499) | UpstreamError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(digest) = head.and_then(|head| head.digest) {
            if let Some(known) = self.known(&key.source, &digest).await? {
                self.confirm(&key.source, tag, &known, last).await;
                return Ok(known);
            }
            // By digest, so that a tag that moves meanwhile cannot mix two answers.
            let fetched = self.fetch(key, &Reference::Digest(digest)).await?;
            return self.keep(&key.source, Some(tag), fetched).await;
        }
        let fetched = self.fetch(key, &key.reference).await?;
        self.keep(&key.source, Some(tag), fetched).await
    }

    /// From disk, if the repository is known to have it. The layers are told.
    async fn known(self: &Arc<Self>, source: &Source, digest: &BlobDigest) -> Result<Option<Manifest>, ReadError> {
        let (inner, source, digest) = (self.clone(), source.clone(), *digest);
        let found = blocking(move || {
            let Some(fact) = inner.store.manifest(&digest)? else {
                return Ok(None);
            };
            if !inner.store.is_member(&source, &digest)? {
                return Ok(None);
            }
            Ok(
                match inner.originals.read_verified(&digest, inner.config.manifest_size_max)? {
                    Stored::Found(bytes) => Some((fact, Bytes::from(bytes))),
                    Stored::Miss | Stored::TooLarge(_) => None,
                    Stored::Damaged => {
                        inner.metrics.corruption("original");
                        tracing::warn!(%digest, "manifest on disk is damaged; it is fetched again");
                        None
                    }
                },
            )
        })
        .await?;
        Ok(found.map(|(fact, bytes)| {
            let manifest = Manifest {
                digest,
                media_type: fact.media_type.clone(),
                bytes,
                stale: false,
            };
            self.layers.manifest_served(fact);
            manifest
        }))
    }

    /// From the upstream, verified.
    async fn fetch(&self, key: &Key, reference: &Reference) -> Result<Manifest, ReadError> {
        let upstream = self.upstream(&key.source)?;
        let size_max = self.config.manifest_size_max;
        let answer = upstream
            .manifest(&key.source.repository, &key.caller, reference, &key.accept, size_max)
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
        Ok(Manifest {
            digest,
            media_type,
            bytes: answer.bytes,
            stale: false,
        })
    }

    /// Keeps bytes and facts, and tells the layers. A store that fails costs later requests time, not this one its
    /// answer.
    async fn keep(
        self: &Arc<Self>,
        source: &Source,
        tag: Option<&Tag>,
        manifest: Manifest,
    ) -> Result<Manifest, ReadError> {
        let Document { members, image } =
            document::read(&manifest.bytes, &manifest.media_type).map_err(ReadError::BadManifest)?;
        let fact = ManifestFact {
            source: source.clone(),
            digest: manifest.digest,
            media_type: manifest.media_type.clone(),
            size: manifest.bytes.len() as u64,
            tag: tag.map(|t| t.as_str().to_owned()),
            members,
            image,
        };
        let (inner, bytes, to_store) = (self.clone(), manifest.bytes.clone(), fact.clone());
        let kept = blocking(move || {
            inner.originals.put(&to_store.digest, &bytes)?;
            inner.store.record_manifest(&to_store)?;
            inner.store.add_member(&to_store.source, &to_store.digest)?;
            Ok(())
        });
        if let Err(error) = kept.await {
            tracing::warn!(digest = %manifest.digest, %error, "manifest is not kept");
        }
        if let Some(tag) = tag {
            self.confirm(source, tag, &manifest, None).await;
        }
        self.layers.manifest_served(fact);
        Ok(manifest)
    }

    async fn tag(self: &Arc<Self>, source: &Source, tag: &Tag) -> Result<Option<TagFact>, ReadError> {
        let (inner, source, tag) = (self.clone(), source.clone(), tag.clone());
        blocking(move || Ok(inner.store.tag(&source, tag.as_str())?)).await
    }

    /// The upstream has just said that the tag points here.
    async fn confirm(self: &Arc<Self>, source: &Source, tag: &Tag, manifest: &Manifest, last: Option<&TagFact>) {
        let every = match self.config.tag_fresh_ms {
            0 => CONFIRM_EVERY,
            fresh_ms => CONFIRM_EVERY.min(Duration::from_millis(fresh_ms)),
        };
        if last.is_some_and(|last| last.digest == manifest.digest && age(last) < every) {
            return;
        }
        let fact = TagFact {
            digest: manifest.digest,
            media_type: manifest.media_type.clone(),
            size: manifest.bytes.len() as u64,
            confirmed_unix_secs: now().as_secs(),
        };
        let (inner, source, tag) = (self.clone(), source.clone(), tag.clone());
        let confirmed = blocking(move || Ok(inner.store.confirm_tag(&source, tag.as_str(), &fact)?));
        if let Err(error) = confirmed.await {
            tracing::warn!(%error, "tag is not recorded");
        }
    }

    fn upstream(&self, source: &Source) -> Result<Arc<Upstream>, ReadError> {
        let upstream = self.upstreams.get(&source.upstream).cloned();
        upstream.ok_or(ReadError::Upstream(UpstreamError::NotFound { name_unknown: true }))
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Since the upstream confirmed the tag; a clock that went backwards makes it old.
fn age(tag: &TagFact) -> Duration {
    now()
        .checked_sub(Duration::from_secs(tag.confirmed_unix_secs))
        .unwrap_or(Duration::MAX)
}
