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
    know(&mut request);
    next.run(request).await
}

/// The same, for who goes on by himself.
pub fn know(request: &mut Request) {
    let peer = request.extensions().get::<Peer>();
    let client = Client::new(peer.map_or_else(Peer::unknown, Peer::clone), request.headers());
    request.extensions_mut().insert(client);
}

/// The client that [`identify`] put there.
pub fn client_of(extensions: &Extensions) -> Client {
    let client = extensions.get::<Client>().cloned();
    client.unwrap_or_else(|| Client::new(Peer::unknown(), &HeaderMap::new()))
}
