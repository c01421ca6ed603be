//! Wires the shim together and runs it.
//!
//! In: a [`Config`], a token that says when to stop. Out: the gRPC service on its socket until then. Invariant: one shim
//! per `root_dir` (a lock file), nothing is asked of any server before containerd asks something of us (but for the few bytes that
//! keep a connection open), and a node without FUSE still gets an ordinary snapshotter; a mount that a predecessor left is served
//! or given up, in bounded time.
//! Not here: the process around it (`main.rs`): tests run this in-process.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::dir_lock::{DirLock, Seen};
use crate::fetch::servers::{FetchError, Servers};
use crate::last_good;
use crate::layers::{LayersError, NodeLayers};
use crate::observe;
use crate::presentation;
use crate::process_id;
use crate::proto::snapshots::snapshots_server::SnapshotsServer;
use crate::snapshotter::engine::Engine;
use crate::snapshotter::error::SnapshotError;
use crate::snapshotter::lazy::{LazyLayers, NodeLazy};
use crate::snapshotter::service::SnapshotService;
use crate::survival::{KeepError, Keeper, Progress, ServiceManager, feed_watchdog};

/// How long calls in progress may go on after a stop; systemd kills after 90 s.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long readers of a predecessor's mount may wait for somebody who can open the cache, over all that a start waits for. What
/// passes by itself (a disk that is late, want of memory) has then passed, and it is half of what systemd allows a start.
pub(crate) const OPEN_MAX: Duration = Duration::from_secs(30);
pub(crate) const OPEN_AGAIN: Duration = Duration::from_secs(1);

/// Why the shim does not run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error("{what} {path}: {source}")]
    Path {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("use {0}: another shim is running on it")]
    InUse(PathBuf),
    #[error("use the configured servers: {0}")]
    Servers(#[from] FetchError),
    #[error("load snapshots: {0}")]
    Snapshots(#[from] SnapshotError),
    #[error(transparent)]
    Keep(#[from] KeepError),
    #[error("serve containerd: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Runs until `stop`. `manager`: whoever started this process and wants to hear of it. `begun`: when readers began to wait for it.
pub async fn run(
    config: Config,
    manager: Option<Arc<ServiceManager>>,
    stop: CancellationToken,
    begun: Instant,
) -> Result<(), AppError> {
    let keeper = Keeper::new(config.survival.keep_with, &config.root_dir, manager.as_ref())?;
    let lock = lock_while_readers_wait(&config, &keeper, &stop, begun).await?;
    let servers = Servers::new(&config.servers, &config.fetch)?;
    let progress = Progress::to(manager.as_ref());
    let layers = match open_lazy(&config, &servers, &keeper, &progress, &stop, begun).await {
        Ok(layers) => Some(layers),
        Err(error) => {
            tracing::error!(%error, "no lazy layers on this node; pulls are ordinary");
            None
        }
    };
    if config.snapshotter.lazy && layers.is_some() {
        servers.keep_warm(stop.clone());
    }
    let backend = NodeLazy::new(servers, layers.clone(), config.snapshotter.lazy, &config.prefetch);
    let mount = layers.as_ref().map(|_| config.root_dir.join(presentation::MOUNT));
    let (kept_config, stopping) = (config.clone(), stop.clone());
    let ready = move || {
        tokio::task::spawn_blocking(move || last_good::keep(&kept_config));
        if let Some(manager) = manager {
            manager.ready();
            tokio::spawn(feed_watchdog(manager, mount, stopping));
        }
    };
    let served = serve_then(&config, backend, stop.clone(), ready).await;
    if let Some(layers) = layers {
        // An error here is a stop too, after which containers want their files as ever.
        if keeper.keeps() && !matches!(served, Ok(InUse::No)) {
            tracing::info!("containers use lazy layers: their mounts are left to the next start");
            layers.leave().await;
            // Until the process is gone it answers: two that answer would each miss what the other has read.
            std::mem::forget(lock);
        } else {
            layers.shutdown().await;
            keeper.forget();
        }
    }
    served.map(|_| ())
}

/// Locks the root. A root that cannot be written (as a filesystem that found an error makes itself) leaves nobody waiting for an
/// answer either: a mount that is kept is given up in the end, unless another shim is seen to have the lock, or, where that
/// cannot be seen, to answer on the socket.
async fn lock_while_readers_wait(
    config: &Config,
    keeper: &Keeper,
    stop: &CancellationToken,
    begun: Instant,
) -> Result<DirLock, AppError> {
    let root = &config.root_dir;
    loop {
        let error = match lock_root(root) {
            Err(error @ AppError::Path { .. }) if keeper.has_left() => error,
            done => return done,
        };
        if stop.is_cancelled() {
            return Err(error);
        }
        if begun.elapsed() >= OPEN_MAX {
            let is_held = match DirLock::look(root) {
                Seen::Held => true,
                Seen::Free => false,
                // A disk that fails says nothing of a shim that lives, and has its mount.
                Seen::Unknown => is_served(&config.socket).await,
            };
            if !is_held {
                tracing::error!(%error, "mount-given-up: containers get errors from it");
                give_up(root, keeper).await;
            }
            return Err(error);
        }
        tracing::warn!(%error, "root-not-locked: readers wait, trying again");
        stop.run_until_cancelled(tokio::time::sleep(OPEN_AGAIN)).await;
    }
}

/// Opens the lazy half. An error leaves nobody waiting for an answer: while a predecessor's mount is kept it is tried again,
/// here and not by the next process, so that it also ends where a disk is full or nobody starts one; then the mount is given up.
async fn open_lazy(
    config: &Config,
    servers: &Servers,
    keeper: &Keeper,
    progress: &Progress,
    stop: &CancellationToken,
    begun: Instant,
) -> Result<NodeLayers, LayersError> {
    let (root, lazy, resend) = (&config.root_dir, &config.lazy, config.survival.resend);
    loop {
        let (servers, kept_by, progress) = (servers.clone(), keeper.clone(), progress.clone());
        let opened = NodeLayers::open_kept(root, lazy, servers, kept_by, resend, progress);
        let error = match opened.await {
            Err(error) if keeper.has_left() => error,
            done => return done,
        };
        // A stop leaves it to the next start.
        if stop.is_cancelled() {
            return Err(error);
        }
        if begun.elapsed() >= OPEN_MAX {
            tracing::error!(%error, "mount-given-up: containers get errors from it");
            give_up(root, keeper).await;
            return Err(error);
        }
        tracing::warn!(%error, "lazy-layers-not-opened: readers wait, trying again");
        stop.run_until_cancelled(tokio::time::sleep(OPEN_AGAIN)).await;
    }
}

/// Whoever waits for an answer of a mount that a predecessor left gets an error.
async fn give_up(root: &Path, keeper: &Keeper) {
    keeper.let_go();
    // Also where a thread of the predecessor hangs in the kernel, and has what the keeper let go of.
    let mount = root.join(presentation::MOUNT);
    let detached = tokio::task::spawn_blocking(move || presentation::detach_stale(&mount)).await;
    if let Ok(Err(error)) = detached {
        tracing::error!(%error, "mount-not-detached: whoever reads from it may wait for ever");
    }
}

/// Serves the snapshotter with any lazy side until `stop`.
pub async fn serve<B: LazyLayers>(config: &Config, backend: B, stop: CancellationToken) -> Result<(), AppError> {
    serve_then(config, backend, stop, || ()).await.map(|_| ())
}

/// Whether containers have mounts of lazy layers.
#[derive(Clone, Copy, Debug)]
enum InUse {
    Yes,
    No,
}

/// Calls `ready` when calls are answered.
async fn serve_then<B: LazyLayers>(
    config: &Config,
    backend: B,
    stop: CancellationToken,
    ready: impl FnOnce(),
) -> Result<InUse, AppError> {
    // First, so that whoever connects while snapshots are loaded waits instead of failing.
    let listener = bind(&config.socket).await?;
    let engine = Arc::new(Engine::open(&config.root_dir, &config.snapshotter, backend).await?);
    observe::start(config, engine.clone(), stop.clone());
    tracing::info!(socket = %config.socket.display(), "ready");
    ready();
    let service = SnapshotsServer::new(SnapshotService::new(engine.clone()));
    let server = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN_MAX).await;
    };
    let served = tokio::select! {
        served = server => served,
        () = drained => Ok(()),
    };
    engine.shutdown().await;
    // The next shim would remove it anyway; without it containerd fails at once instead of waiting.
    let _ = fs::remove_file(&config.socket);
    served?;
    match engine.uses_lazy_layers() {
        true => Ok(InUse::Yes),
        false => Ok(InUse::No),
    }
}

/// Two shims on one root would each lose what the other writes.
fn lock_root(root: &Path) -> Result<DirLock, AppError> {
    make_dir(root)?;
    let lock = DirLock::take(root).map_err(failed("lock", root))?;
    lock.ok_or_else(|| AppError::InUse(root.to_owned()))
}

/// Listens on `socket`, in place of one that a killed shim left.
async fn bind(socket: &Path) -> Result<UnixListener, AppError> {
    if let Some(dir) = socket.parent() {
        make_dir(dir)?;
    }
    if is_served(socket).await {
        return Err(AppError::InUse(socket.to_owned()));
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed("remove stale", socket)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(failed("listen on", socket))?;
    // Whoever may connect may mount: root alone.
    fs::set_permissions(socket, Permissions::from_mode(0o600)).map_err(failed("protect", socket))?;
    Ok(listener)
}

/// Whether a process that lives listens on it.
async fn is_served(socket: &Path) -> bool {
    let connected = UnixStream::connect(socket).await;
    connected.is_ok_and(|other| !listener_is_gone(&other))
}

/// A killed shim whose last thread waits for us listens as long as that.
fn listener_is_gone(connection: &UnixStream) -> bool {
    let pid = connection.peer_cred().ok().and_then(|peer| peer.pid());
    // Zero is a process that this PID namespace cannot see.
    pid.is_some_and(|pid| pid > 0 && process_id::has_ended(pid.unsigned_abs()))
}

fn make_dir(dir: &Path) -> Result<(), AppError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o711).create(dir);
    made.map_err(failed("create", dir))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> AppError {
    let path = path.to_owned();
    move |source| AppError::Path { what, path, source }
}
