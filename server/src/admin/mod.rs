//! Administration: HTTP and JSON over a unix socket, for whoever may enter the data directory.
//!
//! In: requests of [`crate::cli`] on `<data_dir>/admin.sock`. Out: lists, pins, removals, reclaiming, checking, warming,
//! profiles.
//! Invariant: the socket is 0600 before it has its name, so only the server's own user (and root) can connect; nothing of
//! this is reachable over the network. Paths are versioned. A server whose socket cannot be made serves all the same.
//! Not here: what the orders do ([`crate::reclaim`], [`warm`]).

pub mod api;
mod profile;
mod reference;
mod view;
mod warm;

use std::{
    collections::HashSet,
    fs::Permissions,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path as UrlPath, Query, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use headstart_layer_format::BlobDigest;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use tokio::{
    net::UnixListener,
    sync::{mpsc::Receiver, watch},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tokio_util::{io::ReaderStream, sync::CancellationToken};

use self::reference::Target;
use crate::{
    app::App,
    orders::OrderError,
    profile::ProfileError,
    read::ReadError,
    reclaim::{Order, Report},
    scrub::{self, Progress},
    store::StoreError,
};

/// Below `data_dir`.
pub const SOCKET: &str = "admin.sock";
/// Lists of references are short.
const BODY_SIZE_MAX: usize = 1 << 20;
/// Originals are read in pieces of this size.
const READ_SIZE: usize = 256 << 10;
/// Lines of progress waiting for a slow reader.
const LINES_MAX: usize = 256;

/// Progress is told this often.
const PROGRESS_PERIOD: Duration = Duration::from_millis(200);

/// Serves until `stop`.
pub async fn serve(app: App, stop: CancellationToken) {
    let path = app.config.data_dir.join(SOCKET);
    let listener = match listen(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "there is no administration socket");
            return;
        }
    };
    let router = router(app);
    let serving = axum::serve(listener, router).with_graceful_shutdown({
        let stop = stop.clone();
        async move { stop.cancelled().await }
    });
    // What is under way ends with the server: a warming that was cut off is begun again.
    tokio::select! {
        ended = serving.into_future() => if let Err(error) = ended {
            tracing::warn!(%error, "the administration socket failed");
        },
        () = stop.cancelled() => {}
    }
    let _ = std::fs::remove_file(path);
}

/// The store's lock is ours, so a socket that is there already is a dead server's.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let new: PathBuf = path.with_extension("new");
    for stale in [path, &new] {
        match std::fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&new)?;
    std::fs::set_permissions(&new, Permissions::from_mode(0o600))?;
    std::fs::rename(&new, path)?;
    Ok(listener)
}

fn router(app: App) -> Router {
    Router::new()
        .route(api::IMAGES, get(images))
        .route(api::BLOBS, get(blobs))
        .route(api::LAYERS, get(layers))
        .route(api::PINS, get(pins))
        .route(api::PIN, post(pin))
        .route(api::UNPIN, post(unpin))
        .route(api::REMOVE, post(remove))
        .route(api::COLLECT, post(collect))
        .route(api::FSCK, post(fsck))
        .route(api::WARM, post(warm_images))
        .route(api::IMAGE, post(image))
        .route(&format!("{}/{{digest}}", api::ORIGINALS), get(original))
        .layer(DefaultBodyLimit::max(BODY_SIZE_MAX))
        .merge(profile::routes())
        .with_state(app)
}

/// What the command line prints after "failed to".
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminError {
    #[error("{0}")]
    Bad(String),
    #[error("find {0}: it is not here")]
    Unknown(String),
    #[error("remove {0}: it is pinned (--force removes it all the same)")]
    Pinned(String),
    #[error("remove {0}: another image that is here needs it (--force removes it all the same)")]
    Needed(String),
    #[error(transparent)]
    Order(#[from] OrderError),
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("read an original: {0}")]
    Original(#[from] io::Error),
    #[error(transparent)]
    Profile(ProfileError),
    #[error("run a task: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Bad(_) => StatusCode::BAD_REQUEST,
            Self::Unknown(_) => StatusCode::NOT_FOUND,
            Self::Pinned(_) | Self::Needed(_) | Self::Store(StoreError::TooManyPins { .. }) => StatusCode::CONFLICT,
            Self::Order(_) | Self::Profile(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Read(_) | Self::Store(_) | Self::Original(_) | Self::Task(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let error = self.to_string();
        (status, Json(api::Failure { error })).into_response()
    }
}

type Answer<T> = Result<Json<T>, AdminError>;

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, AdminError> + Send + 'static) -> Answer<T> {
    Ok(Json(tokio::task::spawn_blocking(work).await??))
}

async fn images(State(app): State<App>, Query(page): Query<api::Page>) -> Answer<api::List<api::Image>> {
    blocking(move || Ok(view::images(&app, page.limit())?)).await
}

async fn blobs(State(app): State<App>, Query(page): Query<api::Page>) -> Answer<api::List<api::Object>> {
    blocking(move || Ok(view::blobs(&app, page.limit())?)).await
}

async fn layers(State(app): State<App>, Query(page): Query<api::Page>) -> Answer<api::List<api::Object>> {
    blocking(move || Ok(view::layers(&app, page.limit())?)).await
}

async fn pins(State(app): State<App>, Query(page): Query<api::Page>) -> Answer<api::List<api::Pin>> {
    blocking(move || Ok(view::pins(&app, page.limit())?)).await
}

async fn pin(State(app): State<App>, Json(what): Json<api::What>) -> Answer<api::Changed> {
    blocking(move || set_pin(&app, &what.target, true)).await
}

async fn unpin(State(app): State<App>, Json(what): Json<api::What>) -> Answer<api::Changed> {
    blocking(move || set_pin(&app, &what.target, false)).await
}

fn set_pin(app: &App, text: &str, pinned: bool) -> Result<api::Changed, AdminError> {
    let target = Target::parse(text, &app.upstreams)?.pin();
    if pinned && app.store.target_digest(&target)?.is_none() {
        return Err(AdminError::Unknown(text.to_owned()));
    }
    let changed = app.store.set_pin(&target, pinned)?;
    Ok(api::Changed { changed })
}

async fn remove(State(app): State<App>, Json(what): Json<api::What>) -> Answer<Report> {
    let (reader, text, force) = (app.clone(), what.target.clone(), what.force);
    let chosen = blocking(move || {
        let target = Target::parse(&text, &reader.upstreams)?;
        let unknown = || AdminError::Unknown(text.clone());
        let root = reader.store.target_digest(&target.pin())?.ok_or_else(unknown)?;
        let known = |digest: &BlobDigest| -> Result<bool, StoreError> {
            Ok(reader.originals.kept(digest).is_some() || reader.store.layer(digest)?.is_some())
        };
        let mut any = false;
        for digest in reader.store.closure(&root)? {
            any |= known(&digest)?;
        }
        if !any {
            return Err(unknown());
        }
        if !force && reader.store.pinned()?.contains(&root) {
            return Err(AdminError::Pinned(text.clone()));
        }
        // Whoever names a digest, or insists, means it, whoever else needs it.
        let digests = match view::only_of(&reader, &root)? {
            Some(digests) => digests,
            None if force || matches!(target, Target::Digest(_)) => HashSet::from([root]),
            None => return Err(AdminError::Needed(text.clone())),
        };
        Ok(digests)
    });
    let Json(digests) = chosen.await?;
    Ok(Json(app.reclaimer.order(Order::Remove(digests)).await?))
}

async fn collect(State(app): State<App>, Json(how): Json<api::How>) -> Answer<Report> {
    let order = Order::Collect { dry_run: how.dry_run };
    Ok(Json(app.reclaimer.order(order).await?))
}

async fn image(State(app): State<App>, Json(what): Json<api::What>) -> Answer<api::ImageLayers> {
    blocking(move || {
        let target = Target::parse(&what.target, &app.upstreams)?.pin();
        let unknown = || AdminError::Unknown(what.target.clone());
        let root = app.store.target_digest(&target)?.ok_or_else(unknown)?;
        view::image_layers(&app, &root)?.map_err(|count| match count {
            0 => unknown(),
            n => AdminError::Bad(format!(
                "choose one of {}: {n} images of it are here; name one by digest",
                what.target
            )),
        })
    })
    .await
}

/// Not a use: whoever measures what is here must not change what stays. A file that is removed meanwhile is read to its end.
async fn original(State(app): State<App>, UrlPath(digest): UrlPath<BlobDigest>) -> Result<Response, AdminError> {
    let file = match tokio::fs::File::open(app.originals.path(&digest)).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(AdminError::Unknown(digest.to_string())),
        Err(error) => return Err(error.into()),
    };
    let len = file.metadata().await?.len();
    let mut response = Response::new(Body::from_stream(ReaderStream::with_capacity(file, READ_SIZE)));
    response.headers_mut().insert(header::CONTENT_LENGTH, len.into());
    Ok(response)
}

/// JSON lines: how far it is, and at last the report. Whoever hangs up ends it.
async fn fsck(State(app): State<App>, Json(how): Json<api::Fsck>) -> Response {
    let (progress, mut changed) = watch::channel(Progress::default());
    let (lines, received) = tokio::sync::mpsc::channel(LINES_MAX);
    tokio::spawn(async move {
        let order = app.scrubber.order(scrub::Order {
            repair: how.repair,
            bytes_per_sec: how.bytes_per_sec,
            progress,
        });
        tokio::pin!(order);
        let last = loop {
            tokio::select! {
                done = &mut order => break match done {
                    Ok(report) => api::Checking::Done(report),
                    Err(error) => api::Checking::Failed { error: error.to_string() },
                },
                // Dropping `changed` tells the scrubber to end.
                () = lines.closed() => return,
                () = tokio::time::sleep(PROGRESS_PERIOD) => {
                    let now = *changed.borrow_and_update();
                    // A reader that is slow to read gets the next one.
                    let _ = lines.try_send(api::Checking::Progress(now));
                }
            }
        };
        // Whoever asked may have gone.
        let _ = lines.send(last).await;
    });
    json_lines(received)
}

/// JSON lines, as things happen. Whoever hangs up cancels what is not fetched yet.
async fn warm_images(State(app): State<App>, Json(what): Json<api::Warm>) -> Result<Response, AdminError> {
    let mut targets = Vec::new();
    for image in &what.images {
        let Target::Image { source, reference } = Target::parse(image, &app.upstreams)? else {
            return Err(AdminError::Bad(format!("warm {image}: it names no repository")));
        };
        targets.push((image.clone(), source, reference));
    }
    let platforms = warm::Platforms::parse(&what)?;
    let (lines, received) = tokio::sync::mpsc::channel(LINES_MAX);
    tokio::spawn(async move {
        let hung_up = lines.clone();
        tokio::select! {
            () = hung_up.closed() => {}
            () = warm::run(app, targets, platforms, lines) => {}
        }
    });
    Ok(json_lines(received))
}

fn json_lines<T: Serialize + Send + 'static>(received: Receiver<T>) -> Response {
    let body = ReceiverStream::new(received).map(|event: T| {
        let mut line = serde_json::to_vec(&event).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, std::convert::Infallible>(line)
    });
    let mut response = Response::new(Body::from_stream(body));
    let json_lines = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, json_lines);
    response
}
