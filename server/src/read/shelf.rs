//! Manifests and tags on disk.
//!
//! In: what an upstream said. Out: the same, later.
//! Invariant: a manifest comes out only for a source that is known to have it, only if its bytes still match its digest,
//! and as the type that its own upstream gave it. What a manifest names is recorded before the manifest is served, so that the requests that follow are known
//! to belong to the repository.
//! Not here: upstreams, and whether a tag may be believed ([`super::manifests`]).

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;

use super::{
    accept::{Accept, Class},
    blocking::blocking,
    document::{self, Document},
    error::ReadError,
};
use crate::{
    metrics::Metrics,
    store::{
        Store,
        facts::{ManifestFact, Source, TagFact},
        originals::{Originals, Stored},
    },
    upstream::Tag,
};

/// A tag that was confirmed less than this ago is not written to the store again for the same digest.
const CONFIRM_EVERY_SECS: u64 = 60;

/// Types of manifests kept in memory: of those only that several upstreams have.
const TYPES_MAX: u64 = 65_536;

/// A manifest with what is known about it.
#[derive(Clone, Debug)]
pub struct Found {
    pub fact: Arc<ManifestFact>,
    pub bytes: Bytes,
}

/// Where manifests and tags are kept; clones share it.
#[derive(Clone, Debug)]
pub struct Shelf {
    originals: Originals,
    store: Store,
    size_max: u64,
    metrics: Metrics,
    /// What an upstream, by name, served a manifest as.
    types: moka::sync::Cache<(String, BlobDigest), String>,
}

impl Shelf {
    pub fn new(originals: Originals, store: Store, size_max: u64, metrics: Metrics) -> Self {
        Self {
            originals,
            store,
            size_max,
            metrics,
            types: moka::sync::Cache::new(TYPES_MAX),
        }
    }

    /// From memory or disk, if the repository is known to have it.
    pub async fn find(&self, source: &Source, digest: &BlobDigest) -> Result<Option<Found>, ReadError> {
        if let Some(found) = self.at_hand(source, digest) {
            return Ok(Some(found));
        }
        let (shelf, source, digest) = (self.clone(), source.clone(), *digest);
        blocking(move || {
            let Some(fact) = shelf.store.manifest(&digest)? else {
                return Ok(None);
            };
            if !shelf.store.is_member(&source, &digest)? {
                return Ok(None);
            }
            let bytes: Bytes = match shelf.originals.read_verified(&digest, shelf.size_max)? {
                Stored::Found(bytes) => bytes.into(),
                Stored::Miss | Stored::TooLarge(_) => return Ok(None),
                Stored::Damaged => {
                    shelf.metrics.corruption("original");
                    tracing::warn!(%digest, "manifest on disk is damaged; it is fetched again");
                    return Ok(None);
                }
            };
            let fact = shelf.as_served(Arc::new(fact), &source, &bytes);
            Ok(fact.map(|fact| Found { fact, bytes }))
        })
        .await
    }

    /// The fact as clients of `source` are to have it; nothing if its upstream has to be asked. Bytes are everybody's, as
    /// they match their digest. Their type need not be in them, and then it is one upstream's word: clients of another
    /// must not be given it, nor find no other.
    fn as_served(&self, fact: Arc<ManifestFact>, source: &Source, bytes: &[u8]) -> Option<Arc<ManifestFact>> {
        if fact.source == *source {
            return Some(fact);
        }
        let (source, fact) = (source.clone(), Arc::unwrap_or_clone(fact));
        if fact.source.upstream == source.upstream {
            return Some(Arc::new(ManifestFact { source, ..fact }));
        }
        let key = (source.upstream.clone(), fact.digest);
        let media_type = match self.types.get(&key) {
            Some(media_type) => media_type,
            None => {
                let media_type = document::own_type(bytes)?;
                self.types.insert(key, media_type.clone());
                media_type
            }
        };
        if media_type == fact.media_type {
            return Some(Arc::new(ManifestFact { source, ..fact }));
        }
        let Document {
            members,
            foreign,
            image,
        } = document::read(bytes, &media_type).ok()?;
        Some(Arc::new(ManifestFact {
            source,
            media_type,
            members,
            foreign,
            image,
            ..fact
        }))
    }

    /// [`Shelf::find`] without a disk.
    pub fn at_hand(&self, source: &Source, digest: &BlobDigest) -> Option<Found> {
        if !self.store.member_at_hand(source, digest) {
            return None;
        }
        let bytes = self.originals.bytes_at_hand(digest)?;
        let fact = self.store.manifest_at_hand(digest)?;
        let fact = self.as_served(fact, source, &bytes)?;
        Some(Found { fact, bytes })
    }

    /// Keeps a verified manifest and what it says. A store that fails costs later requests time, not this one its
    /// answer.
    pub async fn keep(
        &self,
        source: &Source,
        digest: BlobDigest,
        media_type: String,
        bytes: Bytes,
    ) -> Result<Found, ReadError> {
        let read = document::read(&bytes, &media_type).map_err(ReadError::BadManifest)?;
        let Document {
            members,
            foreign,
            image,
        } = read;
        let fact = ManifestFact {
            source: source.clone(),
            digest,
            media_type,
            size: bytes.len() as u64,
            members,
            foreign,
            image,
        };
        self.types
            .insert((source.upstream.clone(), digest), fact.media_type.clone());
        let (shelf, to_store, fact_to_store) = (self.clone(), bytes.clone(), fact.clone());
        let kept = blocking(move || {
            shelf.originals.put(&digest, &to_store)?;
            shelf.store.record_manifest(&fact_to_store)?;
            Ok(())
        });
        if let Err(error) = kept.await {
            tracing::warn!(%digest, %error, "manifest is not kept");
        }
        let fact = Arc::new(fact);
        Ok(Found { fact, bytes })
    }

    /// Where the tag pointed when the upstream last confirmed it to anybody.
    pub async fn tag(&self, source: &Source, tag: &Tag) -> Result<Option<TagFact>, ReadError> {
        if let Some(fact) = self.store.tag_at_hand(source, tag.as_str()) {
            return Ok(Some(fact));
        }
        let (store, source, tag) = (self.store.clone(), source.clone(), tag.clone());
        blocking(move || Ok(store.tag(&source, tag.as_str())?)).await
    }

    /// The upstream has just said, to a client that takes `accept`, that the tag points here.
    pub async fn confirm(&self, source: &Source, tag: &Tag, accept: &Accept, now: &ManifestFact) {
        let (shelf, source, tag) = (self.clone(), source.clone(), tag.clone());
        let (digest, media_type, size) = (now.digest, now.media_type.clone(), now.size);
        let accept = accept.clone();
        let confirmed = blocking(move || {
            let last = shelf.store.tag(&source, tag.as_str())?;
            let Some(confirmed_unix_secs) = confirmation(last.as_ref(), &digest, &accept) else {
                return Ok(());
            };
            let fact = TagFact {
                digest,
                media_type,
                size,
                confirmed_unix_secs,
            };
            Ok(shelf.store.confirm_tag(&source, tag.as_str(), &fact)?)
        });
        if let Err(error) = confirmed.await {
            tracing::warn!(%error, "tag is not recorded");
        }
    }
}

/// What to write down as the time of a confirmation; `None` to write nothing.
///
/// There is one row a tag. It is what clients that take everything get. What an upstream gives to a client that takes
/// less may be another thing under the same tag, so it is written only where it says something new, and as of no time:
/// good enough when the upstream is down, and never fresh.
fn confirmation(last: Option<&TagFact>, digest: &BlobDigest, accept: &Accept) -> Option<u64> {
    let now = unix_now().as_secs();
    match (accept.class(), last) {
        (Class::All, Some(last)) if last.digest == *digest => {
            let recent = now.checked_sub(last.confirmed_unix_secs);
            recent.is_none_or(|age| age >= CONFIRM_EVERY_SECS).then_some(now)
        }
        (Class::All, _) => Some(now),
        (Class::Narrow(_), None) => Some(0),
        // It takes what the tag pointed at and got something else: the tag has moved.
        (Class::Narrow(_), Some(last)) => (last.digest != *digest && accept.takes(&last.media_type)).then_some(0),
    }
}

fn unix_now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Since the upstream confirmed the tag to a client that takes everything, if it did; a clock that went backwards makes
/// it old.
pub fn age(tag: &TagFact) -> Option<Duration> {
    let at = Duration::from_secs(tag.confirmed_unix_secs);
    (!at.is_zero()).then(|| unix_now().checked_sub(at).unwrap_or(Duration::MAX))
}
