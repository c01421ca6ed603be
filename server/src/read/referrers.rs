//! What refers to a digest: signatures, SBOMs, attestations.
//!
//! In: a source and a digest. Out: descriptors.
//! Invariant: the upstream's list; where the upstream has no such API, that of the fallback tag, and none if there is no
//! such tag. The whole list is asked for, whatever a client filters by, so one answer serves all. What it names belongs
//! to the repository from then on. Kept for `fetch.listing_ttl_ms`, and served stale when the upstream is in trouble.
//! Not here: filtering (`http/v2_referrers.rs`), and the manifests themselves ([`super::manifests`]).
//!
//! OCI distribution-spec, "Listing Referrers", "Referrers Tag Schema".

use std::{sync::Arc, time::Duration};

use headstart_layer_format::{BlobDigest, digest::hex};

use super::{
    blocking::blocking,
    document::{OCI_INDEX, is_index},
    error::ReadError,
    kept::Kept,
};
use crate::{
    store::{Store, facts::Source},
    upstream::{Caller, Descriptor, REFERRERS_MAX, Reference, Upstream, UpstreamError, Upstreams},
};

/// All lists together. A descriptor with annotations has some hundred bytes.
const BYTES_MAX: u64 = 64 << 20;

/// What a descriptor is counted as.
const DESCRIPTOR_BYTES: usize = 1024;

/// All lists; clones share them.
#[derive(Clone, Debug)]
pub struct Referrers {
    kept: Kept<(Source, Caller, BlobDigest), Vec<Descriptor>>,
    upstreams: Upstreams,
    store: Store,
    manifest_size_max: u64,
}

impl Referrers {
    pub fn new(upstreams: Upstreams, store: Store, ttl: Duration, manifest_size_max: u64) -> Self {
        Self {
            kept: Kept::new(ttl, BYTES_MAX, |list| list.len() * DESCRIPTOR_BYTES),
            upstreams,
            store,
            manifest_size_max,
        }
    }

    /// What refers to `digest`, and whether that is an old answer.
    pub async fn get(
        &self,
        source: &Source,
        caller: &Caller,
        digest: &BlobDigest,
    ) -> Result<(Arc<Vec<Descriptor>>, bool), ReadError> {
        let upstream = self.upstreams.get(&source.upstream).cloned();
        let upstream = upstream.ok_or(UpstreamError::NotFound { name_unknown: true })?;
        let key = (source.clone(), caller.clone(), *digest);
        let answer = self.kept.get(&key, || {
            let (source, caller, digest) = key.clone();
            let (store, size_max) = (self.store.clone(), self.manifest_size_max);
            async move {
                let found = match upstream.referrers(&source.repository, &caller, &digest).await? {
                    Some(found) => found,
                    None => fallback(&upstream, &source, &caller, &digest, size_max).await?,
                };
                remember(store, source, &found).await;
                Ok(found)
            }
        });
        answer.await
    }
}

/// The list that clients keep themselves, as an index under a tag, where the registry does not keep one.
async fn fallback(
    upstream: &Upstream,
    source: &Source,
    caller: &Caller,
    digest: &BlobDigest,
    size_max: u64,
) -> Result<Vec<Descriptor>, UpstreamError> {
    let Ok(tag) = fallback_tag(digest).parse().map(Reference::Tag) else {
        return Ok(Vec::new());
    };
    let accept = [http::HeaderValue::from_static(OCI_INDEX)];
    let answer = upstream
        .manifest(&source.repository, caller, &tag, &accept, size_max)
        .await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(UpstreamError::NotFound { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // Whoever may push may put anything under the tag.
    if !answer.media_type.as_deref().is_some_and(is_index) {
        return Ok(Vec::new());
    }
    #[derive(serde::Deserialize)]
    struct Index {
        manifests: Option<Vec<Descriptor>>,
    }
    let index: Index =
        serde_json::from_slice(&answer.bytes).map_err(|_| UpstreamError::BadAnswer("an index that is not JSON"))?;
    let mut found = index.manifests.unwrap_or_default();
    found.truncate(REFERRERS_MAX);
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
