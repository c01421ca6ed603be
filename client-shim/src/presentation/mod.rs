//! How a layer becomes a directory that overlayfs can use as a lowerdir.
//!
//! In: a [`Layer`] (its TOC, and a reader of its data space). Out: a path. Invariant: what is below the path is the TOC's
//! tree, whiteouts and opaque marks in overlayfs's own form, and every byte read there went through the layer's reader.
//! Not here: stacking layers (`snapshotter`), fetching (`cache`, `fetch`).
//!
//! Two implementations, chosen once at the start (`choice.rs`): [`FuseTree`] answers every question of the kernel itself;
//! [`ErofsTree`] gives the kernel an image of the tree, and answers for the data space alone.

mod choice;
mod device;
pub mod erofs_tree;
pub mod fuse_tree;
pub mod implied;
mod probe;
mod readahead;
mod replace;
mod whole;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::cache::{Layer, LazyConfig};
use crate::counters::Counters;
use crate::survival::Keeper;

pub use crate::fuse::session::detach_stale;
pub use choice::{MOUNT, open};
pub use erofs_tree::ErofsTree;
pub use fuse_tree::FuseTree;
pub use probe::ProbeError;
pub use whole::kernel_is_trusted;

/// Each text completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum PresentationError {
    #[error("mount {path}: {source}")]
    Mount { path: PathBuf, source: std::io::Error },
    #[error("show layers as EROFS, as the configuration demands: {0}")]
    Probe(#[from] ProbeError),
    #[error("take over the mount at {path}: {source}")]
    TakeOver { path: PathBuf, source: std::io::Error },
    #[error("clear a stale mount at {path}: {source}")]
    Stale { path: PathBuf, source: std::io::Error },
}

/// What a presentation is made of.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// The node's directory, whose lock the caller holds.
    pub root: &'a Path,
    /// Where chunks are kept: what `statfs` speaks of.
    pub store: &'a Path,
    pub config: &'a LazyConfig,
    pub counters: &'a Arc<Counters>,
    pub runtime: &'a Handle,
    /// Layers that the disk has: they are shown from the first request on.
    pub layers: &'a [Arc<Layer>],
    pub keeper: &'a Keeper,
    /// See `survival.resend`.
    pub resend: bool,
}

/// How a layer is shown: on one node not all are shown alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct How {
    /// A [`Presentation::name`].
    pub by: &'static str,
    /// Why it is not shown as the node's others are.
    pub why: Option<Arc<str>>,
}

/// A way to show layers as directories.
pub trait Presentation: Send + Sync + std::fmt::Debug {
    /// Shows a layer; returns its lowerdir. Showing it again gives the same path.
    /// Always: what cannot be done in one way is done in another, and who reads there is told if nothing can.
    fn present(&self, layer: Arc<Layer>) -> PathBuf;
    /// How a layer is shown; `None` if it is not.
    fn how(&self, slot: u32) -> Option<How>;
    /// All of a shown layer is here and durable: whoever mounts it from now on may do without this process. May be said
    /// again and again, and is cheap then. Blocks.
    fn completed(&self, _: &Layer) {}
    /// Has what it keeps where it belongs. To be said from time to time; cheap when there is nothing to do. Blocks.
    fn settle(&self) {}
    /// Stops showing it. Nobody has it mounted any more.
    fn withdraw(&self, layer: &Layer);
    /// For people and metrics.
    fn name(&self) -> &'static str;
    /// Leaves everything as it is to a successor, and goes on answering until this process ends.
    fn leave(&self);
    /// Stops showing anything, also if somebody still looks. Blocks.
    fn close(&self);
}
