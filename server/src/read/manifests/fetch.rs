//! Manifests from their upstream.
//!
//! In: a request, and a reference. Out: the manifest, verified and kept.
//! Invariant: bytes that do not match their digest, asked for or told, are not kept. The same digest is fetched once for
//! everybody who asks meanwhile, whether by tag or by digest.
//! Not here: when an upstream is asked at all ([`super`]).

use std::sync::Arc;

use headstart_layer_format::BlobDigest;

use super::{Found, Inner, Request};
use crate::{
    read::{error::ReadError, negative::What},
    store::{facts::Source, hasher::BlobHasher},
    upstream::{Caller, Reference, Upstream, UpstreamError},
};

impl Inner {
    /// What `request` asks for, or something that it leads to. A "no" to `what` is believed, and remembered, within the one
    /// fetch: who comes between its end and its being remembered would ask again.
    pub(super) async fn fetch_digest(
        self: &Arc<Self>,
        request: &Request,
        digest: &BlobDigest,
        what: Option<What>,
    ) -> Result<Found, ReadError> {
        let (source, caller) = (request.source.clone(), request.caller.clone());
        let key = (source, caller, *digest, request.accept.class());
        let (inner, request) = (self.clone(), request.clone());
        let fetched = self.fetches.run(key.clone(), || async move {
            let (source, caller, digest, _) = key;
            let no = what
                .as_ref()
                .and_then(|what| inner.negative.get(&source, &caller, what));
            if let Some(no) = no {
                return Err(no.into());
            }
            let fetched = inner.fetch(&request, &Reference::Digest(digest)).await;
            if let Some(what) = what {
                inner.learn(&source, &caller, what, &fetched);
            }
            fetched
        });
        fetched.await.unwrap_or_else(|why| Err(why.into()))
    }

    /// From the upstream, verified and kept.
    pub(super) async fn fetch(&self, request: &Request, reference: &Reference) -> Result<Found, ReadError> {
        let Request { source, caller, .. } = request;
        let (upstream, headers) = (self.upstream(source)?, request.accept.headers());
        let answer = upstream
            .manifest(&source.repository, caller, reference, &headers, self.size_max)
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

    pub(super) fn learn(&self, source: &Source, caller: &Caller, what: What, answer: &Result<Found, ReadError>) {
        match answer {
            Ok(_) => self.negative.learn(source, caller, what, Ok(())),
            Err(ReadError::Upstream(error)) => self.negative.learn::<()>(source, caller, what, Err(error)),
            Err(_) => {}
        }
    }

    pub(super) fn upstream(&self, source: &Source) -> Result<Arc<Upstream>, ReadError> {
        let upstream = self.upstreams.get(&source.upstream).cloned();
        upstream.ok_or(ReadError::Upstream(UpstreamError::NotFound { name_unknown: true }))
    }
}
