//! `/headstart/v1`: what nodes ask. `FORMAT.md` has the shapes, units and errors.
//!
//! In: requests. Out: the routes to their answers ([`images`], [`layers`], [`chunks`], [`profile`]), and what these share.
//! Invariant: every wait is bounded by the server, every body by a limit. Every route but a wrong digest asks
//! [`crate::access`] first, before anything is looked up or set in motion.
//! Not here: where bytes come from (`read/`), range arithmetic (`range.rs`), bodies (`body.rs`).

mod chunks;
mod images;
mod json_view;
mod layers;

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRequest as _, Request},
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use headstart_layer_format::{
    DigestError,
    limits::{TOC_WAIT_MS_MAX, TRACE_SIZE_MAX},
    routes,
};
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::{
    clients::ClientKey,
    error::{ApiError, Asked, OciCode},
    profile,
    streams::{Bounds, Place, Streams},
    unread::drain,
    v2::resolve,
};
use crate::{
    access::{Client, Named},
    app::App,
};
use chunks::CHUNKS_BODY_SIZE_MAX;

/// What a node is told to wait before it asks again about a conversion.
const RETRY_AFTER_SECS: u64 = 1;

/// Of answers with frames, beside profiles, which have bounds of their own: a part is 1 MiB, or one frame.
const ANSWERS: Bounds = Bounds {
    // A few KiB each.
    streams: 8192,
    reads: 64,
    client_parts: 64,
    parts: 256,
};

/// Answers with frames, by client.
#[derive(Clone, Debug)]
struct Answers(Streams);

impl Answers {
    fn enter(&self, key: ClientKey) -> Result<Arc<Place>, ApiError> {
        let place = self.0.enter(key).map(Arc::new);
        place.ok_or_else(|| busy("too many frames are being sent"))
    }
}

/// The routes, for [`super`] to merge.
pub fn routes(streams: Streams) -> Router<App> {
    Router::new()
        .route(routes::IMAGE_TEMPLATE, get(images::image))
        .route(
            routes::TRACE_TEMPLATE,
            post(profile::trace).layer(DefaultBodyLimit::max(TRACE_SIZE_MAX)),
        )
        .route(routes::LAYER_TOC_TEMPLATE, get(layers::toc))
        .route(routes::LAYER_DATA_TEMPLATE, get(layers::data))
        .route(
            routes::CHUNKS,
            post(chunks::chunks)
                .layer::<_, Infallible>(DefaultBodyLimit::max(CHUNKS_BODY_SIZE_MAX))
                .layer(Extension(streams)),
        )
        .route(routes::CHAIN_TEMPLATE, get(images::chain))
        .layer(Extension(Answers(Streams::new(ANSWERS))))
}

/// `?wait_ms=`, cut to what the server grants; the repository that is meant, as in a path below `/v2/`; and of which kind
/// of start the profile is to be, and which one is known.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Details {
    wait_ms: u64,
    ns: Option<String>,
    repository: Option<String>,
    class: Option<String>,
    profile: Option<String>,
    /// Of a chain: the status of its latest image too.
    image: bool,
}

impl Details {
    fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms.min(TOC_WAIT_MS_MAX))
    }

    /// Fails unless the client may read what `named` names.
    pub(super) async fn enter(&self, app: &App, client: &Client, named: Named) -> Result<(), ApiError> {
        let source = match &self.repository {
            Some(repository) => Some(resolve(app, self.ns.as_deref(), repository)?.source),
            None => None,
        };
        let allowed = app.access.allow_digest(client, named, source.as_ref()).await;
        allowed.map_err(|error| ApiError::from_access(asked(named), &error))
    }
}

fn asked(named: Named) -> Asked {
    match named {
        Named::Layer(_) => Asked::Blob,
        Named::Manifest(_) => Asked::Manifest,
    }
}

/// A request's body, all of it, in time.
pub(super) async fn limited_body(
    app: &App,
    request: Request,
    size_max: usize,
    what: &'static str,
) -> Result<Bytes, ApiError> {
    // What says itself that it is too large need not come.
    if hyper::body::Body::size_hint(request.body()).lower() > size_max as u64 {
        let (head, body) = request.into_parts();
        drain(&head, body);
        let message = format!("read {what}: it has more than {size_max} bytes");
        return Err(ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    // hyper bounds the time of the head alone, and a request whose answer has not begun holds one of a few permits.
    let time_max = Duration::from_millis(app.config.http.header_timeout_ms);
    let body = tokio::time::timeout(time_max, Bytes::from_request(request, &())).await;
    body.map_err(|_| ApiError::refused(StatusCode::REQUEST_TIMEOUT, format!("read {what} in time")))?
        .map_err(|e| ApiError::refused(e.status(), format!("read {what}: {e}")))
}

pub(super) fn busy(why: &str) -> ApiError {
    ApiError {
        retry_after_secs: Some(RETRY_AFTER_SECS),
        ..ApiError::new(OciCode::Unavailable, why).with_status(StatusCode::SERVICE_UNAVAILABLE)
    }
}

pub(super) fn digest<T: std::str::FromStr<Err = DigestError>>(text: &str) -> Result<T, ApiError> {
    text.parse()
        .map_err(|e: DigestError| ApiError::new(OciCode::DigestInvalid, e.to_string()))
}

fn json(status: StatusCode, body: &impl Serialize) -> Response {
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Store reads on a thread that may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(ApiError::new(OciCode::Unavailable, error.to_string()).with_status(StatusCode::INTERNAL_SERVER_ERROR))
        }
    }
}
