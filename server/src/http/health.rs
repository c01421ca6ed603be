//! `/healthz`, `/readyz`, `/metrics`.
//!
//! In: nothing. Out: plain text.
//! Invariant: neither answer depends on an upstream: a registry that is down must not take its mirrors out of service.
//! Not here: what is counted ([`crate::metrics`]).

use std::convert::Infallible;

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use headstart_layer_format::routes;
use http::{StatusCode, header};

use super::generated::Generated;
use crate::app::App;

/// Answers of `/metrics` at once, which wait for no turn: a few collectors, and somebody who looks.
static SCRAPES: Generated = Generated::new(16);

/// The process answers.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The store is open and the server is not stopping.
pub async fn readyz(State(app): State<App>) -> Response {
    if app.is_stopping() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    // For people: a node's `doctor` shows it.
    ([(routes::VERSION_HEADER, env!("CARGO_PKG_VERSION"))], "ready\n").into_response()
}

pub async fn metrics(State(app): State<App>) -> Response {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    let text = SCRAPES.hold(|| Ok::<_, Infallible>(app.metrics.render().into_bytes()));
    match text {
        Some(Ok(text)) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        None => (
            StatusCode::SERVICE_UNAVAILABLE,
            [(header::RETRY_AFTER, "1")],
            "too many scrapes\n",
        )
            .into_response(),
    }
}
