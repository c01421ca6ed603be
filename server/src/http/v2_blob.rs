//! `/v2/<name>/blobs/<digest>`
//!
//! In: a repository and a digest. Out: the blob, or the ranges of it that were asked for.
//! Invariant: HEAD never fetches more than the upstream's own head, nor does a GET of what the client has already.
//! Not here: where it comes from ([`crate::read::blobs`]), and ranges ([`super::range`], [`super::body`]).

use axum::response::Response;
use futures_util::future::Either;
use headstart_layer_format::{BlobDigest, DigestError};
use http::{HeaderValue, Method};

use super::{
    body::{if_none_match, range_asked, ranged_response},
    error::{ApiError, Asked, OciCode},
    range,
    sendfile::Windows,
    v2::{Asking, Probe, etag},
};
use crate::{
    metrics::route,
    read::{ReadError, wants::Resolved},
    upstream::UpstreamError,
};

const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

impl Asking<'_> {
    pub(super) async fn blob(&self, name: &str, digest: &str) -> Result<Response, ApiError> {
        let digest: BlobDigest = digest
            .parse()
            .map_err(|e: DigestError| ApiError::new(OciCode::DigestInvalid, e.to_string()))?;
        let (route, caller) = self.enter(name, Probe::Blob(digest)).await?;
        let failed = |error| ApiError::from_read(Asked::Blob, &error);
        let blobs = &self.app.blobs;
        let is_head = self.method == Method::HEAD;
        // Of what the client has, its head is all that the answer needs; an upstream that has none is asked for the blob.
        let size = match is_head || if_none_match(self.headers, &etag(&digest)) {
            true => match self.app.sizes.get(&route.source, &caller, &digest).await {
                Err(ReadError::Upstream(UpstreamError::Status(400 | 405 | 501))) if !is_head => None,
                size => Some(size.map_err(failed)?),
            },
            false => None,
        };
        if let Some(size) = size {
            let representation = self.representation(route::BLOBS, &digest, size, OCTETS, self.cache_forever());
            let nothing = |_| futures_util::stream::empty::<Result<bytes::Bytes, std::convert::Infallible>>();
            return Ok(ranged_response(
                self.method,
                self.headers,
                representation,
                &self.app.metrics,
                nothing,
            ));
        }
        // The size that the headers need is learned with the first bytes, of what is asked for and no more.
        let wants = range::wants(range_asked(self.headers, &etag(&digest)))?;
        let opened = blobs.open_range(&route.source, &caller, &digest, &wants, self.by).await;
        let mut blob = opened.map_err(failed)?;
        if let Resolved::Several(parts) = wants.resolve(blob.size()) {
            blob = blob.in_parts(parts);
        }
        let representation = self.representation(route::BLOBS, &digest, blob.size(), OCTETS, self.cache_forever());
        let windows = self.extensions.get::<Windows>();
        let windowed = windows
            .zip(blob.on_disk())
            .and_then(|(windows, opened)| windows.open(opened));
        let open = move |range| match &windowed {
            Some(windowed) => Either::Left(windowed.stream(range)),
            None => Either::Right(blob.stream(range)),
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
