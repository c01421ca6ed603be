//! What an upstream's answers say, read from their heads.
//!
//! In: response headers. Out: [`ManifestHead`], [`ManifestAnswer`] and plain values.
//! Invariant: a header that is malformed is a missing one, or an error where a wrong guess could do harm (digests,
//! ranges); nothing is believed that a body could contradict later.
//! Not here: sending ([`super::transport`]), bodies of blobs ([`super::body`]), rate limits ([`super::hold`]).

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::UpstreamError;

/// What we ask for when the client said nothing: every manifest type in use.
const ACCEPT_DEFAULT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/json;q=0.5, */*;q=0.1";

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Answer to HEAD of a manifest. Any header may be missing.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    pub digest: Option<BlobDigest>,
    pub media_type: Option<String>,
}

/// Answer to GET of a manifest; not verified yet.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    pub bytes: Bytes,
    pub digest: Option<BlobDigest>,
    pub media_type: Option<String>,
}

pub(super) fn accept_headers(accept: &[HeaderValue]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in accept {
        headers.append(header::ACCEPT, value.clone());
    }
    if accept.is_empty() {
        headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT_DEFAULT));
    }
    headers
}

pub(super) fn content_digest(headers: &HeaderMap) -> Result<Option<BlobDigest>, UpstreamError> {
    let Some(value) = headers.get(DOCKER_CONTENT_DIGEST) else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().and_then(|v| v.parse().ok());
    parsed
        .map(Some)
        .ok_or(UpstreamError::BadAnswer("a malformed Docker-Content-Digest"))
}

/// `Content-Type` without parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let bare = value.split(';').next().unwrap_or_default().trim();
    (!bare.is_empty()).then(|| bare.to_owned())
}

/// `Content-Length` as it was sent; `Response::content_length` is that of the body, which a HEAD does not have.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// `Content-Range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContentRange {
    /// `bytes 5-9/10`, `bytes 5-9/*`: `last` is below `size`.
    Part { first: u64, last: u64, size: Option<u64> },
    /// `bytes */10`
    Unsatisfied { size: u64 },
}

impl ContentRange {
    pub(super) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
        let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
        let size: Option<u64> = if size == "*" { None } else { Some(size.parse().ok()?) };
        if range == "*" {
            return size.map(|size| Self::Unsatisfied { size });
        }
        let (first, last) = range.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last && last < size.unwrap_or(u64::MAX)).then_some(Self::Part { first, last, size })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, HeaderValue::from_static(text));
            ContentRange::from_headers(&headers)
        };
        let part = |first, last, size| Some(ContentRange::Part { first, last, size });
        assert_eq!(of("bytes 5-9/10"), part(5, 9, Some(10)));
        assert_eq!(of("bytes 5-8/10"), part(5, 8, Some(10)));
        assert_eq!(of("bytes 5-9/*"), part(5, 9, None));
        assert_eq!(of("bytes */10"), Some(ContentRange::Unsatisfied { size: 10 }));
        for bad in [
            "bytes 5-10/10",
            "bytes 9-5/10",
            "items 5-9/10",
            "bytes 5-9",
            "bytes a-b/c",
            "bytes */*",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
