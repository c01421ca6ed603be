//! Layers as EROFS mounts, whose data spaces are files of the node's one FUSE mount, or local files.
//!
//! In: layers. Out: `<root>/img/<slot>`, or the FUSE tree's directory for a layer that has no image. Invariant: an image
//! was written by this process, from the TOC; what is mounted is in the table, and leaves the table when it is unmounted.
//! A layer that was whole when it was shown is read without this process.
//! Not here: images (`erofs`), reads of data spaces (`fuse`), whether the kernel can do it (`probe.rs`).

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use headstart_layer_format::Toc;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{FuseTree, Presentation, PresentationError};
use crate::cache::Layer;
use crate::erofs::{self, ErofsError};
use crate::fuse::session::{mount_points, set_readahead};

/// One read of the kernel must be one FUSE request, which is at most 1 MiB: of two, a killed reader leaves one undone, and
/// kernels before 7.0 take the short read for the end of the file and cache zeros.
const READAHEAD_KIB_MAX: u32 = 1024;

#[derive(Debug)]
pub struct ErofsTree {
    fuse: FuseTree,
    mounts: PathBuf,
    readahead_kib: u32,
    /// By slot: where a layer is shown, which for some is in the FUSE tree.
    shown: Mutex<HashMap<u32, PathBuf>>,
}

impl ErofsTree {
    pub fn new(fuse: FuseTree, mounts: &Path, readahead_kib: u32) -> Self {
        Self {
            fuse,
            mounts: mounts.to_owned(),
            readahead_kib: readahead_kib.min(READAHEAD_KIB_MAX),
            shown: Mutex::default(),
        }
    }

    /// Detaches every mount below `dir`, which a killed predecessor left, and removes the mount points. Asks nobody but
    /// the kernel: what they read from is dead.
    pub fn clear(dir: &Path) -> Result<(), PresentationError> {
        let stale = |source| PresentationError::Stale {
            path: dir.to_owned(),
            source,
        };
        // Whatever else is there is not ours, and whoever wants a directory there will say so.
        let Some(dir) = dir.canonicalize().ok().filter(|d| d.is_dir()) else {
            return Ok(());
        };
        // The latest first: they may lie on each other.
        for point in mount_points()
            .map_err(stale)?
            .iter()
            .rev()
            .filter(|p| p.starts_with(&dir))
        {
            tracing::info!(path = %point.display(), "stale-mount-detached");
            unmount(point, UnmountFlags::DETACH).map_err(|e| stale(e.into()))?;
        }
        std::fs::remove_dir_all(&dir).map_err(stale)
    }

    fn show(&self, layer: &Layer) -> Result<PathBuf, ErofsError> {
        let image = layer.file().image();
        write_image(layer.toc(), &image)?;
        let slot = layer.slot().to_string();
        let whole = layer.file().whole();
        let device = whole.unwrap_or_else(|| self.fuse.device(&slot));
        let at = self.mounts.join(slot);
        std::fs::create_dir_all(&at)?;
        if let Err(error) = mount_image(&image, &device, &at, self.readahead_kib) {
            // Empty, as nothing was mounted.
            let _ = std::fs::remove_dir(&at);
            return Err(error.into());
        }
        Ok(at)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, PathBuf>> {
        self.shown.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl Presentation for ErofsTree {
    fn present(&self, layer: Arc<Layer>) -> Result<PathBuf, PresentationError> {
        if let Some(path) = self.lock().get(&layer.slot()) {
            return Ok(path.clone());
        }
        // The device is there from now on; and the tree, for layers that cannot be otherwise.
        let tree = self.fuse.present(Arc::clone(&layer))?;
        let path = self.show(&layer).unwrap_or_else(|error| {
            tracing::warn!(layer = %layer.digest(), %error, "layer-shown-by-fuse");
            tree
        });
        self.lock().insert(layer.slot(), path.clone());
        Ok(path)
    }

    fn withdraw(&self, layer: &Layer) {
        let path = self.lock().remove(&layer.slot());
        if let Some(path) = path.filter(|p| p.starts_with(&self.mounts)) {
            undo(&path);
        }
        self.fuse.withdraw(layer);
    }

    fn close(&self) {
        let paths: Vec<PathBuf> = self.lock().drain().map(|(_, path)| path).collect();
        for path in paths.iter().filter(|p| p.starts_with(&self.mounts)) {
            undo(path);
        }
        self.fuse.close();
    }
}

impl Drop for ErofsTree {
    fn drop(&mut self) {
        self.close();
    }
}

/// Writes an image in place of an older one, which may still be mounted somewhere. Not made durable: the next start
/// writes its own.
pub(super) fn write_image(toc: &Toc, path: &Path) -> Result<(), ErofsError> {
    let new = path.with_extension("new");
    let mut out = BufWriter::new(File::create(&new)?);
    erofs::write(toc, &mut out)?;
    out.flush()?;
    drop(out);
    Ok(std::fs::rename(&new, path)?)
}

/// Mounts an image. By the system call: mount(8) would put a loop device between.
pub(super) fn mount_image(image: &Path, device: &Path, at: &Path, readahead_kib: u32) -> io::Result<()> {
    let option = [b"device=", device.as_os_str().as_bytes()].concat();
    let option = CString::new(option).map_err(io::Error::other)?;
    // Set-id programs and devices work as they would unpacked.
    mount(image, at, "erofs", MountFlags::RDONLY, Some(option.as_c_str()))?;
    if let Err(error) = set_readahead(at, readahead_kib) {
        tracing::warn!(%error, "kernel-readahead-not-set");
    }
    Ok(())
}

/// Unmounts, at once or with the last user, and removes the mount point.
pub(super) fn undo(path: &Path) {
    if unmount(path, UnmountFlags::empty()).is_err() {
        tracing::info!(path = %path.display(), "mount-busy-detaching");
        if let Err(error) = unmount(path, UnmountFlags::DETACH) {
            tracing::warn!(path = %path.display(), error = %io::Error::from(error), "unmount-failed");
            return;
        }
    }
    if let Err(error) = std::fs::remove_dir(path) {
        tracing::warn!(path = %path.display(), %error, "mount-point-not-removed");
    }
}
