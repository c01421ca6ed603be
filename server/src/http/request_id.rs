//! A name for one request, in every log line of it and in its answer.
//!
//! In: `X-Request-Id` of the client. Out: the same if it is sane, else one of ours.
//! Invariant: what goes into logs and headers is 1 to 64 characters of `A-Za-z0-9._-`.
//! Not here: trace identifiers ([`crate::telemetry`]).

use std::{
    fmt,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use http::{HeaderMap, HeaderName, HeaderValue};

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

const LEN_MAX: usize = 64;

#[derive(Clone, Debug)]
pub struct RequestId(HeaderValue);

impl RequestId {
    pub fn of(headers: &HeaderMap) -> Self {
        match headers.get(REQUEST_ID) {
            Some(value) if is_sane(value.as_bytes()) => Self(value.clone()),
            _ => Self::generate(),
        }
    }

    /// Unique over restarts by chance, within a process by counting.
    fn generate() -> Self {
        static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().build_hasher().finish());
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let text = format!("{:016x}-{:x}", *PROCESS, NEXT.fetch_add(1, Ordering::Relaxed));
        Self(HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("none")))
    }

    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_str().unwrap_or("none"))
    }
}

fn is_sane(id: &[u8]) -> bool {
    (1..=LEN_MAX).contains(&id.len()) && id.iter().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sane_names_are_kept_and_others_replaced() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(value).unwrap());
            RequestId::of(&headers).to_string()
        };
        assert_eq!(of("a-B_9.z"), "a-B_9.z");
        assert_eq!(of(&"x".repeat(64)), "x".repeat(64));
        for bad in ["", "a b", "a\"b", "a=b", &"x".repeat(65), "{}"] {
            let id = of(bad);
            assert!(id != bad && is_sane(id.as_bytes()), "{bad:?} {id:?}");
        }
        let ours = [RequestId::generate(), RequestId::generate()].map(|id| id.to_string());
        assert_ne!(ours[0], ours[1]);
    }
}
