//! Errors as clients see them: the one place where an error becomes a response.
//!
//! In: what a room reports ([`ReadError`], [`UpstreamError`], [`AccessError`], [`StoreError`], [`ProfileError`]), and what
//! a route says of a request itself. Out: a status and the JSON of the distribution specification,
//! `{"errors":[{"code","message"}]}`.
//! Invariant: a client is challenged (401) only where its own credentials may help, which `access/` says: container
//! runtimes answer with the user's secrets. Every 429 and 503 says when to come back. What an upstream refuses is 403, what
//! it lacks is 404, and its outages are 5xx, on all of which runtimes go to their next mirror.
//! Not here: decisions what to try next; answers that are no errors (a layer that is not ready yet).

use axum::{
    body::Body,
    extract::rejection::QueryRejection,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};

use super::range::TooManyRanges;
use crate::{
    access::AccessError,
    profile::{ProfileError, TraceError},
    read::ReadError,
    store::StoreError,
    upstream::UpstreamError,
};

/// What every client can answer, and with what password files, token files and upstreams can work.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Basic realm=\"headstart\"");

/// When to come back after all turns were taken, or to a server that stops, of which there may be another by then: about
/// what a layer takes.
const RETRY_AFTER_BUSY_SECS: u64 = 5;

/// When to come back to an upstream that wants fewer requests and does not say for how long. podman and CRI-O come back
/// five times, and would wait about as long in all if nobody told them.
const RETRY_AFTER_LIMIT_SECS: u64 = 10;

/// That no upstream is asked is what an operator has configured: it does not pass in a moment.
const RETRY_AFTER_OFFLINE_SECS: u64 = 60;

/// Error codes of the distribution specification (and `UNAVAILABLE`, which distribution itself adds).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OciCode {
    BlobUnknown,
    ManifestUnknown,
    ManifestInvalid,
    NameUnknown,
    NameInvalid,
    DigestInvalid,
    PaginationNumberInvalid,
    Unauthorized,
    Denied,
    Unsupported,
    TooManyRequests,
    Unavailable,
}

impl OciCode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BlobUnknown => "BLOB_UNKNOWN",
            Self::ManifestUnknown => "MANIFEST_UNKNOWN",
            Self::ManifestInvalid => "MANIFEST_INVALID",
            Self::NameUnknown => "NAME_UNKNOWN",
            Self::NameInvalid => "NAME_INVALID",
            Self::DigestInvalid => "DIGEST_INVALID",
            Self::PaginationNumberInvalid => "PAGINATION_NUMBER_INVALID",
            Self::Unauthorized => "UNAUTHORIZED",
            Self::Denied => "DENIED",
            Self::Unsupported => "UNSUPPORTED",
            Self::TooManyRequests => "TOOMANYREQUESTS",
            Self::Unavailable => "UNAVAILABLE",
        }
    }

    /// The status that goes with the code unless the case says otherwise.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BlobUnknown | Self::ManifestUnknown | Self::NameUnknown => StatusCode::NOT_FOUND,
            Self::NameInvalid | Self::DigestInvalid | Self::PaginationNumberInvalid => StatusCode::BAD_REQUEST,
            Self::ManifestInvalid | Self::Unavailable => StatusCode::BAD_GATEWAY,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// An error on its way to a client.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    pub code: OciCode,
    pub message: String,
    pub retry_after_secs: Option<u64>,
}

/// What was asked for, which decides between the codes for "unknown".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Manifest,
    Blob,
    /// The repository's tags or referrers.
    Repository,
}

impl ApiError {
    pub fn new(code: OciCode, message: impl Into<String>) -> Self {
        Self {
            status: code.status(),
            code,
            message: message.into(),
            retry_after_secs: None,
        }
    }

    /// A request to an endpoint of ours that it cannot do anything with.
    pub fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(OciCode::Unsupported, message).with_status(status)
    }

    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// A failed read of a manifest or blob.
    pub fn from_read(asked: Asked, error: &ReadError) -> Self {
        let message = error.to_string();
        match error {
            ReadError::Upstream(e) => Self::from_upstream(asked, e),
            ReadError::Unknown => Self::unknown(asked, message),
            ReadError::DigestMismatch | ReadError::Incomplete => Self::new(OciCode::Unavailable, message),
            ReadError::BadManifest(_) | ReadError::TooLarge { .. } => Self::new(
                match asked {
                    Asked::Manifest => OciCode::ManifestInvalid,
                    Asked::Blob | Asked::Repository => OciCode::Unavailable,
                },
                message,
            ),
            ReadError::Busy => Self::busy(asked, RETRY_AFTER_BUSY_SECS, message),
            ReadError::Stopping => {
                Self::new(OciCode::Unavailable, message).with_status(StatusCode::SERVICE_UNAVAILABLE)
            }
            ReadError::Disk(_) => {
                Self::new(OciCode::Unavailable, message).with_status(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }

    /// A client that may not read something.
    pub fn from_access(asked: Asked, error: &AccessError) -> Self {
        let message = error.to_string();
        match error {
            AccessError::Unauthorized => Self::new(OciCode::Unauthorized, message),
            AccessError::Denied => Self::new(OciCode::Denied, message),
            AccessError::Hidden => Self::unknown(asked, message),
            AccessError::Upstream(error) => Self::from_upstream(asked, error),
            AccessError::Busy => Self::busy(asked, 1, message),
            AccessError::Store(_) => {
                Self::new(OciCode::Unavailable, message).with_status(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }

    fn from_upstream(asked: Asked, error: &UpstreamError) -> Self {
        let message = error.to_string();
        match error {
            UpstreamError::NotFound { name_unknown: true } => Self::new(OciCode::NameUnknown, message),
            UpstreamError::NotFound { name_unknown: false } => Self::unknown(asked, message),
            UpstreamError::Denied { .. } | UpstreamError::ForeignRealm => Self::new(OciCode::Denied, message),
            UpstreamError::TooManyRequests { retry_after_secs } => Self {
                retry_after_secs: Some(retry_after_secs.unwrap_or(RETRY_AFTER_LIMIT_SECS)),
                ..Self::new(OciCode::TooManyRequests, message)
            },
            UpstreamError::Timeout => Self::new(OciCode::Unavailable, message).with_status(StatusCode::GATEWAY_TIMEOUT),
            UpstreamError::Status(_)
            | UpstreamError::Unreachable(_)
            | UpstreamError::BadAnswer(_)
            | UpstreamError::NoCredentials => Self::new(OciCode::Unavailable, message),
            UpstreamError::Offline => Self {
                retry_after_secs: Some(RETRY_AFTER_OFFLINE_SECS),
                ..Self::new(OciCode::Unavailable, message).with_status(StatusCode::SERVICE_UNAVAILABLE)
            },
            UpstreamError::CircuitOpen { retry_after_secs } | UpstreamError::Unavailable { retry_after_secs } => Self {
                retry_after_secs: Some(*retry_after_secs),
                ..Self::new(OciCode::Unavailable, message).with_status(StatusCode::SERVICE_UNAVAILABLE)
            },
            UpstreamError::Busy => Self::busy(asked, 1, message),
        }
    }

    /// There is no room now. A manifest is where clients choose their mirror, and 503 sends all of them to the next. A blob
    /// is where podman, skopeo and CRI-O have chosen: 503 would end their pull, while after 429 they wait as long as they
    /// are told and ask again, five times. containerd answers 429 with six tries in a row, each of which waits here for a
    /// turn, and then with its next mirror.
    pub fn busy(asked: Asked, retry_after_secs: u64, message: impl Into<String>) -> Self {
        let error = match asked {
            Asked::Blob => Self::new(OciCode::TooManyRequests, message),
            Asked::Manifest | Asked::Repository => {
                Self::new(OciCode::Unavailable, message).with_status(StatusCode::SERVICE_UNAVAILABLE)
            }
        };
        Self {
            retry_after_secs: Some(retry_after_secs),
            ..error
        }
    }

    fn unknown(asked: Asked, message: String) -> Self {
        match asked {
            Asked::Manifest => Self::new(OciCode::ManifestUnknown, message),
            Asked::Blob => Self::new(OciCode::BlobUnknown, message),
            Asked::Repository => Self::new(OciCode::NameUnknown, message),
        }
    }
}

/// Handlers of a route that asks for no particular thing.
impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Self::new(OciCode::Unavailable, error.to_string()).with_status(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// What a node told of a start, or asked about one.
impl From<ProfileError> for ApiError {
    fn from(error: ProfileError) -> Self {
        let message = error.to_string();
        match error {
            ProfileError::Trace(TraceError::Malformed(_)) => Self::refused(StatusCode::BAD_REQUEST, message),
            ProfileError::Trace(TraceError::TooMany(_)) => Self::refused(StatusCode::PAYLOAD_TOO_LARGE, message),
            ProfileError::Trace(TraceError::Strange(_)) | ProfileError::Pin(_) | ProfileError::Import(_) => {
                Self::refused(StatusCode::UNPROCESSABLE_ENTITY, message)
            }
            ProfileError::Busy | ProfileError::NotReady => Self::busy(Asked::Manifest, 1, message),
            ProfileError::Catalog(_) | ProfileError::Store(_) => {
                Self::new(OciCode::Unavailable, message).with_status(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }
}

/// `ns` twice, or a `wait_ms` that is no number.
impl From<QueryRejection> for ApiError {
    fn from(error: QueryRejection) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, error.body_text())
    }
}

/// Not 416: see there.
impl From<TooManyRanges> for ApiError {
    fn from(error: TooManyRanges) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(status = self.status.as_u16(), code = self.code.as_str(), error = %self.message, "request failed");
        }
        let body = serde_json::json!({
            "errors": [{ "code": self.code.as_str(), "message": self.message, "detail": null }]
        });
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let comes_back = matches!(self.status.as_u16(), 429 | 503);
        if let Some(secs) = self.retry_after_secs.or(comes_back.then_some(RETRY_AFTER_BUSY_SECS)) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, CHALLENGE);
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

/// A handler that panicked. What it said is in the log, by the panic hook, and is nothing for a client.
pub fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    ApiError::new(OciCode::Unavailable, "an error inside the server")
        .with_status(StatusCode::INTERNAL_SERVER_ERROR)
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_as_any_other_and_says_nothing() {
        let response = panicked(Box::new("a secret"));
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    }

    #[test]
    fn whoever_is_to_come_back_is_told_when() {
        let limit = |retry_after_secs| UpstreamError::TooManyRequests { retry_after_secs };
        for (error, status, secs) in [
            (ReadError::Stopping, 503, Some("5")),
            (UpstreamError::Offline.into(), 503, Some("60")),
            (limit(None).into(), 429, Some("10")),
            (limit(Some(7)).into(), 429, Some("7")),
            (
                UpstreamError::CircuitOpen { retry_after_secs: 3 }.into(),
                503,
                Some("3"),
            ),
            (
                UpstreamError::Unavailable { retry_after_secs: 30 }.into(),
                503,
                Some("30"),
            ),
            (UpstreamError::Status(500).into(), 502, None),
        ] {
            let response = ApiError::from_read(Asked::Blob, &error).into_response();
            let said = response.headers().get(header::RETRY_AFTER).map(|v| v.to_str().unwrap());
            assert_eq!((response.status().as_u16(), said), (status, secs), "{error}");
        }
    }
}
