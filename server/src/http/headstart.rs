//! `/headstart/v1`: what nodes ask. `FORMAT.md` has the shapes, units and errors.
//!
//! In: digests, ranges, lists of chunks. Out: image states, TOCs, chunk frames. (Profiles: [`super::profile`].)
//! Invariant: every wait is bounded by the server, every body by a limit; a layer that is not ready is told apart from one
//! that never will be (202, 422, 503), so a node knows whether to come back.
//! Every route but a wrong digest asks [`crate::access`] first, before anything is looked up or set in motion.
//! Not here: where bytes come from (`read/`), range arithmetic (`range.rs`), bodies (`body.rs`).

use std::{convert::Infallible, time::Duration};

use axum::{
    Extension, Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRequest as _, Path, Query, Request, State, rejection::QueryRejection},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use headstart_layer_format::{
    BlobDigest, ChainId, DigestError, ProfileDigest, Toc,
    api::{ChainStatus, ChunksRequest, ImageStatus, LayerState, LayerStatus},
    limits::{CHUNK_LAYERS_MAX, CHUNK_REQUEST_MAX, TOC_WAIT_MS_MAX, TRACE_SIZE_MAX},
    profile::{ProfileError, ProfileRequest},
    routes,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::{
    body::{Representation, ranged_response},
    clients::ClientKey,
    error::{ApiError, Asked, OciCode},
    generated::Generated,
    profile,
    streams::Streams,
    v2::resolve,
};
use crate::{
    access::{AccessError, Client, Named},
    app::App,
    metrics::route,
    read::{images::image_status, seekable::Wanted},
    store::LayerHold,
};

/// A digest in the JSON of `POST chunks` takes 74 bytes with its quotes and comma, a SHA-512 138; the rest is slack for
/// white space.
const CHUNKS_BODY_SIZE_MAX: usize = CHUNK_REQUEST_MAX * 96 + CHUNK_LAYERS_MAX * 160 + 1024;
/// What a node is told to wait before it asks again about a conversion.
const RETRY_AFTER_SECS: u64 = 1;
/// Layers of one image whose membership may have to be asked of an upstream at once.
const LAYERS_CHECKED_AT_ONCE: usize = 8;
/// A layer that is converted again may get another TOC and other frames under the same address, so a cache asks by ETag.
const REVALIDATE: HeaderValue = HeaderValue::from_static("no-cache");

/// JSON views of TOCs at once, each of them many times its TOC's size in memory: they are for people and tools.
static JSON_VIEWS: Generated = Generated::new(2);
/// TOCs that are shown as JSON; one of a hundred thousand files has some MiB.
const JSON_TOC_SIZE_MAX: usize = 16 << 20;
/// What is made of them.
const JSON_SIZE_MAX: usize = 128 << 20;

/// The routes, for [`super`] to merge.
pub fn routes(streams: Streams) -> Router<App> {
    Router::new()
        .route(routes::IMAGE_TEMPLATE, get(image))
        .route(
            routes::TRACE_TEMPLATE,
            post(profile::trace).layer(DefaultBodyLimit::max(TRACE_SIZE_MAX)),
        )
        .route(routes::LAYER_TOC_TEMPLATE, get(toc))
        .route(routes::LAYER_DATA_TEMPLATE, get(data))
        .route(
            routes::CHUNKS,
            post(chunks)
                .layer::<_, Infallible>(DefaultBodyLimit::max(CHUNKS_BODY_SIZE_MAX))
                .layer(Extension(streams)),
        )
        .route(routes::CHAIN_TEMPLATE, get(chain))
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

async fn image(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    Path(manifest): Path<String>,
    details: Result<Query<Details>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(details) = details?;
    let manifest: BlobDigest = digest(&manifest)?;
    let class = details.class.as_deref().unwrap_or_default().parse();
    let class = class.map_err(|e: ProfileError| {
        ApiError::new(OciCode::Unsupported, e.to_string()).with_status(StatusCode::BAD_REQUEST)
    })?;
    let known = details.profile.as_deref().map(digest::<ProfileDigest>).transpose()?;
    details.enter(&app, &client, Named::Manifest(manifest)).await?;
    let status = readable_status(&app, &client, &details, &manifest, details.wait()).await?;
    let mut status = status.ok_or_else(|| {
        ApiError::new(
            OciCode::ManifestUnknown,
            format!("no image manifest {manifest} was served here"),
        )
    })?;
    status.profile = profile::profile_of(&app, &status, class, known).await;
    Ok(json(StatusCode::OK, &status))
}

/// As far as this client may know it.
async fn readable_status(
    app: &App,
    client: &Client,
    details: &Details,
    manifest: &BlobDigest,
    wait: Duration,
) -> Result<Option<ImageStatus>, ApiError> {
    let status = image_status(&app.store, &app.layers, manifest, wait).await;
    let mut status = status.map_err(|error| ApiError::from_read(Asked::Manifest, &error))?;
    if let Some(status) = &mut status {
        refuse_unreadable(app, client, details, status).await;
    }
    Ok(status)
}

/// A manifest may name what is somebody else's: of such layers nothing is told. They are refused, so that a node does
/// not wait for them.
async fn refuse_unreadable(app: &App, client: &Client, details: &Details, image: &mut ImageStatus) {
    if app.access.allow_unknown(client).await.is_ok() {
        return;
    }
    let digests: Vec<BlobDigest> = image.layers.iter().map(|layer| layer.digest).collect();
    let checks = stream::iter(digests.into_iter().map(Named::Layer))
        .map(|layer| async move { details.enter(app, client, layer).await.is_ok() })
        .buffered(LAYERS_CHECKED_AT_ONCE);
    let allowed: Vec<bool> = checks.collect().await;
    for (layer, _) in image.layers.iter_mut().zip(allowed).filter(|(_, allowed)| !allowed) {
        *layer = LayerStatus {
            digest: layer.digest,
            state: LayerState::Refused,
            reason: Some("this client may not read it".into()),
            diff_id: None,
            chain_id: None,
            media_type: layer.media_type.take(),
            size: layer.size,
            converted: None,
            toc: None,
        };
    }
}

async fn chain(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    Path(chain): Path<String>,
    details: Result<Query<Details>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(details) = details?;
    let chain: ChainId = digest(&chain)?;
    let store = app.store.clone();
    let Some(mut fact) = blocking(move || Ok(store.chain(&chain)?)).await? else {
        app.access
            .allow_unknown(&client)
            .await
            .map_err(|error| ApiError::from_access(Asked::Manifest, &error))?;
        let message = format!("no image with chain ID {chain} was served here");
        return Err(ApiError::new(OciCode::ManifestUnknown, message));
    };
    details
        .enter(&app, &client, Named::Layer(fact.layer))
        .await
        .map_err(|error| ApiError {
            code: match error.code {
                OciCode::BlobUnknown => OciCode::ManifestUnknown,
                code => code,
            },
            ..error
        })?;
    let mut images = Vec::new();
    for manifest in std::mem::take(&mut fact.manifests) {
        if details.enter(&app, &client, Named::Manifest(manifest)).await.is_ok() {
            images.push(manifest);
        }
    }
    let mut image = None;
    if let Some(latest) = images.first().filter(|_| details.image) {
        image = readable_status(&app, &client, &details, latest, Duration::ZERO).await?;
    }
    if let Some(status) = &mut image {
        status.profile = profile::profile_of(&app, status, Default::default(), None).await;
    }
    let status = ChainStatus {
        chain_id: fact.chain_id,
        layer_digest: fact.layer,
        diff_id: fact.diff_id,
        images,
        image,
    };
    Ok(json(StatusCode::OK, &status))
}

async fn toc(
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
        futures_util::stream::iter([Ok::<_, std::convert::Infallible>(part)])
    }))
}

async fn data(
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
    Ok(ranged_response(&method, &headers, rep, &app.metrics, move |range| {
        seekable.stream(&opened, range)
    }))
}

/// A request that names a profile, or digests.
#[derive(Deserialize)]
#[serde(untagged)]
enum Asking {
    Profile(ProfileRequest),
    Chunks(ChunksRequest),
}

async fn chunks(
    State(app): State<App>,
    Extension(client): Extension<Client>,
    Extension(streams): Extension<Streams>,
    Extension(key): Extension<ClientKey>,
    request: Request,
) -> Result<Response, ApiError> {
    let bad = |status, message: String| ApiError::new(OciCode::Unsupported, message).with_status(status);
    let body = limited_body(&app, request, CHUNKS_BODY_SIZE_MAX, "the list of chunks").await?;
    let request = serde_json::from_slice(&body)
        .map_err(|e| bad(StatusCode::BAD_REQUEST, format!("parse the list of chunks: {e}")))?;
    let request = match request {
        Asking::Profile(request) => return profile::chunks(&app, &streams, &client, key, request).await,
        Asking::Chunks(request) => request,
    };
    if request.chunks.len() > CHUNK_REQUEST_MAX {
        let message = format!(
            "{} chunks asked for, over the limit of {CHUNK_REQUEST_MAX}",
            request.chunks.len()
        );
        return Err(bad(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    if request.layers.len() > CHUNK_LAYERS_MAX {
        let message = format!(
            "chunks of {} layers asked for, over the limit of {CHUNK_LAYERS_MAX}",
            request.layers.len()
        );
        return Err(bad(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    let (wanted, held) = readable(&app, &client, request).await?;
    let metrics = app.metrics.clone();
    let stream = app.seekable.chunks(wanted).inspect(move |part| {
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

/// A request's body, all of it, in time.
pub(super) async fn limited_body(
    app: &App,
    request: Request,
    size_max: usize,
    what: &'static str,
) -> Result<Bytes, ApiError> {
    let bad = |status, message: String| ApiError::new(OciCode::Unsupported, message).with_status(status);
    // What says itself that it is too large need not come.
    if hyper::body::Body::size_hint(request.body()).lower() > size_max as u64 {
        let message = format!("read {what}: it has more than {size_max} bytes");
        return Err(bad(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    // hyper bounds the time of the head alone, and a request whose answer has not begun holds one of a few permits.
    let time_max = Duration::from_millis(app.config.http.header_timeout_ms);
    let body = tokio::time::timeout(time_max, Bytes::from_request(request, &())).await;
    body.map_err(|_| bad(StatusCode::REQUEST_TIMEOUT, format!("read {what} in time")))?
        .map_err(|e| bad(e.status(), format!("read {what}: {e}")))
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

/// JSON only when it is asked for by name and the binary form is not.
fn wants_json(headers: &HeaderMap) -> bool {
    let accepts = |media_type: &str| {
        headers
            .get_all(header::ACCEPT)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(|v| {
                v.split(';')
                    .next()
                    .is_some_and(|t| t.trim().eq_ignore_ascii_case(media_type))
            })
    };
    accepts("application/json") && !accepts(routes::TOC_MEDIA_TYPE)
}

fn json_view(encoded: &[u8]) -> Result<Vec<u8>, ApiError> {
    let unreadable = |e: String| {
        ApiError::new(OciCode::Unavailable, format!("show the TOC: {e}")).with_status(StatusCode::INTERNAL_SERVER_ERROR)
    };
    let too_large = || {
        let message = format!(
            "the TOC is too large to be shown as JSON; ask for {}",
            routes::TOC_MEDIA_TYPE
        );
        ApiError::new(OciCode::Unsupported, message).with_status(StatusCode::NOT_ACCEPTABLE)
    };
    if encoded.len() > JSON_TOC_SIZE_MAX {
        return Err(too_large());
    }
    let toc = Toc::decode(encoded).map_err(|e| unreadable(e.to_string()))?;
    let mut json = Capped {
        bytes: Vec::new(),
        left: JSON_SIZE_MAX,
    };
    match serde_json::to_writer(&mut json, &toc.view()) {
        Ok(()) => Ok(json.bytes),
        Err(e) if e.is_io() => Err(too_large()),
        Err(e) => Err(unreadable(e.to_string())),
    }
}

/// A buffer with an end.
struct Capped {
    bytes: Vec<u8>,
    left: usize,
}

impl std::io::Write for Capped {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        self.left = self
            .left
            .checked_sub(part.len())
            .ok_or(std::io::ErrorKind::FileTooLarge)?;
        self.bytes.extend_from_slice(part);
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_view_ends_at_its_size() {
        let mut capped = Capped {
            bytes: Vec::new(),
            left: 5,
        };
        assert!(capped.write_all(b"12345").is_ok());
        assert!(serde_json::to_writer(&mut capped, &6).unwrap_err().is_io());
        assert_eq!(capped.bytes, b"12345");
        let error = json_view(&vec![0; JSON_TOC_SIZE_MAX + 1]).unwrap_err();
        assert_eq!(error.status, StatusCode::NOT_ACCEPTABLE);
    }
}
