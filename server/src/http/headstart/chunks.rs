//! `POST chunks`: frames of many chunks in one answer.
//!
//! In: a list of chunks, with the layers that they are asked for; or a profile. Out: the frames, in the order asked for.
//! Invariant: lists are bounded, and so is the time they may take to come; of chunks that the client may not read it is told
//! that they are missing. The layers that are named are held until the answer is out, so their chunks do not go meanwhile.
//! Not here: frames ([`crate::read::seekable`]), streams of profiles ([`crate::http::profile`]).

use axum::{
    Extension,
    body::Body,
    extract::{Request, State},
    response::Response,
};
use futures_util::StreamExt as _;
use headstart_layer_format::{
    api::ChunksRequest,
    limits::{CHUNK_LAYERS_MAX, CHUNK_REQUEST_MAX},
    profile::ProfileRequest,
    routes,
};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;

use super::{Answers, blocking, limited_body};
use crate::{
    access::{AccessError, Client, Named},
    app::App,
    http::{
        clients::ClientKey,
        error::{ApiError, Asked},
        parts::parts,
        profile,
        streams::Streams,
    },
    metrics::route,
    read::seekable::Wanted,
    store::LayerHold,
};

/// A digest in the JSON of `POST chunks` takes 74 bytes with its quotes and comma, a SHA-512 138; the rest is slack for
/// white space.
pub(super) const CHUNKS_BODY_SIZE_MAX: usize = CHUNK_REQUEST_MAX * 96 + CHUNK_LAYERS_MAX * 160 + 1024;

/// A request that names a profile, or digests.
#[derive(Deserialize)]
#[serde(untagged)]
enum Asking {
    Profile(ProfileRequest),
    Chunks(ChunksRequest),
}

pub(super) async fn chunks(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    Extension(streams): Extension<Streams>,
    Extension(answers): Extension<Answers>,
    Extension(key): Extension<ClientKey>,
    request: Request,
) -> Result<Response, ApiError> {
    let body = limited_body(&app, request, CHUNKS_BODY_SIZE_MAX, "the list of chunks").await?;
    let request = serde_json::from_slice(&body)
        .map_err(|e| ApiError::refused(StatusCode::BAD_REQUEST, format!("parse the list of chunks: {e}")))?;
    let request = match request {
        Asking::Profile(request) => return profile::chunks(&app, &streams, &client, key, request).await,
        Asking::Chunks(request) => request,
    };
    if request.chunks.len() > CHUNK_REQUEST_MAX {
        let message = format!(
            "{} chunks asked for, over the limit of {CHUNK_REQUEST_MAX}",
            request.chunks.len()
        );
        return Err(ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    if request.layers.len() > CHUNK_LAYERS_MAX {
        let message = format!(
            "chunks of {} layers asked for, over the limit of {CHUNK_LAYERS_MAX}",
            request.layers.len()
        );
        return Err(ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    let (wanted, held) = readable(&app, &client, request).await?;
    let place = answers.enter(key)?;
    let (metrics, seekable) = (app.metrics.clone(), app.seekable.clone());
    let count = wanted.len();
    let read = move |at: usize| {
        let (frames, taken) = seekable.framed(&wanted[at..])?;
        Ok((frames, at + taken))
    };
    let stream = parts(place, 0..count, read).inspect(move |part| {
        // Until the stream ends, their chunks do not go.
        let _held = &held;
        if let Ok(part) = part {
            metrics.served(route::CHUNKS, part.len() as u64);
        }
    });
    let mut response = Response::new(Body::from_stream(stream));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(routes::CHUNK_STREAM_MEDIA_TYPE),
    );
    Ok(response)
}

/// The chunks that the client may read, and for the others what is missing: chunks of those layers it named that it may
/// read.
async fn readable(
    app: &App,
    client: &Client,
    request: ChunksRequest,
) -> Result<(Vec<Wanted>, Vec<LayerHold>), ApiError> {
    let seekable = app.seekable.clone();
    let ChunksRequest { chunks, layers: named } = request;
    if app.access.allow_unknown(client).await.is_ok() {
        let held = blocking(move || Ok(seekable.hold(&named)?)).await?;
        return Ok((chunks.into_iter().map(Wanted::Chunk).collect(), held));
    }
    let mut layers = Vec::new();
    let mut refused = None;
    for layer in named {
        match app.access.allow_digest(client, Named::Layer(layer), None).await {
            Ok(()) => layers.push(layer),
            Err(error) => refused = Some(error),
        }
    }
    // Credentials may help with all of it.
    if let (true, Some(error @ AccessError::Unauthorized)) = (layers.is_empty(), &refused) {
        return Err(ApiError::from_access(Asked::Blob, error));
    }
    blocking(move || {
        let held = seekable.hold(&layers)?;
        Ok((seekable.of_layers(&layers, chunks)?, held))
    })
    .await
}
