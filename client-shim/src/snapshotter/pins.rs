//! Which layers are in use, and where each is shown.
//!
//! In: pins, one per lazy snapshot and one per `Prepare` in progress. Out: lower directories; the release of a layer
//! whose last pin went. Invariant: a layer is released only while nobody has it pinned, and asking for a layer and releasing it
//! never overlap (a release waits for a tree that is being made: the backend sees to that).
//! Not here: which snapshot shows which layer (its record says so).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use headstart_layer_format::{BlobDigest, DiffId};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use super::lazy::{LazyError, LazyLayers};

/// A backend honours its deadline; should it not, the call ends this much later.
const DEADLINE_GRACE: Duration = Duration::from_secs(2);

/// The layers in use.
#[derive(Debug)]
pub struct Pins<B> {
    inner: Arc<Inner<B>>,
}

impl<B> Clone for Pins<B> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

#[derive(Debug)]
struct Inner<B> {
    backend: Arc<B>,
    layers: Mutex<HashMap<BlobDigest, Layer>>,
    runtime: Handle,
    releases: TaskTracker,
}

#[derive(Debug, Default)]
struct Layer {
    pins: usize,
    lowerdir: Option<PathBuf>,
    /// Held while the layer is asked for or released.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Keeps a layer from being released until dropped.
#[derive(Debug)]
pub struct Pin<B: LazyLayers> {
    pins: Pins<B>,
    layer: BlobDigest,
    kept: bool,
}

impl<B: LazyLayers> Pin<B> {
    /// From now on a snapshot's record holds this pin; [`Pins::unpin`] when it goes.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl<B: LazyLayers> Drop for Pin<B> {
    fn drop(&mut self) {
        if !self.kept {
            self.pins.unpin(&self.layer);
        }
    }
}

impl<B: LazyLayers> Pins<B> {
    /// Releases run on `runtime`.
    pub fn new(backend: Arc<B>, runtime: Handle) -> Self {
        Self {
            inner: Arc::new(Inner {
                backend,
                layers: Mutex::default(),
                runtime,
                releases: TaskTracker::new(),
            }),
        }
    }

    fn layers(&self) -> MutexGuard<'_, HashMap<BlobDigest, Layer>> {
        self.inner.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn pin(&self, layer: &BlobDigest) -> Pin<B> {
        self.layers().entry(*layer).or_default().pins += 1;
        Pin {
            pins: self.clone(),
            layer: *layer,
            kept: false,
        }
    }

    /// Takes back one pin. With the last one the layer is released, in the background.
    pub fn unpin(&self, layer: &BlobDigest) {
        let mut layers = self.layers();
        let Some(entry) = layers.get_mut(layer) else { return };
        entry.pins = entry.pins.saturating_sub(1);
        if entry.pins > 0 {
            return;
        }
        let (pins, layer, turn) = (self.clone(), *layer, entry.turn.clone());
        drop(layers);
        let release = async move {
            let _turn = turn.lock().await;
            if !pins.forget(&layer) {
                return;
            }
            pins.inner.backend.release(&layer).await;
            pins.drop_unused(&layer);
        };
        self.inner.releases.spawn_on(release, &self.inner.runtime);
    }

    /// Whether the layer is still unpinned; then it counts as not shown.
    fn forget(&self, layer: &BlobDigest) -> bool {
        match self.layers().get_mut(layer) {
            Some(entry) if entry.pins == 0 => {
                entry.lowerdir = None;
                true
            }
            _ => false,
        }
    }

    fn drop_unused(&self, layer: &BlobDigest) {
        let mut layers = self.layers();
        // The turn of a pin that came meanwhile must stay the same lock.
        if layers.get(layer).is_some_and(|entry| entry.pins == 0) {
            layers.remove(layer);
        }
    }

    fn turn(&self, layer: &BlobDigest) -> Arc<tokio::sync::Mutex<()>> {
        self.layers().entry(*layer).or_default().turn.clone()
    }

    /// Has a pinned layer here, over the network if it is new to this node, and its tree made meanwhile.
    pub async fn admit(&self, pin: &Pin<B>, deadline: Instant) -> Result<DiffId, LazyError> {
        let backend = &self.inner.backend;
        self.in_turn(&pin.layer, deadline, || backend.admit(&pin.layer, deadline))
            .await
    }

    async fn present_in_turn(&self, layer: &BlobDigest, deadline: Instant) -> Result<PathBuf, LazyError> {
        let backend = &self.inner.backend;
        let shown = self
            .in_turn(layer, deadline, || backend.present(layer, deadline))
            .await?;
        self.remember(layer, &shown);
        Ok(shown)
    }

    async fn in_turn<T, F>(
        &self,
        layer: &BlobDigest,
        deadline: Instant,
        work: impl FnOnce() -> F,
    ) -> Result<T, LazyError>
    where
        F: Future<Output = Result<T, LazyError>>,
    {
        let turn = self.turn(layer);
        let work = async {
            let _turn = turn.lock().await;
            work().await
        };
        let limit = deadline + DEADLINE_GRACE;
        tokio::time::timeout_at(limit.into(), work)
            .await
            .map_err(|_| LazyError::new("presenting the layer took too long"))?
    }

    /// Presents a pinned layer from this node's disk. Blocks for a short time.
    pub fn present_known(&self, layer: &BlobDigest) -> Result<PathBuf, LazyError> {
        let shown = self.inner.backend.present_known(layer)?;
        self.remember(layer, &shown);
        Ok(shown)
    }

    fn remember(&self, layer: &BlobDigest, lowerdir: &Path) {
        if let Some(entry) = self.layers().get_mut(layer) {
            entry.lowerdir = Some(lowerdir.to_owned());
        }
    }

    /// Where a snapshot's layer is shown. If it is not shown now, tries this node's disk, then the servers.
    pub async fn lowerdir(&self, layer: &BlobDigest, deadline: Instant) -> Result<PathBuf, LazyError> {
        if let Some(known) = self.layers().get(layer).and_then(|l| l.lowerdir.clone()) {
            return Ok(known);
        }
        let (pins, digest) = (self.clone(), *layer);
        let known = tokio::task::spawn_blocking(move || pins.present_known(&digest)).await;
        if let Ok(lowerdir) = known.map_err(LazyError::new)? {
            return Ok(lowerdir);
        }
        // containerd was told that it is here, so it is waited for, and not given up at a deadline meant for servers.
        if let Some(lowerdir) = self.inner.backend.shown(layer).await {
            self.remember(layer, &lowerdir);
            return Ok(lowerdir);
        }
        self.present_in_turn(layer, deadline).await
    }

    /// Waits for releases in progress.
    pub async fn finish(&self, limit: Duration) {
        self.inner.releases.close();
        let _ = tokio::time::timeout(limit, self.inner.releases.wait()).await;
    }
}
