//! `layers/{digest}/toc` and `layers/{digest}/data`: a layer as nodes read it.
//!
//! In: a layer's digest, and ranges. Out: its TOC, or bytes of its seekable blob; or that it is not ready.
//! Invariant: a layer that is not ready is told apart from one that never will be (202, 422, 503), so a node knows whether
//! to come back.
//! Not here: the virtual blob ([`crate::read::seekable`]), TOCs for people ([`super::json_view`]).

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension,
    extract::{Path, Query, State, rejection::QueryRejection},
    response::{IntoResponse as _, Response},
};
use headstart_layer_format::{
    BlobDigest,
    api::{LayerState, LayerStatus},
    routes,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::{
    Answers, Details, RETRY_AFTER_SECS, blocking, busy, digest, json,
    json_view::{json_view, wants_json},
};
use crate::{
    access::{Client, Named},
    app::App,
    http::{
        body::{Representation, ranged_response},
        clients::ClientKey,
        error::{ApiError, OciCode},
        generated::Generated,
        parts::parts,
    },
    metrics::route,
};

/// A layer that is converted again may get another TOC and other frames under the same address, so a cache asks by ETag.
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");

/// JSON views of TOCs at once, each of them many times its TOC's size in memory: they are for people and tools.
static JSON_VIEWS: Generated = Generated::new(2);

pub(super) async fn toc(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    method: Method,
    headers: HeaderMap,
    Path(layer): Path<String>,
    details: Result<Query<Details>, QueryRejection>,
) -> Result<Response, ApiError> {
    let layer = match enter_layer(&app, &client, &layer, details).await? {
        Ok(layer) => layer,
        Err(not_ready) => return Ok(not_ready),
    };
    let store = app.store.clone();
    let as_json = wants_json(&headers);
    let read = blocking(move || {
        let Some((summary, bytes)) = store.toc(&layer)? else {
            return Ok(None);
        };
        store.touch_layer(&layer);
        let bytes = if as_json {
            JSON_VIEWS
                .hold(|| json_view(&bytes))
                .ok_or_else(|| busy("too many JSON views are being sent"))??
        } else {
            bytes
        };
        Ok(Some((summary, bytes)))
    });
    // Damaged between the two looks: it is being converted again.
    let Some((summary, bytes)) = read.await? else {
        return Ok(retry_later());
    };
    let digest_text = summary.digest.to_string();
    let mut rep = Representation {
        size: bytes.len() as u64,
        etag: quoted(&if as_json {
            format!("{digest_text}.json")
        } else {
            digest_text.clone()
        }),
        content_type: HeaderValue::from_static(if as_json {
            "application/json"
        } else {
            routes::TOC_MEDIA_TYPE
        }),
        headers: of_toc(&digest_text),
        route: route::TOC,
    };
    rep.headers.insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(ranged_response(&method, &headers, rep, &app.metrics, move |range| {
        let part = bytes.slice(range.start as usize..range.end as usize);
        futures_util::stream::iter([Ok::<_, Infallible>(part)])
    }))
}

pub(super) async fn data(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    (Extension(answers), Extension(key)): (Extension<Answers>, Extension<ClientKey>),
    method: Method,
    headers: HeaderMap,
    Path(layer): Path<String>,
    details: Result<Query<Details>, QueryRejection>,
) -> Result<Response, ApiError> {
    let layer = match enter_layer(&app, &client, &layer, details).await? {
        Ok(layer) => layer,
        Err(not_ready) => return Ok(not_ready),
    };
    let seekable = app.seekable.clone();
    let opened = blocking(move || Ok(seekable.open(&layer)?)).await?;
    let Some(opened) = opened else { return Ok(retry_later()) };
    let digest_text = opened.summary.digest.to_string();
    let rep = Representation {
        size: opened.summary.blob_size,
        etag: quoted(&digest_text),
        content_type: HeaderValue::from_static(routes::SEEKABLE_BLOB_MEDIA_TYPE),
        headers: of_toc(&digest_text),
        route: route::DATA,
    };
    let seekable = app.seekable.clone();
    let place = answers.enter(key)?;
    Ok(ranged_response(&method, &headers, rep, &app.metrics, move |range| {
        let (seekable, opened) = (seekable.clone(), opened.clone());
        let chunks = opened.covering(&range);
        let read = move |at: usize| {
            let (frames, next) = seekable.part(&opened, &range, at as u32)?;
            Ok((frames, next as usize))
        };
        parts(place.clone(), chunks.start as usize..chunks.end as usize, read)
    }))
}

/// The layer that is asked for, which the client may read and which is ready; or the answer that it is not.
async fn enter_layer(
    app: &App,
    client: &Client,
    layer: &str,
    details: Result<Query<Details>, QueryRejection>,
) -> Result<Result<BlobDigest, Response>, ApiError> {
    let Query(details) = details?;
    let layer: BlobDigest = digest(layer)?;
    details.enter(app, client, Named::Layer(layer)).await?;
    Ok(match not_ready(app, &layer, details.wait()).await? {
        Some(not_ready) => Err(not_ready),
        None => Ok(layer),
    })
}

/// The answer for a layer that is not ready after the wait; `None` when it is.
async fn not_ready(app: &App, layer: &BlobDigest, wait: Duration) -> Result<Option<Response>, ApiError> {
    let status = app.layers.settle(layer, wait).await?;
    let status = status.ok_or_else(|| {
        ApiError::new(
            OciCode::BlobUnknown,
            format!("layer {layer} is in no manifest served here"),
        )
    })?;
    Ok(not_ready_response(&status))
}

fn not_ready_response(status: &LayerStatus) -> Option<Response> {
    let (code, again) = match status.state {
        LayerState::Ready => return None,
        LayerState::Refused => (StatusCode::UNPROCESSABLE_ENTITY, false),
        LayerState::Failed => (StatusCode::SERVICE_UNAVAILABLE, true),
        LayerState::Unknown | LayerState::Queued | LayerState::Converting => (StatusCode::ACCEPTED, true),
    };
    let mut response = json(code, status);
    if again {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECS));
    }
    Some(response)
}

fn retry_later() -> Response {
    busy("the layer is being converted again").into_response()
}

fn of_toc(toc_digest: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_str(toc_digest) {
        headers.insert(HeaderName::from_static(routes::TOC_DIGEST_HEADER), value);
    }
    headers.insert(header::CACHE_CONTROL, REVALIDATE);
    headers
}

fn quoted(text: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("\"{text}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}
