//! What refers to a digest: signatures, SBOMs, attestations.
//!
//! In: a source and a digest, and after what to go on. Out: descriptors, and what follows them.
//! Invariant: the upstream's list; where the upstream has no such API, that of the fallback tag, and none if there is no
//! such tag. Everything is asked for, whatever a client filters by, so one answer serves all. What the upstream lists
//! belongs to the repository from then on. Kept for `fetch.listing_ttl_ms`, and served stale when the upstream is in
//! trouble, also after a restart (the beginning; that nothing refers to it only of a manifest that is here). A list that does not fit into one answer says what follows, or that something is missing.
//! Not here: filtering (`http/v2_referrers.rs`), and the manifests themselves ([`super::manifests`]).
//!
//! OCI distribution-spec, "Listing Referrers", "Referrers Tag Schema".

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use headstart_layer_format::{BlobDigest, digest::hex};

use super::{
    accept::Accept,
    blocking::blocking,
    document::{OCI_INDEX, is_index},
    error::ReadError,
    kept::{Kept, Named, Told},
    manifests::{Manifests, Purpose, Request},
    saved::Saved,
};
use crate::{
    store::{Store, facts::Source},
    upstream::{Caller, Descriptor, Reference, Referring, Rest, UpstreamError, Upstreams},
};

/// All lists together. A descriptor with annotations has some hundred bytes.
const BYTES_MAX: u64 = 64 << 20;

/// Parsed, a descriptor takes several times what its JSON does.
const PARSED: usize = 4;

/// Who asked about what; the list that begins after the last.
type Key = (Source, Caller, BlobDigest, Option<String>);

impl Named for Key {
    /// Beginnings only: what follows is as many files as a client can think of places.
    fn name(&self) -> Option<String> {
        let (source, caller, digest, after) = self;
        if after.is_some() {
            return None;
        }
        let name = ("referrers", caller.lasting_name()?, source, digest, None::<&str>);
        serde_json::to_string(&name).ok()
    }

    fn weight(&self) -> usize {
        self.3.as_ref().map_or(0, String::len)
    }
}

/// All lists; clones share them.
#[derive(Clone, Debug)]
pub struct Referrers {
    kept: Kept<Key, Referring>,
    upstreams: Upstreams,
    store: Store,
    manifests: Manifests,
}

impl Referrers {
    pub fn new(upstreams: Upstreams, store: Store, manifests: Manifests, saved: Saved, ttl: Duration) -> Self {
        Self {
            kept: Kept::new(ttl, BYTES_MAX, saved, |list| list.bytes * PARSED),
            upstreams,
            store,
            manifests,
        }
    }

    /// What refers to `digest`, from the first or after what an earlier answer said, and whether that is an old answer. The
    /// upstream is not waited for beyond `by`.
    pub async fn get(
        &self,
        by: Instant,
        source: &Source,
        caller: &Caller,
        digest: &BlobDigest,
        after: Option<&str>,
    ) -> Result<(Arc<Referring>, bool), ReadError> {
        let upstream = self.upstreams.get(&source.upstream).cloned();
        let upstream = upstream.ok_or(UpstreamError::NotFound { name_unknown: true })?;
        let key = (source.clone(), caller.clone(), *digest, after.map(str::to_owned));
        let answer = self.kept.get(by, &key, || {
            let (source, caller, digest, after) = key.clone();
            let (store, manifests) = (self.store.clone(), self.manifests.clone());
            async move {
                let after = after.as_deref();
                let found = upstream.referrers(&source.repository, &caller, &digest, after).await?;
                let list = match (found, after) {
                    (Some(found), _) => {
                        remember(store.clone(), source, &found.descriptors).await;
                        found
                    }
                    // A fallback tag's list is one.
                    (None, None) => fallback(&manifests, &source, &caller, &digest).await?,
                    (None, Some(_)) => Referring::default(),
                };
                // That nothing refers to it is true of any digest that somebody thinks of.
                let lasts = !list.descriptors.is_empty() || is_known(store, digest).await;
                Ok(Told { list, lasts })
            }
        });
        answer.await
    }
}

/// The list that clients keep themselves, as an index under a tag, where the registry does not keep one. What it names
/// is only named: whoever may push may put anything there.
async fn fallback(
    manifests: &Manifests,
    source: &Source,
    caller: &Caller,
    digest: &BlobDigest,
) -> Result<Referring, ReadError> {
    let Ok(tag) = fallback_tag(digest).parse().map(Reference::Tag) else {
        return Ok(Referring::default());
    };
    let request = Request {
        purpose: Purpose::Look,
        source: source.clone(),
        caller: caller.clone(),
        reference: tag,
        accept: Accept::new(&[http::HeaderValue::from_static(OCI_INDEX)]),
    };
    let index = match manifests.get(&request).await {
        Ok(index) if is_index(index.media_type()) => index,
        Ok(_) | Err(ReadError::BadManifest(_) | ReadError::Upstream(UpstreamError::NotFound { .. })) => {
            return Ok(Referring::default());
        }
        Err(error) => return Err(error),
    };
    #[derive(serde::Deserialize)]
    struct Index {
        manifests: Option<Vec<Descriptor>>,
    }
    let index: Index = serde_json::from_slice(&index.bytes).map_err(|_| ReadError::BadManifest("it is no index"))?;
    let mut found = Referring::default();
    if !found.take(index.manifests.unwrap_or_default()) {
        tracing::warn!(?source, %digest, "too many referrers; the rest is left out");
        found.rest = Rest::Lost;
    }
    Ok(found)
}

/// `<algorithm>-<encoded>`, the latter cut to what a tag can hold.
fn fallback_tag(digest: &BlobDigest) -> String {
    let algorithm = match digest {
        BlobDigest::Sha256(_) => "sha256",
        BlobDigest::Sha512(_) => "sha512",
    };
    let encoded = hex(digest.as_bytes());
    format!("{algorithm}-{}", &encoded[..encoded.len().min(64)])
}

/// Whether there is a manifest of that digest here. A store that fails costs the answer after the next start.
async fn is_known(store: Store, digest: BlobDigest) -> bool {
    let known = blocking(move || Ok(store.manifest(&digest)?.is_some()));
    known.await.unwrap_or(false)
}

/// Lets the manifests be pulled by digest. A store that fails costs those pulls a question to the upstream.
async fn remember(store: Store, source: Source, found: &[Descriptor]) {
    let digests: Vec<BlobDigest> = found
        .iter()
        .filter_map(|descriptor| descriptor.get("digest")?.as_str()?.parse().ok())
        .collect();
    let recorded = blocking(move || {
        for digest in &digests {
            store.add_member(&source, digest)?;
        }
        Ok(())
    });
    if let Err(error) = recorded.await {
        tracing::warn!(%error, "referrers are not recorded");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fallback_tags_are_tags() {
        let sha256 = BlobDigest::of(b"x");
        assert_eq!(fallback_tag(&sha256), sha256.to_string().replace(':', "-"));
        let sha512: BlobDigest = format!("sha512:{}", "a".repeat(128)).parse().unwrap();
        assert_eq!(fallback_tag(&sha512), format!("sha512-{}", "a".repeat(64)));
        assert!(matches!(fallback_tag(&sha512).parse(), Ok(Reference::Tag(_))));
    }
}
