//! How a layer becomes a directory that overlayfs can use as a lowerdir.
//!
//! In: a [`Layer`] (its TOC, and a reader of its data space). Out: a path. Invariant: what is below the path is the TOC's
//! tree, whiteouts and opaque marks in overlayfs's own form, and every byte read there went through the layer's reader.
//! Not here: stacking layers (`snapshotter`), fetching (`cache`, `fetch`).
//!
//! Two implementations, chosen once at the start (`choice.rs`): [`FuseTree`] answers every question of the kernel itself;
//! [`ErofsTree`] gives the kernel an image of the tree, and answers for the data space alone.

mod choice;
pub mod erofs_tree;
pub mod fuse_tree;
pub mod implied;
mod probe;
mod readahead;
mod replace;

use std::path::PathBuf;
use std::sync::Arc;

use crate::cache::Layer;

pub use choice::open;
pub use erofs_tree::ErofsTree;
pub use fuse_tree::FuseTree;
pub use probe::ProbeError;

/// Each text completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum PresentationError {
    #[error("mount {path}: {source}")]
    Mount { path: PathBuf, source: std::io::Error },
    #[error("show layers as EROFS, as the configuration demands: {0}")]
    Probe(#[from] ProbeError),
    #[error("clear a stale mount at {path}: {source}")]
    Stale { path: PathBuf, source: std::io::Error },
}

/// A way to show layers as directories.
pub trait Presentation: Send + Sync + std::fmt::Debug {
    /// Shows a layer; returns its lowerdir. Showing it again gives the same path.
    fn present(&self, layer: Arc<Layer>) -> Result<PathBuf, PresentationError>;
    /// All of a shown layer is here and durable: whoever mounts it from now on may do without this process. May be said
    /// again and again, and is cheap then. Blocks.
    fn completed(&self, _: &Layer) {}
    /// Stops showing it. Nobody has it mounted any more.
    fn withdraw(&self, layer: &Layer);
    /// For people and metrics.
    fn name(&self) -> &'static str;
    /// Stops showing anything, also if somebody still looks. Blocks.
    fn close(&self);
}
