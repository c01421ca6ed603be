//! How a layer becomes a directory that overlayfs can use as a lowerdir.
//!
//! In: a [`Layer`] (its TOC, and a reader of its data space). Out: a path. Invariant: what is below the path is the TOC's
//! tree, whiteouts and opaque marks in overlayfs's own form, and every byte read there went through the layer's reader.
//! Not here: stacking layers (`snapshotter`), fetching (`cache`, `fetch`).
//!
//! One implementation so far, [`fuse_tree::FuseTree`]. The second is an EROFS image of the TOC's tree with the data space
//! as its device: it needs the same two things of a layer, hence this seam.

pub mod fuse_tree;
pub mod implied;

use std::path::PathBuf;
use std::sync::Arc;

use crate::cache::Layer;

pub use fuse_tree::FuseTree;

/// Each text completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub enum PresentationError {
    #[error("mount {path}: {source}")]
    Mount { path: PathBuf, source: std::io::Error },
    #[error("clear a stale mount at {path}: {source}")]
    Stale { path: PathBuf, source: std::io::Error },
}

/// A way to show layers as directories.
pub trait Presentation: Send + Sync + std::fmt::Debug {
    /// Shows a layer; returns its lowerdir. Showing it again gives the same path.
    fn present(&self, layer: Arc<Layer>) -> Result<PathBuf, PresentationError>;
    /// Stops showing it. Nobody has it mounted any more.
    fn withdraw(&self, layer: &Layer);
    /// Stops showing anything, also if somebody still looks. Blocks.
    fn close(&self);
}
