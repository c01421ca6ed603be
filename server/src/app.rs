//! Wiring: the one file that knows every room.
//!
//! In: a [`Config`]. Out: an [`App`], and [`serve`], which runs it on a listener until told to stop.
//! Invariant: opening needs no network: a server whose upstreams are down starts and serves what it has.
//! Not here: signals and the command line (`main.rs`).

use std::{ops::Deref, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Access, AccessSetupError},
    admin,
    config::Config,
    http::{
        self,
        front::Front,
        tls::{TlsSetupError, Transport},
    },
    metrics::Metrics,
    profile::{CatalogError, Profiles},
    read::{
        blobs::Blobs,
        layers::Layers,
        manifests::{Manifests, Parts},
        negative::Negative,
        policy::Policies,
        referrers::Referrers,
        saved::Saved,
        seekable::Seekable,
        sizes::Sizes,
        tags::TagLists,
    },
    reclaim::Reclaimer,
    scrub::Scrubber,
    store::{Store, StoreError, originals::Originals},
    telemetry::{self, TelemetryError},
    upstream::{SetupError, Upstreams},
};

/// One in so many of the requests whose answer has not begun may wait for the verdict over a blob.
const HELD_HEADS: usize = 4;

/// Why the server does not start or run.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Access(#[from] AccessSetupError),
    #[error(transparent)]
    Tls(#[from] TlsSetupError),
    #[error("open the data directory: {0}")]
    DataDir(std::io::Error),
    #[error("open the store: {0}")]
    Store(StoreError),
    #[error("open the profiles: {0}")]
    Profiles(#[from] CatalogError),
    #[error("flush the store: {0}")]
    Flush(StoreError),
    #[error("run a task: {0}")]
    Task(#[from] tokio::task::JoinError),
}

/// Everything that handlers use. Clones share it, and cost one counter: every request takes several.
#[derive(Clone, Debug)]
pub struct App(Arc<Rooms>);

/// The rooms, wired.
#[derive(Debug)]
pub struct Rooms {
    pub config: Arc<Config>,
    pub metrics: Metrics,
    pub upstreams: Upstreams,
    pub access: Access,
    pub transport: Transport,
    pub originals: Originals,
    pub store: Store,
    pub blobs: Blobs,
    pub layers: Layers,
    pub manifests: Manifests,
    pub tags: TagLists,
    pub sizes: Sizes,
    pub referrers: Referrers,
    pub seekable: Seekable,
    pub profiles: Profiles,
    pub reclaimer: Reclaimer,
    pub scrubber: Scrubber,
    stopping: CancellationToken,
}

impl Deref for App {
    type Target = Rooms;

    fn deref(&self) -> &Rooms {
        &self.0
    }
}

impl App {
    /// Opens the data directory and wires the rooms.
    pub async fn open(config: Config) -> Result<App, AppError> {
        let metrics = Metrics::with(telemetry::meters(&config.telemetry)?);
        let upstreams = Upstreams::new(&config, &metrics)?;
        let transport = Transport::new(config.tls.as_ref())?;
        let (data_dir, cache) = (config.data_dir.clone(), config.cache.clone());
        // Opening may rebuild the index, which takes its time.
        let opened = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&data_dir).map_err(AppError::DataDir)?;
            let originals = Originals::open(&data_dir).map_err(AppError::DataDir)?;
            let budgets = cache.budgets(&data_dir).map_err(AppError::DataDir)?;
            let store = Store::open_with(&data_dir, budgets.pack_size_max()).map_err(AppError::Store)?;
            let saved = Saved::open(&data_dir).map_err(AppError::DataDir)?;
            Ok::<_, AppError>((originals, store, budgets, saved))
        });
        let (originals, store, budgets, saved) = opened.await??;
        let fetch = config.fetch.clone();
        let negative = Negative::new(Duration::from_millis(fetch.negative_ttl_ms));
        let blobs = Blobs::new(
            originals.clone(),
            store.clone(),
            upstreams.clone(),
            fetch.clone(),
            negative.clone(),
            metrics.clone(),
            config.http.requests_max / HELD_HEADS,
        );
        let reclaimer = Reclaimer::start(
            config.data_dir.clone(),
            originals.clone(),
            store.clone(),
            budgets,
            metrics.clone(),
            Box::new({
                let blobs = blobs.clone();
                move |partial, remove| blobs.unless_in_use(partial, remove)
            }),
        )
        .map_err(AppError::DataDir)?;
        let scrubber = Scrubber::start(
            config.data_dir.clone(),
            originals.clone(),
            store.clone(),
            reclaimer.clone(),
            config.scrub.clone(),
            metrics.clone(),
        )
        .map_err(AppError::DataDir)?;
        let access = Access::new(&config, &upstreams, &store, &blobs)?;
        if access.is_restricted() {
            store.doubt_manifests();
        }
        blobs.keep_swept();
        let layers = Layers::new(store.clone(), blobs.clone(), config.ingest.clone(), metrics.clone());
        let listing_ttl = Duration::from_millis(fetch.listing_ttl_ms);
        let sizes = Sizes::new(blobs.clone());
        let tags = TagLists::new(
            upstreams.clone(),
            store.clone(),
            negative.clone(),
            saved.clone(),
            listing_ttl,
        );
        let manifests = Manifests::new(
            Parts {
                originals: originals.clone(),
                store: store.clone(),
                upstreams: upstreams.clone(),
                blobs: blobs.clone(),
                layers: layers.clone(),
                policies: Policies::new(&config, &upstreams),
                negative: negative.clone(),
                metrics: metrics.clone(),
            },
            &fetch,
        );
        let referrers = Referrers::new(upstreams.clone(), store.clone(), manifests.clone(), saved, listing_ttl);
        let seekable = Seekable::new(store.clone());
        let profiles = tokio::task::spawn_blocking({
            let (config, store, seekable) = (config.clone(), store.clone(), seekable.clone());
            let metrics = metrics.clone();
            move || Profiles::open(&config.profile, &config.data_dir, store, seekable, metrics)
        });
        let profiles = profiles.await??;
        Ok(App(Arc::new(Rooms {
            config: Arc::new(config),
            metrics,
            upstreams,
            access,
            transport,
            originals,
            store,
            blobs,
            layers,
            manifests,
            tags,
            sizes,
            referrers,
            seekable,
            profiles,
            reclaimer,
            scrubber,
            stopping: CancellationToken::new(),
        })))
    }

    /// Whether the server has been told to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }
}

/// Serves until `stop`; then no new connections, running answers get their time, fetches end (and are resumed by the
/// next process), the index is flushed.
pub async fn serve(app: App, listener: TcpListener, stop: CancellationToken) -> Result<(), AppError> {
    let stopping = app.stopping.clone();
    let closing = CancellationToken::new();
    let delay = Duration::from_millis(app.config.http.drain_delay_ms);
    let told = tokio::spawn({
        let closing = closing.clone();
        async move {
            stop.cancelled().await;
            stopping.cancel();
            // Those who ask `/readyz` get to know before connections are refused.
            tokio::time::sleep(delay).await;
            closing.cancel();
        }
    });
    let front = Front::new(app.clone());
    let administration = tokio::spawn(admin::serve(app.clone(), closing.clone()));
    http::serve::serve(
        listener,
        app.transport.clone(),
        front,
        &app.config.http,
        &app.metrics,
        closing,
    )
    .await;
    told.abort();
    administration.await?;
    app.layers.shutdown().await;
    app.blobs.shutdown().await;
    let (store, reclaimer, scrubber) = (app.store.clone(), app.reclaimer.clone(), app.scrubber.clone());
    tokio::task::spawn_blocking(move || {
        scrubber.stop();
        reclaimer.stop();
        store.flush()
    })
    .await?
    .map_err(AppError::Flush)
}
