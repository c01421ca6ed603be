//! `/healthz`, `/readyz`, `/metrics`.
//!
//! In: nothing. Out: plain text.
//! Invariant: neither answer depends on an upstream: a registry that is down must not take its mirrors out of service.
//! Not here: what is counted ([`crate::metrics`]).

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};

use crate::app::App;

/// The process answers.
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The store is open and the server is not stopping.
pub async fn readyz(State(app): State<App>) -> Response {
    if app.is_stopping() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    "ready\n".into_response()
}

pub async fn metrics(State(app): State<App>) -> Response {
    let content_type = "text/plain; version=0.0.4; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], app.metrics.render()).into_response()
}
