//! What the snapshotter needs of the lazy side of this crate, as a seam.
//!
//! In: digests and chain IDs. Out: what a server knows, and directories that show a layer. Invariant: `present_known`
//! and `usage` never touch the network. A trait only because the contract tests stand in a double for it.
//! Not here: the decisions ([`super::decide`]), the work (`crate::layers`, `crate::fetch`).

use std::collections::HashSet;
use std::future::Future;
use std::path::PathBuf;
use std::time::Instant;

use headstart_layer_format::{
    BlobDigest, ChainId, DiffId,
    api::{ChainStatus, ImageStatus},
};

use super::decline::DeclineReason;
use super::record::Usage;
use crate::fetch::servers::Servers;
use crate::layers::{NodeLayers, NodeStatus, Presented};
use crate::profile::{PrefetchConfig, Starts};

/// Why the lazy side could not.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct LazyError(pub String);

impl LazyError {
    pub fn new(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// The lazy side.
pub trait LazyLayers: Send + Sync + 'static {
    /// `Some`: nothing can be made lazy on this node now, and why.
    fn obstacle(&self) -> Option<DeclineReason>;
    /// `None`: no server knows it.
    fn image(
        &self,
        manifest: &BlobDigest,
        wait_ms: u64,
    ) -> impl Future<Output = Result<Option<ImageStatus>, LazyError>> + Send;
    /// `None`: no server knows it.
    fn chain(&self, chain: &ChainId) -> impl Future<Output = Result<Option<ChainStatus>, LazyError>> + Send;
    /// The DiffID in the layer's TOC, once the layer can be shown on this node whatever becomes of servers. It is being shown
    /// from then on; who needs it waits in [`LazyLayers::present`].
    fn admit(&self, layer: &BlobDigest, deadline: Instant) -> impl Future<Output = Result<DiffId, LazyError>> + Send;
    /// Where the layer is shown: a lower directory.
    fn present(&self, layer: &BlobDigest, deadline: Instant)
    -> impl Future<Output = Result<PathBuf, LazyError>> + Send;
    /// Where an admitted layer is shown, once it is; `None` if it is not here. Takes the time that its tree takes.
    fn shown(&self, layer: &BlobDigest) -> impl Future<Output = Option<PathBuf>> + Send;
    /// An image that an admitted, pinned layer belongs to, as containerd named it: where the layer's original is to be had.
    fn learn_source(&self, _layer: &BlobDigest, _image_ref: &str) -> impl Future<Output = ()> + Send {
        async {}
    }
    /// A directory that `stack` (bottom layer first, all admitted), shown layer by layer, would give other attributes
    /// than unpacking does. `over_unpacked`: below the stack are ordinary snapshots.
    fn implied_conflict(&self, stack: &[BlobDigest], over_unpacked: bool) -> Option<String>;
    /// From this node's disk alone. May block for a short time.
    fn present_known(&self, layer: &BlobDigest) -> Result<PathBuf, LazyError>;
    /// Layers this node keeps, in use or not.
    fn known(&self) -> Vec<BlobDigest>;
    /// Forgets a layer that no snapshot shows any more, after its tree is made if that is under way.
    fn release(&self, layer: &BlobDigest) -> impl Future<Output = ()> + Send;
    fn usage(&self, layer: &BlobDigest) -> Option<Usage>;
    /// For people and metrics.
    fn status(&self) -> Option<NodeStatus> {
        None
    }
    /// An image that is to be lazy is being prepared: what its start will need may come already.
    fn prepared(&self, _image: &ImageStatus) {}
    /// A container is being created on all layers (bottom first) of an image.
    fn container(&self, _key: &str, _manifest: &BlobDigest, _layers: &[BlobDigest]) {}
    /// A container's snapshot goes.
    fn container_gone(&self, _key: &str) {}
    /// Takes the one who knows which layers containers use.
    fn set_in_use(&self, _ask: impl Fn() -> HashSet<BlobDigest> + Send + Sync + 'static) {}
}

/// The real one.
#[derive(Clone, Debug)]
pub struct NodeLazy {
    servers: Servers,
    /// `None`: the FUSE mount could not be made; the shim then is an ordinary snapshotter.
    layers: Option<NodeLayers>,
    starts: Option<Starts>,
    enabled: bool,
}

impl NodeLazy {
    /// Must be called on a runtime.
    pub fn new(servers: Servers, layers: Option<NodeLayers>, enabled: bool, prefetch: &PrefetchConfig) -> Self {
        let starts = layers.as_ref();
        let starts = starts.map(|layers| Starts::new(prefetch, servers.clone(), layers.clone()));
        Self {
            servers,
            layers,
            starts,
            enabled,
        }
    }

    fn layers(&self) -> Result<&NodeLayers, LazyError> {
        self.layers
            .as_ref()
            .ok_or_else(|| LazyError::new("this node has no FUSE mount"))
    }
}

fn lowerdir(presented: Presented) -> PathBuf {
    presented.lowerdir
}

impl LazyLayers for NodeLazy {
    fn obstacle(&self) -> Option<DeclineReason> {
        match (self.enabled, &self.layers) {
            (false, _) => Some(DeclineReason::Disabled),
            (true, None) => Some(DeclineReason::NoMount),
            (true, Some(_)) => None,
        }
    }

    async fn image(&self, manifest: &BlobDigest, wait_ms: u64) -> Result<Option<ImageStatus>, LazyError> {
        self.servers.image(manifest, wait_ms).await.map_err(LazyError::new)
    }

    async fn chain(&self, chain: &ChainId) -> Result<Option<ChainStatus>, LazyError> {
        self.servers.chain(chain).await.map_err(LazyError::new)
    }

    async fn admit(&self, layer: &BlobDigest, deadline: Instant) -> Result<DiffId, LazyError> {
        let admitted = self.layers()?.admit(layer, deadline).await;
        admitted.map_err(LazyError::new)
    }

    async fn present(&self, layer: &BlobDigest, deadline: Instant) -> Result<PathBuf, LazyError> {
        let presented = self.layers()?.present(layer, deadline).await;
        presented.map(lowerdir).map_err(LazyError::new)
    }

    async fn shown(&self, layer: &BlobDigest) -> Option<PathBuf> {
        self.layers.as_ref()?.shown(layer).await.map(lowerdir)
    }

    async fn learn_source(&self, layer: &BlobDigest, image_ref: &str) {
        // A reference that is none is of no use, and no harm.
        if let (Some(layers), Ok(source)) = (&self.layers, image_ref.parse()) {
            layers.learn_source(layer, source).await;
        }
    }

    fn implied_conflict(&self, stack: &[BlobDigest], over_unpacked: bool) -> Option<String> {
        self.layers.as_ref()?.implied_conflict(stack, over_unpacked)
    }

    fn present_known(&self, layer: &BlobDigest) -> Result<PathBuf, LazyError> {
        self.layers()?
            .present_known(layer)
            .map(lowerdir)
            .map_err(LazyError::new)
    }

    fn known(&self) -> Vec<BlobDigest> {
        let status = self.layers.as_ref().map(NodeLayers::status);
        status.into_iter().flat_map(|s| s.layers).map(|l| l.digest).collect()
    }

    async fn release(&self, layer: &BlobDigest) {
        if let Some(starts) = &self.starts {
            starts.gone(layer);
        }
        if let Some(layers) = &self.layers {
            layers.release(layer).await;
        }
    }

    fn usage(&self, layer: &BlobDigest) -> Option<Usage> {
        let (size, inodes) = self.layers.as_ref()?.usage(layer)?;
        Some(Usage { size, inodes })
    }

    fn status(&self) -> Option<NodeStatus> {
        let mut status = self.layers.as_ref().map(NodeLayers::status)?;
        status.prefetches = self.starts.as_ref().map(Starts::status).unwrap_or_default();
        Some(status)
    }

    fn prepared(&self, image: &ImageStatus) {
        if let Some(layers) = &self.layers {
            layers.present_ahead(image);
        }
        if let Some(starts) = &self.starts {
            starts.prepared(image);
        }
    }

    fn container(&self, key: &str, manifest: &BlobDigest, layers: &[BlobDigest]) {
        if let Some(starts) = &self.starts {
            starts.container(key, manifest, layers);
        }
    }

    fn container_gone(&self, key: &str) {
        if let Some(starts) = &self.starts {
            starts.over(key);
        }
    }

    fn set_in_use(&self, ask: impl Fn() -> HashSet<BlobDigest> + Send + Sync + 'static) {
        if let Some(layers) = &self.layers {
            layers.in_use().set(ask);
        }
    }
}
