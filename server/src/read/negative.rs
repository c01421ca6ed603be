//! What upstreams said they do not have, for a moment.
//!
//! In: a "not found" of an upstream. Out: the same, to the same caller, until it is forgotten.
//! Invariant: only "not found" is kept, never a refusal, and never for another caller; at most [`ENTRIES_MAX`] entries,
//! each for `fetch.negative_ttl_ms`. What is here and known to be the repository's is looked for before this is asked, so a
//! thing that arrived by another way is seen at once.
//! Not here: outages (they are never kept).

use std::time::Duration;

use headstart_layer_format::BlobDigest;

use super::accept::Class;
use crate::{
    store::facts::Source,
    upstream::{Caller, Reference, UpstreamError},
};

/// A node that polls for a thousand images has a thousand entries; an attacker pushes out only what costs one request.
const ENTRIES_MAX: u64 = 16_384;

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// With the class of `Accept`: some upstreams have nothing for a client that takes too little.
    Manifest(Reference, Class),
    Blob(BlobDigest),
    Tags,
}

/// All recent "not found"; clones share them.
#[derive(Clone, Debug)]
pub struct Negative(moka::sync::Cache<(Source, Caller, What), bool>);

impl Negative {
    /// `ttl` 0 keeps nothing.
    pub fn new(ttl: Duration) -> Self {
        let builder = moka::sync::Cache::builder().time_to_live(ttl);
        Self(
            builder
                .max_capacity(if ttl.is_zero() { 0 } else { ENTRIES_MAX })
                .build(),
        )
    }

    /// The upstream's "no" of a moment ago.
    pub fn get(&self, source: &Source, caller: &Caller, what: &What) -> Option<UpstreamError> {
        let key = (source.clone(), caller.clone(), what.clone());
        let name_unknown = self.0.get(&key)?;
        Some(UpstreamError::NotFound { name_unknown })
    }

    /// A manifest that came just now names these: they are there.
    pub fn forget_blobs(&self, source: &Source, caller: &Caller, digests: &[BlobDigest]) {
        for digest in digests {
            self.0
                .invalidate(&(source.clone(), caller.clone(), What::Blob(*digest)));
        }
    }

    /// Keeps the error if it is a "not found", and forgets an older one if the answer was another.
    pub fn learn<T>(&self, source: &Source, caller: &Caller, what: What, answer: Result<T, &UpstreamError>) {
        let key = (source.clone(), caller.clone(), what);
        match answer {
            Err(UpstreamError::NotFound { name_unknown }) => self.0.insert(key, *name_unknown),
            _ => self.0.invalidate(&key),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::ClientCredentials;

    #[test]
    fn only_not_found_is_kept_and_only_for_who_asked() {
        let negative = Negative::new(Duration::from_secs(60));
        let source = Source {
            upstream: "u".into(),
            repository: "r".into(),
        };
        let blob = What::Blob(BlobDigest::of(b"x"));
        let other = Caller::Client(ClientCredentials::new(http::HeaderValue::from_static("Basic eDp5")));
        let not_found = UpstreamError::NotFound { name_unknown: true };
        negative.learn::<()>(
            &source,
            &other,
            blob.clone(),
            Err(&UpstreamError::Denied { status: 401 }),
        );
        negative.learn::<()>(&source, &other, blob.clone(), Err(&UpstreamError::Timeout));
        assert_eq!(negative.get(&source, &other, &blob), None);
        negative.learn::<()>(&source, &Caller::Server, blob.clone(), Err(&not_found));
        assert_eq!(negative.get(&source, &other, &blob), None);
        assert_eq!(negative.get(&source, &Caller::Server, &blob), Some(not_found));
        negative.learn(&source, &Caller::Server, blob.clone(), Ok(()));
        assert_eq!(negative.get(&source, &Caller::Server, &blob), None);
        let off = Negative::new(Duration::ZERO);
        off.learn::<()>(
            &source,
            &other,
            blob.clone(),
            Err(&UpstreamError::NotFound { name_unknown: false }),
        );
        assert_eq!(off.get(&source, &other, &blob), None);
    }
}
