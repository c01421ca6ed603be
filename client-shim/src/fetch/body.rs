//! Bodies of responses, bounded in size and in silence.
//!
//! In: a response. Out: its bytes. Invariant: memory grows with bytes that really came, never with a promise, and never
//! above the caller's bound; a server that goes silent is an error, not a wait.
//! Not here: what the bytes mean.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::Response;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::FetchError;

/// The next piece of a body, `None` at its end.
pub(super) async fn piece(response: &mut Response, idle: Duration) -> Result<Option<Bytes>, FetchError> {
    match timeout(idle, response.chunk()).await {
        Err(_) => Err(FetchError::Unreachable("it went silent within a body".into())),
        Ok(Err(e)) => Err(unreachable(&e)),
        Ok(Ok(piece)) => Ok(piece),
    }
}

/// The whole body, at most `size_max` bytes.
pub(super) async fn whole(mut response: Response, size_max: u64, idle: Duration) -> Result<Vec<u8>, FetchError> {
    const TOO_LONG: FetchError = FetchError::Malformed("a body is over its limit");
    if response.content_length().is_some_and(|n| n > size_max) {
        return Err(TOO_LONG);
    }
    let mut out = BytesMut::new();
    while let Some(piece) = piece(&mut response, idle).await? {
        if out.len() as u64 + piece.len() as u64 > size_max {
            return Err(TOO_LONG);
        }
        out.extend_from_slice(&piece);
    }
    Ok(out.into())
}

/// The whole body as JSON.
pub(super) async fn json<T: DeserializeOwned>(
    response: Response,
    size_max: u64,
    idle: Duration,
) -> Result<T, FetchError> {
    let bytes = whole(response, size_max, idle).await?;
    serde_json::from_slice(&bytes).map_err(|_| FetchError::Malformed("a body is not the JSON it should be"))
}

/// A transport failure with its cause, without the URL (the log line that shows it knows the server).
pub(super) fn unreachable(error: &reqwest::Error) -> FetchError {
    let mut text = String::from(if error.is_connect() {
        "it does not accept connections"
    } else if error.is_timeout() {
        "it took too long"
    } else {
        "the connection broke"
    });
    let mut cause = std::error::Error::source(error);
    while let Some(e) = cause {
        if e.source().is_none() {
            text = format!("{text}: {e}");
        }
        cause = e.source();
    }
    FetchError::Unreachable(text)
}
