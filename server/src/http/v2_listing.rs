//! What answers that are lists have in common.
//!
//! In: JSON. Out: a response with an ETag, conditional as any other; and links to what follows.
//! Invariant: a list may change, so whoever caches it has to ask.
//! Not here: what is listed ([`super::v2_tags`], [`super::v2_referrers`]).

use axum::response::Response;
use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use http::{HeaderMap, HeaderValue, header};

use super::{
    body::{Representation, ranged_response},
    error::{ApiError, OciCode},
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
        ranged_response(self.method, self.headers, representation, &self.app.metrics, open)
    }
}

/// `Link` to the next page. `path` is the client's own, whose parts were parsed: they need no escaping.
pub(super) fn link(path: &str, queries: &[(&str, Option<&str>)]) -> Result<HeaderValue, ApiError> {
    let given = queries
        .iter()
        .filter_map(|(name, value)| value.map(|value| (name, value)));
    let queries: Vec<_> = given
        .map(|(name, value)| format!("{name}={}", escaped(value)))
        .collect();
    let text = format!("<{path}?{}>; rel=\"next\"", queries.join("&"));
    HeaderValue::from_str(&text).map_err(|_| ApiError::new(OciCode::NameInvalid, "the name cannot be linked to"))
}

/// For a query's value: what is not unreserved (RFC 3986, section 2.3) as `%XX`.
fn escaped(text: &str) -> String {
    let byte = |b: u8| match b {
        b if b.is_ascii_alphanumeric() || b"-._~".contains(&b) => char::from(b).to_string(),
        b => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}
