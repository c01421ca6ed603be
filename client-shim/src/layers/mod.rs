//! All layers this node knows.
//!
//! In: layer digests, from the snapshotter. Out: lowerdirs. Invariant: a layer is presented once however many snapshots
//! use it; what was presented before a restart is again after it, without a network; a layer's TOC describes that layer.
//! Not here: how a layer comes (`arrive.rs`), and its TOC (`ask.rs`); snapshots, images and stacking (`snapshotter`); bytes (`cache`, `fetch`); trees (`presentation`).

mod arrive;
mod ask;
mod error;
mod status;
mod table;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, Weak};

use headstart_layer_format::{BlobDigest, DiffId, Toc};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

pub use error::LayersError;
pub use status::{LayerProgress, NodeStatus};
use table::Table;

use crate::cache::{CacheDir, Layer, LayerFile, Room};
pub use crate::cache::{LazyConfig, PresentationChoice, WholeLayers};
use crate::counters::Counters;
use crate::fetch::original::BlobSource;
use crate::fetch::servers::Servers;
use crate::memory;
use crate::parallel;
use crate::presentation::{self, Presentation, Surroundings, implied};
use crate::survival::{Keeper, Progress};
use crate::upkeep::{self, InUse};

const CACHE: &str = "cache";

/// A layer whose tree can be used as an overlay lowerdir.
#[derive(Clone, Debug)]
pub struct Presented {
    pub lowerdir: PathBuf,
    pub digest: BlobDigest,
    pub diff_id: DiffId,
    pub slot: u32,
    pub data_size: u64,
    pub entry_count: u64,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeLayers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: LazyConfig,
    servers: Servers,
    runtime: Handle,
    counters: Arc<Counters>,
    /// `None` after the shutdown: the lock on the directory goes with it.
    cache: RwLock<Option<CacheDir>>,
    presentation: Box<dyn Presentation>,
    table: Table,
    in_use: InUse,
    room: Arc<Room>,
    /// Layers presented before anybody asks for them.
    ahead: Semaphore,
    stop: CancellationToken,
}

impl NodeLayers {
    /// [`NodeLayers::open_kept`] with nobody who keeps mounts.
    pub async fn open(root_dir: &Path, config: &LazyConfig, servers: Servers) -> Result<NodeLayers, LayersError> {
        Self::open_kept(root_dir, config, servers, Keeper::nobody(), false, Progress::untold()).await
    }

    /// Takes over what a predecessor left with `keeper`, or mounts what the presentation needs below `root_dir`, and shows
    /// every layer the disk has, each a step. Needs no network. `resend`: see `survival.resend`.
    pub async fn open_kept(
        root_dir: &Path,
        config: &LazyConfig,
        servers: Servers,
        keeper: Keeper,
        resend: bool,
        progress: Progress,
    ) -> Result<NodeLayers, LayersError> {
        let runtime = Handle::current();
        let (root_dir, config) = (root_dir.to_owned(), config.clone());
        let open = move || Self::open_blocking(&root_dir, config, servers, runtime, &keeper, resend, &progress);
        let layers = tokio::task::spawn_blocking(open)
            .await
            .map_err(|_| LayersError::Interrupted)??;
        tokio::spawn(flush_periodically(Arc::downgrade(&layers.0), layers.0.stop.clone()));
        let inner = &layers.0;
        let weak = Arc::downgrade(inner);
        let all = move || Some(weak.upgrade()?.table.layers());
        let (room, config, in_use) = (Arc::clone(&inner.room), inner.config.clone(), inner.in_use.clone());
        upkeep::start(Arc::new(all), room, config, in_use, inner.stop.clone());
        Ok(layers)
    }

    fn open_blocking(
        root_dir: &Path,
        config: LazyConfig,
        servers: Servers,
        runtime: Handle,
        keeper: &Keeper,
        resend: bool,
        progress: &Progress,
    ) -> Result<NodeLayers, LayersError> {
        let store = root_dir.join(CACHE);
        // The lock first: it proves that a mount found below is nobody's.
        let counters = Arc::new(Counters::default());
        let (cache, stored) = CacheDir::open_telling(&store, &config, &counters, progress)?;
        let room = cache.room();
        let stored: Vec<_> = stored
            .into_iter()
            .map(|layer| Arc::new(Layer::new(layer, &servers, &config, &counters, &runtime).shown_before()))
            .collect();
        let presentation = presentation::open(&Surroundings {
            root: root_dir,
            store: &store,
            config: &config,
            counters: &counters,
            runtime: &runtime,
            layers: &stored,
            keeper,
            resend,
        })?;
        let layers = NodeLayers(Arc::new(Inner {
            config,
            servers,
            runtime,
            counters,
            cache: RwLock::new(Some(cache)),
            presentation,
            table: Table::default(),
            in_use: InUse::default(),
            room,
            ahead: Semaphore::new(arrive::AHEAD_AT_ONCE),
            stop: CancellationToken::new(),
        }));
        // After a boot each gets its image and its mount anew: milliseconds, times all layers of all images.
        parallel::each(&stored, |layer| {
            layers.0.show(Arc::clone(layer));
            progress.step();
        });
        Ok(layers)
    }

    /// What this node has without asking anybody: used when snapshots are reloaded.
    pub fn present_known(&self, layer: &BlobDigest) -> Result<Presented, LayersError> {
        self.0
            .table
            .get(layer)
            .map(|k| k.presented())
            .ok_or(LayersError::Unknown)
    }

    /// A directory that would look otherwise than unpacked if these layers (bottom first, all admitted) were stacked;
    /// see [`crate::presentation::implied`]. `None` also for layers not admitted.
    pub fn implied_conflict(&self, stack: &[BlobDigest], over_unpacked: bool) -> Option<String> {
        let known: Vec<Arc<Layer>> = stack.iter().filter_map(|l| self.0.table.layer(l)).collect();
        let last = known.iter().rposition(|l| l.contents().has_implied())?;
        let tocs: Result<Vec<_>, _> = known[..=last].iter().map(|l| l.contents().toc()).collect();
        match tocs {
            Ok(tocs) => {
                let tocs: Vec<&Toc> = tocs.iter().map(Arc::as_ref).collect();
                implied::conflict(&tocs, over_unpacked).map(|path| String::from_utf8_lossy(&path).into_owned())
            }
            // Not known, so the careful answer.
            Err(error) => Some(error.to_string()),
        }
    }

    /// Remembers, also over restarts, in which repository an admitted layer's original is. Idempotent, cheap when known. The
    /// caller sees to it that the layer is not released meanwhile: this does not wait until its tree is made.
    pub async fn learn_source(&self, layer: &BlobDigest, source: BlobSource) {
        let Some(known) = self.0.table.layer(layer) else { return };
        let inner = Arc::clone(&self.0);
        let learnt = tokio::task::spawn_blocking(move || {
            let cache = inner.cache.read().unwrap_or_else(|p| p.into_inner());
            match cache.as_ref() {
                Some(cache) => cache.learn(known.stored(), source),
                None => Ok(()),
            }
        });
        // Without it the layer has no last resort after a restart.
        if let Ok(Err(error)) = learnt.await {
            tracing::warn!(%layer, %error, "layer-source-not-kept");
        }
    }

    /// The last snapshot on it is gone: its tree, bytes and slot go too. A later `present` starts afresh.
    pub async fn release(&self, layer: &BlobDigest) {
        let changing = self.0.table.change(layer).await;
        let (inner, layer) = (Arc::clone(&self.0), *layer);
        let done = tokio::task::spawn_blocking(move || {
            let _changing = changing;
            inner.drop_layer(&layer);
        });
        if done.await.is_err() {
            tracing::warn!(%layer, "layer-release-failed");
        }
    }

    /// For whoever knows which layers containers use: they are given back last.
    pub fn in_use(&self) -> &InUse {
        &self.0.in_use
    }

    /// Bytes it takes on this node's disk, and inodes it shows.
    pub fn usage(&self, layer: &BlobDigest) -> Option<(u64, u64)> {
        let layer = self.0.table.layer(layer)?;
        Some((layer.file().disk_bytes(), layer.contents().inodes()))
    }

    /// Presented, or about to be: it can be filled.
    pub(crate) fn layer(&self, layer: &BlobDigest) -> Option<Arc<Layer>> {
        self.0.table.layer(layer)
    }

    /// Changes whenever a layer can be filled, and when it is presented.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.table.changes()
    }

    /// Ends when this node does.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.0.stop.child_token()
    }

    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.0.counters)
    }

    /// What is here, and what was done.
    pub fn status(&self) -> NodeStatus {
        let how = |layer: &Layer| self.0.presentation.how(layer.slot());
        let all = self.0.table.layers();
        let mut layers: Vec<LayerProgress> = all.iter().map(|l| LayerProgress::of(l, how(l))).collect();
        layers.sort_by_key(|l| l.slot);
        NodeStatus {
            presentation: self.0.presentation.name(),
            counters: Arc::clone(&self.0.counters),
            layers,
            lent_bytes: self.0.room.lent(),
            prefetches: Vec::new(),
        }
    }

    /// Makes the cache durable, and leaves mounts and readers to a successor; what they ask is answered until this process
    /// ends. The directory is free for a successor only then.
    pub async fn leave(&self) {
        self.0.stop.cancel();
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            inner.presentation.leave();
            inner.flush();
        });
        if done.await.is_err() {
            tracing::warn!("lazy-shutdown-incomplete");
        }
    }

    /// Makes the cache durable, unmounts (lazily if the mount is in use), and frees the directory for a successor.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        let inner = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || {
            inner.presentation.close();
            // An eviction under way ends first: the successor would claim what it punches out.
            inner.each_file("close", LayerFile::close);
            inner.cache.write().unwrap_or_else(|p| p.into_inner()).take();
        });
        if done.await.is_err() {
            tracing::warn!("lazy-shutdown-incomplete");
        }
    }
}

impl Inner {
    fn drop_layer(&self, layer: &BlobDigest) {
        let Some(known) = self.table.remove(layer) else {
            return;
        };
        self.presentation.withdraw(&known.layer);
        let cache = self.cache.read().unwrap_or_else(|p| p.into_inner());
        if let Some(cache) = cache.as_ref()
            && let Err(error) = cache.remove(known.layer.stored())
        {
            tracing::warn!(%layer, %error, "cache-layer-not-removed");
        }
    }

    /// Tells the presentation which layers are whole, and has it settle. Blocks.
    fn settle(&self) {
        self.presentation.settle();
        for known in self.table.all() {
            // A start that is being recorded is seen to its end.
            if known.layer.file().is_whole() && !known.layer.recorder().is_wanted() {
                self.presentation.completed(&known.layer);
            }
        }
    }

    /// Makes every layer's new chunks durable. Blocks.
    fn flush(&self) {
        self.each_file("flush", LayerFile::flush);
    }

    fn each_file(&self, what: &str, work: impl Fn(&LayerFile) -> io::Result<()>) {
        for layer in self.table.layers() {
            if let Err(error) = work(layer.file()) {
                tracing::warn!(layer = %layer.digest(), what, %error, "cache-flush-failed");
            }
        }
    }
}

async fn flush_periodically(layers: Weak<Inner>, stop: CancellationToken) {
    loop {
        let Some(interval) = layers.upgrade().map(|l| l.config.flush_interval()) else {
            return;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(interval) => {}
        }
        let Some(inner) = layers.upgrade() else {
            return;
        };
        // A panic in there leaves chunks that are fetched again after a crash; the next round tries anew.
        let _ = tokio::task::spawn_blocking(move || {
            inner.flush();
            inner.settle();
            memory::trim();
        })
        .await;
    }
}
