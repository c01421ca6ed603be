//! HTTP: the routes and what surrounds them.
//!
//! In: an [`App`]. Out: its router.
//! Invariant: the layers below apply to every route. Bodies of requests are bounded, and so is the number of requests
//! whose answer has not begun.
//! Not here: connections ([`serve`]).

pub mod body;
mod certificate;
pub mod error;
pub mod headstart;
mod health;
pub mod identity;
pub mod range;
mod sendfile;
pub mod serve;
mod stall;
pub mod tls;
mod v2;
mod v2_blob;
mod v2_listing;
mod v2_manifest;
mod v2_path;
mod v2_referrers;
mod v2_tags;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{any, get},
};
use headstart_layer_format::routes;
use http::StatusCode;
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;
use error::{ApiError, OciCode};

/// Request bodies: the largest is `POST chunks`, `limits::CHUNK_REQUEST_MAX` digests of some 75 bytes.
const REQUEST_BODY_MAX: usize = 1 << 20;

/// Every route.
pub fn router(app: App) -> Router {
    let running = Arc::new(Semaphore::new(app.config.http.requests_max));
    Router::new()
        .route("/v2/", any(v2::base))
        .route("/v2", any(v2::base))
        .route("/v2/{*rest}", any(v2::any))
        .merge(headstart::routes())
        .layer(middleware::from_fn_with_state(running, bounded))
        // Probes and counters answer also when the requests above do not.
        .route(routes::HEALTHZ, get(health::healthz))
        .route(routes::READYZ, get(health::readyz))
        .route(routes::METRICS, get(health::metrics))
        .layer(middleware::from_fn(identity::identify))
        .layer(DefaultBodyLimit::max(REQUEST_BODY_MAX))
        .layer(CatchPanicLayer::new())
        .with_state(app)
}

/// Refuses at once what would only queue up; runtimes then go to their next mirror.
async fn bounded(State(running): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    match running.try_acquire() {
        Ok(_permit) => next.run(request).await,
        Err(_) => {
            let error = ApiError::new(OciCode::Unavailable, "too many requests are running");
            error.with_status(StatusCode::SERVICE_UNAVAILABLE).into_response()
        }
    }
}
