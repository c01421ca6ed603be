//! Bodies of requests that are refused.
//!
//! In: a body for which there is no use. Out: nothing; some of it is read, and thrown away.
//! Invariant: the answer does not wait for it; what is read, and for how long, has a bound. Who closes a connection on which
//! bytes still arrive resets it, and a reset may reach the client before it has read the answer, which says why.
//! Not here: bodies that are of use ([`super::headstart`]), and the time of a connection ([`super::connection`]).

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use futures_util::StreamExt as _;
use http::{Version, header, request::Parts};

/// As much as a manifest has: nobody sends a layer before a POST was answered.
const BYTES_MAX: usize = 4 << 20;

/// For a body that comes slowly, or not at all.
const TIME_MAX: Duration = Duration::from_secs(2);

/// Reads on, beside the answer.
pub fn drain(head: &Parts, body: Body) {
    // HTTP/2 ends a stream and not the connection; and who asks before sending is told no.
    let is_sent = head.version < Version::HTTP_2 && !head.headers.contains_key(header::EXPECT);
    if !is_sent || body.is_end_stream() {
        return;
    }
    tokio::spawn(async move {
        let mut left = BYTES_MAX;
        let mut body = body.into_data_stream();
        let read = async {
            while let Some(Ok(bytes)) = body.next().await {
                left = left.saturating_sub(bytes.len());
                if left == 0 {
                    break;
                }
            }
        };
        // However it ends, the connection does, too.
        let _ = tokio::time::timeout(TIME_MAX, read).await;
    });
}
