//! `/v2/<name>/manifests/<reference>`
//!
//! In: a repository, and a tag or digest. Out: the manifest, byte for byte the upstream's.
//! Invariant: `Content-Type`, `Content-Length` and `Docker-Content-Digest` are on GET and HEAD alike; HEAD fetches nothing
//! but the manifest. A GET is a pull: the manifest is not given when its blobs are not to be had.
//! Not here: where it comes from ([`crate::read::manifests`]).

use axum::response::Response;
use http::{HeaderValue, Method, header};

use super::{
    body::ranged_response,
    error::{ApiError, Asked, OciCode},
    v2::{Asking, CACHE_NEVER, Probe, WARNING_DELETED, WARNING_STALE, resolve},
};
use crate::{
    metrics::route,
    read::{
        accept::Accept,
        manifests::{Manifest, Purpose, Request, Warning},
    },
    upstream::{NameError, Reference},
};

impl Asking<'_> {
    /// The answer to a GET, if it can be given without waiting for anything; the same as [`Asking::manifest`] gives.
    pub(super) fn manifest_at_hand(&self, name: &str, reference: &str) -> Option<Response> {
        let reference: Reference = reference.parse().ok()?;
        let route = resolve(self.app, self.ns, name).ok()?;
        let caller = self.app.access.allow_at_hand()?;
        let accept = Accept::new(self.headers.get_all(header::ACCEPT));
        let manifests = &self.app.manifests;
        let manifest = manifests.at_hand(&route.source, &caller, &reference, &accept)?;
        manifests.given(&manifest, &caller);
        self.manifest_response(manifest, &reference).ok()
    }

    pub(super) async fn manifest(&self, name: &str, reference: &str) -> Result<Response, ApiError> {
        let reference: Reference = reference.parse().map_err(|error: NameError| {
            let code = match error {
                NameError::BadDigest(_) => OciCode::DigestInvalid,
                // What cannot be a tag is not there either; the conformance suite asks for such a one and wants 404.
                _ => OciCode::ManifestUnknown,
            };
            ApiError::new(code, error.to_string())
        })?;
        let (route, caller) = self.enter(name, Probe::Manifest(reference.clone())).await?;
        let failed = |error| ApiError::from_read(Asked::Manifest, &error);
        let request = Request {
            // Who asks for the head may only want to know whether a tag has moved: that is no reason to fetch an image.
            purpose: match *self.method == Method::GET {
                true => Purpose::Pull,
                false => Purpose::Look,
            },
            source: route.source,
            caller,
            reference,
            accept: Accept::new(self.headers.get_all(header::ACCEPT)),
        };
        let manifests = &self.app.manifests;
        let manifest = manifests.get_by(self.by, &request).await.map_err(failed)?;
        if request.purpose == Purpose::Pull {
            manifests.ready(&request, &manifest).await.map_err(failed)?;
            manifests.given(&manifest, &request.caller);
        }
        self.manifest_response(manifest, &request.reference)
    }

    fn manifest_response(&self, manifest: Manifest, reference: &Reference) -> Result<Response, ApiError> {
        let cache = match reference {
            Reference::Digest(_) => self.cache_forever(),
            Reference::Tag(_) => CACHE_NEVER,
        };
        let content_type = HeaderValue::from_str(manifest.media_type())
            .map_err(|_| ApiError::new(OciCode::ManifestInvalid, "the upstream's Content-Type is malformed"))?;
        let size = manifest.bytes.len() as u64;
        let mut representation = self.representation(route::MANIFESTS, manifest.digest(), size, content_type, cache);
        if let Reference::Tag(_) = reference {
            let accept = HeaderValue::from_static("Accept");
            representation.headers.insert(header::VARY, accept);
        }
        if let Some(warning) = manifest.warning {
            let text = match warning {
                Warning::Stale => WARNING_STALE,
                Warning::Deleted => WARNING_DELETED,
            };
            representation.headers.insert(header::WARNING, text);
        }
        let bytes = manifest.bytes;
        let open = move |range: std::ops::Range<u64>| {
            // A manifest is in memory, so its offsets fit `usize`.
            let part = bytes.slice(range.start as usize..range.end as usize);
            futures_util::stream::iter([Ok::<_, std::convert::Infallible>(part)])
        };
        Ok(ranged_response(
            self.method,
            self.headers,
            representation,
            &self.app.metrics,
            open,
        ))
    }
}
