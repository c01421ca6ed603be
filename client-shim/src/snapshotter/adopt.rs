//! The lazy `Prepare`: a committed snapshot that containerd adopts instead of unpacking a layer.
//!
//! In: the identity of a layer, the parent's name. Out: a snapshot on record for containerd to find, or a [`Decline`].
//! Invariant: when this says "adopt", containerd's walk for (chain ID, parent) finds a committed snapshot, now. Anything
//! that goes wrong is a decline, and leaves no layer pinned.
//! Not here: the ordinary `Prepare` that follows a decline ([`super::service`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::api::ImageStatus;
use headstart_layer_format::{BlobDigest, ChainId};

use super::decide::Decisions;
use super::decline::{Decline, DeclineReason};
use super::error::SnapshotError;
use super::image::Target;
use super::labels::{self, LayerIdentity};
use super::lazy::LazyLayers;
use super::pins::Pins;
use super::record::{Labels, LazyLayer};
use super::store::SnapshotStore;

/// Another call is writing the very same snapshot: its two fsyncs are waited for, this often and this many times.
const OTHER_CALL_POLL: Duration = Duration::from_millis(20);
const OTHER_CALL_POLLS: u32 = 250;
/// Layers presented ahead of their snapshots are kept for so long without one.
const AHEAD_MAX: Duration = Duration::from_secs(120);

/// Everything a lazy `Prepare` works with.
#[derive(Debug)]
pub struct Adopter<B> {
    pub store: Arc<SnapshotStore>,
    pub pins: Pins<B>,
    pub backend: Arc<B>,
    pub decisions: Decisions,
    pub present_timeout: Duration,
}

impl<B: LazyLayers> Adopter<B> {
    /// Puts a committed snapshot for `identity` on `parent` on record, or says why not.
    pub async fn adopt(&self, identity: &LayerIdentity, parent: &str, labels: &Labels) -> Result<(), Decline> {
        let chain = identity.chain_id;
        if self.store.adoptable(&chain, parent).is_some() {
            return Ok(());
        }
        if let Some(reason) = self.backend.obstacle() {
            return Err(Decline::new(reason, "layers cannot be lazy on this node"));
        }
        let below = self.parent_chain(parent)?;
        let ready = |status: &ImageStatus| self.ready(status);
        let target = self.decisions.target(&*self.backend, identity, below.as_ref(), &ready);
        let (manifest, target) = target.await?;
        tracing::Span::current().record("manifest", tracing::field::display(&manifest));
        if parent.is_empty() && ChainId::bottom(target.diff_id) != chain {
            return Err(Decline::new(
                DeclineReason::Mismatch,
                "a layer with layers below it was asked for without a parent",
            ));
        }
        let mut labels = labels.clone();
        labels.insert(labels::HEADSTART_MANIFEST.into(), manifest.to_string());
        let labels = &labels;
        let adopted = self.commit(identity, &target, parent, labels).await;
        if let Err(decline) = &adopted {
            self.decisions.decline(manifest, decline.clone());
        }
        adopted
    }

    /// An image is decided to be lazy: its layers are presented from now on, all at once, before containerd asks for each.
    fn ready(&self, status: &ImageStatus) {
        self.backend.prepared(status);
        let layers: Vec<BlobDigest> = status.layers.iter().map(|l| l.digest).collect();
        let pins = self.pins.clone();
        // What no snapshot came to need by then goes with its only pin.
        tokio::spawn(async move {
            tokio::time::sleep(AHEAD_MAX).await;
            layers.iter().for_each(|layer| drop(pins.pin(layer)));
        });
    }

    /// The parent's chain ID, if it has a parent and that tells.
    fn parent_chain(&self, parent: &str) -> Result<Option<ChainId>, Decline> {
        if parent.is_empty() {
            return Ok(None);
        }
        // A parent that does not exist is the ordinary path's error to report.
        let record = self.store.stat(parent);
        let record = record.map_err(|e| Decline::new(DeclineReason::Mismatch, e))?;
        Ok(record.chain_id())
    }

    /// Declines a layer that would look different from an unpacked one on this parent.
    fn check_implied(&self, target: &Target, parent: &str) -> Result<(), Decline> {
        let below = self.store.ancestry(parent);
        let below = below.map_err(|e| Decline::new(DeclineReason::Mismatch, e))?;
        let over_unpacked = below.iter().any(|record| record.lazy.is_none());
        let mut stack = vec![target.layer];
        stack.extend(
            below
                .iter()
                .map_while(|record| record.lazy.as_ref())
                .map(|lazy| lazy.layer),
        );
        stack.reverse();
        match self.backend.implied_conflict(&stack, over_unpacked) {
            None => Ok(()),
            Some(path) => Err(Decline::new(
                DeclineReason::ImpliedDirectory,
                format_args!("the layer has no entry for directory {path:?}, which a layer below has"),
            )),
        }
    }

    async fn commit(
        &self,
        identity: &LayerIdentity,
        target: &Target,
        parent: &str,
        labels: &Labels,
    ) -> Result<(), Decline> {
        let chain = identity.chain_id;
        let pin = self.pins.pin(&target.layer);
        let deadline = Instant::now() + self.present_timeout;
        // Its tree, and the mount, are the container's to wait for, not the pull's.
        let admitted = self.pins.admit(&pin, deadline).await;
        let diff_id = admitted.map_err(|e| Decline::new(DeclineReason::PresentFailed, e))?;
        if diff_id != target.diff_id {
            return Err(Decline::new(
                DeclineReason::Mismatch,
                "the layer's TOC has another DiffID than the image's config",
            ));
        }
        self.check_implied(target, parent)?;
        if let Some(image_ref) = &identity.image_ref {
            self.backend.learn_source(&target.layer, image_ref).await;
        }
        let mut labels = labels.clone();
        labels.insert(labels::REMOTE.into(), labels::REMOTE_VALUE.into());
        labels.insert(labels::HEADSTART_LAYER.into(), target.layer.to_string());
        let lazy = LazyLayer {
            layer: target.layer,
            chain_id: chain,
        };
        let (store, parent_name) = (self.store.clone(), parent.to_owned());
        // The pin goes into the task, which runs to its end even if containerd hangs up meanwhile.
        let made = tokio::task::spawn_blocking(move || {
            let made = store.create_lazy(&parent_name, labels, lazy);
            if made.is_ok() {
                pin.keep();
            }
            made
        });
        match made.await {
            Ok(Ok(record)) => {
                tracing::info!(chain = %chain, layer = %target.layer, name = record.name, "layer mounted lazily");
                Ok(())
            }
            Ok(Err(SnapshotError::AlreadyExists(_))) => self.await_other(chain, parent).await,
            Ok(Err(error)) => Err(Decline::new(DeclineReason::CommitFailed, error)),
            Err(error) => Err(Decline::new(DeclineReason::CommitFailed, error)),
        }
    }

    /// Two calls for one snapshot: the other one has its name; containerd may be told once its walk finds it.
    async fn await_other(&self, chain: ChainId, parent: &str) -> Result<(), Decline> {
        for _ in 0..OTHER_CALL_POLLS {
            if self.store.adoptable(&chain, parent).is_some() {
                return Ok(());
            }
            tokio::time::sleep(OTHER_CALL_POLL).await;
        }
        Err(Decline::new(
            DeclineReason::CommitFailed,
            "the name is taken by a snapshot that containerd would not adopt",
        ))
    }
}
