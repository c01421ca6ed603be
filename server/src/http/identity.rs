//! The client of a request.
//!
//! In: a request, with the [`Peer`] of its connection. Out: the same, with a [`Client`] for handlers.
//! Invariant: every request has one. Nothing is checked here: what anybody may read costs nobody a password check.
//! Not here: whether the client may read something (`access/`).

use axum::{extract::Request, middleware::Next, response::Response};
use http::{Extensions, HeaderMap};

use crate::access::{Client, Peer};

/// Puts the client into the request.
pub async fn identify(mut request: Request, next: Next) -> Response {
    let peer = request
        .extensions()
        .get::<Peer>()
        .cloned()
        .unwrap_or_else(Peer::unknown);
    let client = Client::new(peer, request.headers());
    request.extensions_mut().insert(client);
    next.run(request).await
}

/// The client that [`identify`] put there.
pub fn client_of(extensions: &Extensions) -> Client {
    let client = extensions.get::<Client>().cloned();
    client.unwrap_or_else(|| Client::new(Peer::unknown(), &HeaderMap::new()))
}
