//! HTTP: the routes and what surrounds them.
//!
//! In: an [`App`]. Out: its router, behind a [`front`].
//! Invariant: the layers below apply to every route; the outermost, [`around`], also sees what the others make of errors
//! and panics. Bodies of requests are bounded.
//! Not here: connections ([`serve`]).

mod admission;
mod answer;
mod around;
mod beside;
pub mod body;
mod certificate;
mod clients;
mod connection;
pub mod error;
mod exchange;
pub mod front;
mod generated;
mod handshakes;
pub mod headstart;
mod health;
pub mod identity;
mod pace;
mod parts;
mod profile;
pub mod range;
mod request_id;
mod resident;
mod ring;
mod sendfile;
pub mod serve;
mod socket;
mod streams;
pub mod tls;
mod unread;
mod v2;
mod v2_blob;
mod v2_listing;
mod v2_manifest;
mod v2_path;
mod v2_referrers;
mod v2_tags;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware,
    routing::{any, get},
};
use headstart_layer_format::routes;
use tower_http::catch_panic::CatchPanicLayer;

use crate::app::App;
use around::Around;
use streams::{Bounds, Streams};

/// Request bodies, but those of routes that say otherwise: `POST chunks` has `limits::CHUNK_REQUEST_MAX` digests of some 75
/// bytes.
const REQUEST_BODY_MAX: usize = 1 << 20;

/// Of streams of profiles; the first two are configured. A part is 1 MiB, or one frame.
const PROFILES: Bounds = Bounds {
    streams: 0,
    reads: 0,
    client_parts: 16,
    parts: 256,
};

/// Every route.
fn router(app: App, around: Around) -> Router {
    let streams = Streams::new(Bounds {
        streams: app.config.profile.streams_max,
        reads: app.config.profile.reads_max,
        ..PROFILES
    });
    Router::new()
        .route("/v2/", any(v2::base))
        .route("/v2", any(v2::base))
        .route("/v2/{*rest}", any(v2::any))
        .merge(headstart::routes(streams))
        .route(routes::HEALTHZ, get(health::healthz))
        .route(routes::READYZ, get(health::readyz))
        .route(routes::METRICS, get(health::metrics))
        .layer(middleware::from_fn(identity::identify))
        .layer(DefaultBodyLimit::max(REQUEST_BODY_MAX))
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(middleware::from_fn_with_state(around, around::around))
        .with_state(app)
}
