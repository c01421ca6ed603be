//! How a layer comes to this node.
//!
//! In: a layer's digest, and how long there is. Out: first that it is stored, which is all that a pull waits for; then a
//! lowerdir, which a container waits for. Invariant: once [`NodeLayers::admit`] said yes no server is needed to show the layer,
//! now or after a restart; its tree is made once, whoever waits for it, and is made to the end also if nobody does.
//! Not here: its TOC's way here (`ask.rs`), what a tree is (`presentation`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::api::ImageStatus;
use headstart_layer_format::limits::LAYERS_MAX;
use headstart_layer_format::{BlobDigest, DiffId, Toc};
use tokio::time::timeout_at;
use tracing::{Instrument as _, info_span};

use super::table::Known;
use super::{Inner, LayersError, NodeLayers, Presented, ask};
use crate::cache::Layer;
use crate::contents::EncodedToc;
use crate::telemetry::{self, Cause, within};

/// TOCs fetched, and layers mounted, ahead of containerd's questions at once: this many small ones, so that an image of many
/// layers is no more round trips than one of few. A large one counts for several, since it is in memory as a whole.
pub(super) const AHEAD_AT_ONCE: usize = 48;
const LARGE_TOC: u64 = 256 << 10;
const LARGE_COUNTS_FOR: u32 = 8;
const AHEAD_TIME: Duration = Duration::from_secs(20);

impl NodeLayers {
    /// The layer's DiffID, once it is stored here. Its tree is made meanwhile: [`NodeLayers::present`] waits for that.
    /// Idempotent, cheap when known.
    pub async fn admit(&self, layer: &BlobDigest, deadline: Instant) -> Result<DiffId, LayersError> {
        self.check(layer)?;
        let mut changes = self.0.table.changes();
        let presenting = self.present(layer, deadline);
        tokio::pin!(presenting);
        loop {
            changes.borrow_and_update();
            if let Some(stored) = self.0.table.layer(layer) {
                // What is left of presenting it is on a thread of its own.
                return Ok(*stored.contents().diff_id());
            }
            tokio::select! {
                presented = &mut presenting => return presented.map(|p| p.diff_id),
                _ = changes.changed() => {}
            }
        }
    }

    /// Where a layer that was admitted is shown, once it is; `None` if it is not here. No deadline: nobody is asked, and a tree
    /// is made in bounded time.
    pub async fn shown(&self, layer: &BlobDigest) -> Option<Presented> {
        let mut changes = self.0.table.changes();
        loop {
            changes.borrow_and_update();
            // First those that come: see the table.
            let is_here = self.0.table.layer(layer).is_some();
            if let Some(known) = self.0.table.get(layer) {
                return Some(known.presented());
            }
            if !is_here {
                return None;
            }
            changes.changed().await.ok()?;
        }
    }

    /// A new image must not be built on a layer that is not what its image says; snapshots that have it stay, and say why when
    /// they are read.
    fn check(&self, layer: &BlobDigest) -> Result<(), LayersError> {
        match self.0.table.get(layer) {
            Some(known) if known.layer.file().is_quarantined() => Err(LayersError::Quarantined),
            _ => Ok(()),
        }
    }

    /// TOC from disk or a server; presents the tree; returns the lowerdir. Idempotent, cheap when known.
    pub async fn present(&self, layer: &BlobDigest, deadline: Instant) -> Result<Presented, LayersError> {
        self.check(layer)?;
        if let Ok(presented) = self.present_known(layer) {
            return Ok(presented);
        }
        let work = async {
            let changing = self.0.table.change(layer).await;
            if let Ok(presented) = self.present_known(layer) {
                return Ok(presented);
            }
            self.0.room()?;
            let empty = tracing::field::Empty;
            let span = info_span!("toc", otel.kind = "client", %layer, bytes = empty, server = empty);
            let (encoded, toc) = within(span, ask::toc(&self.0.servers, layer, deadline)).await?;
            let inner = Arc::clone(&self.0);
            let span = info_span!("mount layer", %layer, presentation = inner.presentation.name());
            // The lock goes with the work, which goes on when the caller's time is up.
            let admitted = tokio::task::spawn_blocking(move || {
                let _changing = changing;
                let admitted = span.in_scope(|| inner.admit(&toc, &encoded));
                (
                    admitted.inspect_err(|error| telemetry::failed(&span, error)),
                    (toc, encoded),
                )
            });
            let (admitted, done_with) = admitted.await.map_err(|_| LayersError::Interrupted)?;
            // A large TOC is a million allocations: containerd does not wait until they are freed.
            tokio::task::spawn_blocking(move || drop(done_with));
            admitted
        };
        timeout_at(deadline.into(), work)
            .await
            .unwrap_or(Err(LayersError::NotReady("still on its way")))
    }

    /// Presents layers in the background, in this order; [`NodeLayers::present`] of one waits for it.
    pub fn present_ahead(&self, image: &ImageStatus) {
        let missing = image.layers.iter().filter(|l| self.0.table.get(&l.digest).is_none());
        let cause = Cause::here();
        for layer in missing.take(LAYERS_MAX) {
            let digest = layer.digest;
            let counts_for = match layer.toc.as_ref().is_some_and(|toc| toc.size <= LARGE_TOC) {
                true => 1,
                false => LARGE_COUNTS_FOR,
            };
            let layers = self.clone();
            let span = cause.of(info_span!(parent: None, "layer", layer = %digest));
            let work = async move {
                let stop = layers.0.stop.clone();
                let work = async {
                    let _turn = layers.0.ahead.acquire_many(counts_for).await.ok()?;
                    layers.present(&digest, Instant::now() + AHEAD_TIME).await.err()
                };
                if let Some(Some(error)) = stop.run_until_cancelled(work).await {
                    // Whoever needs it tries again, and says so.
                    tracing::debug!(layer = %digest, %error, "layer-not-presented-ahead");
                }
            };
            self.0.runtime.spawn(work.instrument(span));
        }
    }
}

impl Inner {
    fn room(&self) -> Result<(), LayersError> {
        let count = self.table.len();
        match count < self.config.layers_max {
            true => Ok(()),
            false => Err(LayersError::Full(count)),
        }
    }

    /// Stores and shows a new layer. Blocks.
    fn admit(&self, toc: &Arc<Toc>, encoded: &EncodedToc) -> Result<Presented, LayersError> {
        let cache = self.cache.read().unwrap_or_else(|p| p.into_inner());
        let cache = cache.as_ref().ok_or(LayersError::Interrupted)?;
        let stored = cache.admit(toc, encoded)?;
        Ok(self.show(Arc::new(Layer::new(
            stored,
            &self.servers,
            &self.config,
            &self.counters,
            &self.runtime,
        ))))
    }

    pub(super) fn show(&self, layer: Arc<Layer>) -> Presented {
        layer.stored().file.announce();
        // What a start will read can come while the tree is made.
        let coming = self.table.comes(&layer);
        let lowerdir = self.presentation.present(Arc::clone(&layer));
        let known = Known { layer, lowerdir };
        let presented = known.presented();
        coming.came(known);
        presented
    }
}
