//! Why an upstream gave no answer that helps.
//!
//! In: transport errors and statuses. Out: [`UpstreamError`].
//! Invariant: nothing in a message comes from a URL's query or user part, where signatures and secrets are.
//! Not here: what a client is told (`http/error.rs`).

use std::{sync::Arc, time::Duration};

use super::dial::Forbidden;

/// What is waited for with a client at the other end, although the upstream says "later".
const MOMENT_SECS: u64 = 2;

/// Why an upstream gave no answer that helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    #[error("the upstream does not have it")]
    NotFound {
        /// The upstream said that even the repository does not exist.
        name_unknown: bool,
    },
    #[error("the upstream refused access (status {status})")]
    Denied { status: u16 },
    #[error("the upstream asks for a token from a host that is not pinned for it")]
    ForeignRealm,
    #[error("the upstream limits our requests")]
    TooManyRequests { retry_after_secs: Option<u64> },
    /// 503 with a `Retry-After`.
    #[error("the upstream is not available, and says when it will be")]
    Unavailable { retry_after_secs: u64 },
    #[error("the upstream answered with status {0}")]
    Status(u16),
    #[error("the upstream did not answer in time")]
    Timeout,
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(Arc<str>),
    #[error("the upstream's answer makes no sense: {0}")]
    BadAnswer(&'static str),
    #[error("the upstream is not asked: this server is offline for it")]
    Offline,
    #[error("the upstream is not asked: it failed too often just now")]
    CircuitOpen { retry_after_secs: u64 },
    #[error("the server's own credentials for the upstream cannot be had")]
    NoCredentials,
    #[error("the upstream is not asked: too many requests are waiting for it here")]
    Busy,
}

impl UpstreamError {
    /// Whether the upstream is in trouble, so that something older may be served; as opposed to its saying no.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::TooManyRequests { .. } | Self::Timeout | Self::Unreachable(_) | Self::BadAnswer(_) => true,
            Self::Offline | Self::CircuitOpen { .. } | Self::NoCredentials | Self::Busy => true,
            Self::Unavailable { .. } => true,
            Self::Status(status) => *status >= 500,
            Self::NotFound { .. } | Self::Denied { .. } | Self::ForeignRealm => false,
        }
    }

    /// Whether the upstream itself failed, as opposed to its saying no or slower, and to our not asking.
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Timeout | Self::Unreachable(_) | Self::BadAnswer(_) => true,
            Self::Status(status) => *status >= 500,
            _ => false,
        }
    }

    /// Whether the same request may succeed in a moment.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Timeout | Self::Unreachable(_) => true,
            Self::Status(status) => matches!(status, 500 | 502 | 503 | 504),
            Self::Unavailable { retry_after_secs } => *retry_after_secs <= MOMENT_SECS,
            _ => false,
        }
    }

    /// When to ask again: what the upstream asks for, or `usual`.
    pub(super) fn pause(&self, usual: Duration) -> Duration {
        match self {
            Self::Unavailable { retry_after_secs } => Duration::from_secs(*retry_after_secs).max(usual),
            _ => usual,
        }
    }
}

impl From<reqwest::Error> for UpstreamError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_timeout() {
            return Self::Timeout;
        }
        // The URL may carry a CDN's signature. The innermost cause says what happened ("connection refused").
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        if cause.is::<Forbidden>() {
            return Self::BadAnswer("it leads to an address where we do not go");
        }
        Self::Unreachable(cause.to_string().into())
    }
}
