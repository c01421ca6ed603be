//! Profiles over HTTP: in an image status, as a stream of chunks, and traces that teach them.
//!
//! In: image statuses, traces, requests for what a node lacks. Out: profiles, chunk streams.
//! Invariant: whoever may read an image gets its profile, and of the stream only chunks of layers that it may read; who
//! teaches has said who it is, where clients have to. A stream begins at once, reads on only as its client takes it, and
//! ends when that goes away.
//! Not here: what is learnt ([`crate::profile`]), turns ([`super::streams`]), `POST chunks` of digests ([`super::headstart`]).

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Body,
    extract::{Path, Query, Request, State, rejection::QueryRejection},
    response::Response,
};
use futures_util::StreamExt as _;
use headstart_layer_format::{
    BlobDigest, ProfileDigest,
    api::ImageStatus,
    limits::TRACE_SIZE_MAX,
    profile::{Class, Profile, ProfileRequest, Trace},
    routes,
};
use http::{HeaderValue, StatusCode, header};

use super::{
    clients::ClientKey,
    error::{ApiError, Asked, OciCode},
    headstart::{Details, blocking, busy, digest, limited_body},
    parts::parts,
    streams::Streams,
};
use crate::{
    access::{Client, Named},
    app::App,
    metrics::{
        names::{Count, Level},
        route,
    },
    read::{images::image_status, seekable::Wanted},
};

/// Frames of the first turn, fewer than of the others: somebody waits for it.
const FRAMES_FIRST: usize = 2;

/// The profile of an image, for its status. A server that cannot tell says nothing: it is a hint.
pub async fn profile_of(
    app: &App,
    status: &ImageStatus,
    class: Class,
    known: Option<ProfileDigest>,
) -> Option<Profile> {
    if !status.is_ready() {
        return None;
    }
    let (profiles, asked) = (app.profiles.clone(), status.clone());
    let answer = match blocking(move || Ok(profiles.answer(&asked, &class)?)).await {
        Ok(answer) => answer,
        Err(error) => {
            tracing::warn!(error = error.message, manifest = %status.manifest_digest, "failed to look for a profile");
            None
        }
    };
    let Some(answer) = answer else {
        app.metrics.add(Count::ProfilesGiven, 1, &["none"]);
        return None;
    };
    let mut profile = answer.profile.clone();
    app.metrics.add(Count::ProfilesGiven, 1, &[profile.origin.as_str()]);
    if known == Some(profile.digest) {
        profile.runs.clear();
    }
    Some(profile)
}

/// `POST images/{manifest-digest}/trace`.
pub async fn trace(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    Extension(key): Extension<ClientKey>,
    Path(manifest): Path<String>,
    details: Result<Query<Details>, QueryRejection>,
    request: Request,
) -> Result<Response, ApiError> {
    let Query(details) = details?;
    let manifest: BlobDigest = digest(&manifest)?;
    details.enter(&app, &client, Named::Manifest(manifest)).await?;
    let name = app.access.teacher(&client).await;
    let name = name.map_err(|error| ApiError::from_access(Asked::Manifest, &error))?;
    let node = match name {
        Some(name) => format!("name {name}"),
        None => format!("address {key}"),
    };
    let body = limited_body(&app, request, TRACE_SIZE_MAX, "the trace").await?;
    let trace: Trace = serde_json::from_slice(&body)
        .map_err(|e| ApiError::refused(StatusCode::BAD_REQUEST, format!("parse the trace: {e}")))?;
    // Conversions that this sets off are what the node wants anyway.
    let status = image_status(&app.store, &app.layers, &manifest, Duration::ZERO).await;
    let status = status.map_err(|error| ApiError::from_read(Asked::Manifest, &error))?;
    let status = status.ok_or_else(|| unknown(&manifest))?;
    let profiles = app.profiles.clone();
    blocking(move || Ok(profiles.record(&status, &trace, &node)?)).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// `POST chunks` of a profile.
pub async fn chunks(
    app: &App,
    streams: &Streams,
    client: &Client,
    key: ClientKey,
    request: ProfileRequest,
) -> Result<Response, ApiError> {
    let details = Details::default();
    details.enter(app, client, Named::Manifest(request.image)).await?;
    let answer = app.profiles.given(&request.image, &request.profile).ok_or_else(|| {
        let message = format!(
            "stream profile {}: it is not known any more; ask for the image",
            request.profile
        );
        ApiError::refused(StatusCode::CONFLICT, message)
    })?;
    let mut allowed = vec![true; answer.layers.len()];
    if app.access.allow_unknown(client).await.is_err() {
        for (layer, allowed) in answer.layers.iter().zip(&mut allowed) {
            *allowed = details.enter(app, client, Named::Layer(*layer)).await.is_ok();
        }
    }
    let wanted: Arc<[Wanted]> = answer
        .chunks
        .iter()
        .enumerate()
        .filter(|(at, (layer, _))| !request.have.has(*at) && allowed.get(*layer as usize) == Some(&true))
        .map(|(_, (_, digest))| Wanted::Chunk(*digest))
        .collect();
    let place = streams
        .enter(key)
        .ok_or_else(|| busy("too many profiles are being streamed"))?;
    let (seekable, layers) = (app.seekable.clone(), answer.layers.clone());
    // Until the stream ends, its layers stay.
    let held = blocking(move || Ok(seekable.hold(&layers)?)).await?;
    let counted = app.metrics.hold(Level::ProfileStreams, &[]);
    let metrics = app.metrics.clone();
    let (seekable, count) = (app.seekable.clone(), wanted.len());
    let read = move |at: usize| {
        let to = if at == 0 { FRAMES_FIRST.min(count) } else { count };
        let (frames, taken) = seekable.framed(&wanted[at..to])?;
        Ok((frames, at + taken))
    };
    let parts = parts(Arc::new(place), 0..count, read).inspect(move |part| {
        let _kept = (&held, &counted);
        if let Ok(part) = part {
            metrics.served(route::CHUNKS, part.len() as u64);
        }
    });
    let mut response = Response::new(Body::from_stream(parts));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(routes::CHUNK_STREAM_MEDIA_TYPE),
    );
    Ok(response)
}

fn unknown(manifest: &BlobDigest) -> ApiError {
    let message = format!("no image manifest {manifest} was served here");
    ApiError::new(OciCode::ManifestUnknown, message)
}
