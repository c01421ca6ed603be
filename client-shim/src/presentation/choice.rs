//! Which presentation this node has.
//!
//! In: the configuration, and what the kernel can do. Out: a [`Presentation`]. Invariant: EROFS only where it was just seen
//! to work; what a killed predecessor mounted is gone, whichever presentation it had.
//! Not here: the probe itself (`probe.rs`).

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::probe::probe;
use super::{ErofsTree, FuseTree, Presentation, PresentationError};
use crate::cache::{LazyConfig, PresentationChoice};
use crate::counters::Counters;

/// The FUSE mount, below the root directory. Short: overlayfs has 4096 bytes for all lowerdirs of a mount.
const MOUNT: &str = "mnt";
/// EROFS mounts, below the root directory.
const IMAGES: &str = "img";
const PROBE: &str = "probe";

/// Mounts what the presentation needs below `root`. The caller holds the node's lock. Blocks.
pub fn open(
    root: &Path,
    store: &Path,
    config: &LazyConfig,
    counters: &Arc<Counters>,
    runtime: &Handle,
) -> Result<Box<dyn Presentation>, PresentationError> {
    let (images, at) = (root.join(IMAGES), root.join(MOUNT));
    // Before the FUSE mount that they read from.
    for dir in [&images, &root.join(PROBE)] {
        ErofsTree::clear(dir)?;
    }
    let mount = |has_devices| FuseTree::mount(&at, store, config, Arc::clone(counters), runtime.clone(), has_devices);
    if config.presentation == PresentationChoice::Fuse {
        return Ok(Box::new(mount(false)?));
    }
    let fuse = mount(true)?;
    match probe(&root.join(PROBE), &fuse) {
        Ok(()) => {
            tracing::info!(presentation = "erofs", "presentation-chosen");
            Ok(Box::new(ErofsTree::new(fuse, &images, config.kernel_readahead_kib)))
        }
        Err(error) if config.presentation == PresentationChoice::Erofs => Err(error.into()),
        Err(error) => {
            tracing::info!(presentation = "fuse", %error, "presentation-chosen");
            // Anew: a tree that is alone on its mount need not be asked to open files.
            fuse.close();
            drop(fuse);
            Ok(Box::new(mount(false)?))
        }
    }
}
