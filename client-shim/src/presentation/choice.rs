//! Which presentation this node has.
//!
//! In: the configuration, and what the kernel can do. Out: a [`Presentation`]. Invariant: EROFS only where it was just seen
//! to work; what a predecessor mounted is taken over, or gone, whichever presentation it had.
//! Not here: the probe itself (`probe.rs`).

use super::probe::{probe, try_direct, try_short_times};
use super::whole::{Whole, release};
use super::{ErofsTree, FuseTree, Presentation, PresentationError, Surroundings};
use crate::cache::PresentationChoice;
use crate::erofs::ShortTimes;
use crate::survival::Kept;

/// The FUSE mount, below the root directory. Short: overlayfs has 4096 bytes for all lowerdirs of a mount.
pub const MOUNT: &str = "mnt";
/// EROFS mounts, below the root directory.
const IMAGES: &str = "img";
const PROBE: &str = "probe";

/// Takes over what a predecessor left, or mounts what the presentation needs below the root. Blocks.
pub fn open(s: &Surroundings<'_>) -> Result<Box<dyn Presentation>, PresentationError> {
    ErofsTree::clear(&s.root.join(PROBE));
    if let Some(kept) = s.keeper.take() {
        match take_over(s, kept) {
            Ok(presentation) => return Ok(presentation),
            Err(error) => {
                // Containers that were using it get errors; there is no other way to have a mount again.
                tracing::error!(%error, "mount-not-taken-over");
                s.keeper.forget();
            }
        }
    }
    mount(s)
}

fn take_over(s: &Surroundings<'_>, kept: Kept) -> Result<Box<dyn Presentation>, PresentationError> {
    let images = s.root.join(IMAGES);
    let (fuse, facts) = FuseTree::take_over(s, &s.root.join(MOUNT), kept)?;
    let erofs = facts.has_devices && s.config.presentation != PresentationChoice::Fuse;
    let presentation = if erofs { "erofs" } else { "fuse" };
    tracing::info!(presentation, resend = s.resend, "mount-taken-over");
    if erofs {
        let readahead = s.config.kernel_readahead_kib;
        let tree = ErofsTree::new(fuse, &images, readahead, whole(s), short_times(s));
        tree.take_over(s.layers)
            .map_err(|source| PresentationError::TakeOver { path: images, source })?;
        return Ok(Box::new(tree));
    }
    // Another choice than the predecessor's: containers keep what they have mounted, new ones get the new.
    ErofsTree::clear(&images);
    if s.config.presentation == PresentationChoice::Erofs {
        tracing::warn!("this mount cannot be the device of EROFS; a restart without containers makes one that can");
    }
    Ok(Box::new(fuse))
}

fn mount(s: &Surroundings<'_>) -> Result<Box<dyn Presentation>, PresentationError> {
    let (images, at) = (s.root.join(IMAGES), s.root.join(MOUNT));
    // Before the FUSE mount that they read from.
    ErofsTree::clear(&images);
    if s.config.presentation == PresentationChoice::Fuse {
        return Ok(Box::new(FuseTree::mount(s, &at, false)?));
    }
    let fuse = FuseTree::mount(s, &at, true)?;
    match probe(&s.root.join(PROBE), &fuse) {
        Ok(()) => {
            tracing::info!(presentation = "erofs", "presentation-chosen");
            let readahead = s.config.kernel_readahead_kib;
            let tree = ErofsTree::new(fuse, &images, readahead, whole(s), short_times(s));
            Ok(Box::new(tree))
        }
        Err(error) if s.config.presentation == PresentationChoice::Erofs => {
            fuse.close();
            s.keeper.forget();
            Err(error.into())
        }
        Err(error) => {
            tracing::info!(presentation = "fuse", %error, "presentation-chosen");
            // Anew: a tree that is alone on its mount need not be asked to open files.
            fuse.close();
            drop(fuse);
            Ok(Box::new(FuseTree::mount(s, &at, false)?))
        }
    }
}

fn whole(s: &Surroundings<'_>) -> Whole {
    let trial = || try_direct(&s.root.join(PROBE), s.store);
    let whole = Whole::choose(s.config.whole_layers, &release(), trial);
    tracing::info!(?whole, "whole-layers");
    whole
}

/// Not asked of the predecessor, whose images are what they are: a kernel can be tried at any time.
fn short_times(s: &Surroundings<'_>) -> ShortTimes {
    match try_short_times(&s.root.join(PROBE), s.store) {
        Ok(()) => ShortTimes::Own,
        Err(error) => {
            tracing::info!(%error, "short-inodes-have-one-time");
            ShortTimes::Common
        }
    }
}
