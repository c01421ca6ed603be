//! What answers that are lists have in common.
//!
//! In: JSON. Out: a response with an ETag, conditional as any other.
//! Invariant: a list may change, so whoever caches it has to ask.
//! Not here: what is listed ([`super::v2_tags`], [`super::v2_referrers`]).

use axum::response::Response;
use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use http::{HeaderMap, HeaderValue, header};

use super::{
    body::{Representation, ranged_response},
    v2::{Asking, CACHE_NEVER},
};
use crate::metrics::route;

impl Asking<'_> {
    /// `json` with `extra` headers.
    pub(super) fn listing(&self, content_type: HeaderValue, json: &serde_json::Value, extra: HeaderMap) -> Response {
        let bytes = Bytes::from(json.to_string());
        let etag = HeaderValue::from_str(&format!("\"{}\"", BlobDigest::of(&bytes))).expect("a digest is ASCII");
        let mut headers = extra;
        headers.insert(header::CACHE_CONTROL, CACHE_NEVER);
        let representation = Representation {
            size: bytes.len() as u64,
            etag,
            content_type,
            headers,
            route: route::OTHER,
        };
        // A list is in memory, so its offsets fit `usize`.
        let open = move |range: std::ops::Range<u64>| {
            let part = bytes.slice(range.start as usize..range.end as usize);
            futures_util::stream::iter([Ok::<_, std::convert::Infallible>(part)])
        };
        ranged_response(self.method, self.headers, &representation, &self.app.metrics, open)
    }
}
