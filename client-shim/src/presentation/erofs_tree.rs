//! Layers as EROFS mounts, whose data spaces are files of the node's one FUSE mount, or local files.
//!
//! In: layers. Out: `<root>/img/<slot>`, or the FUSE tree's directory for a layer that has no image. Invariant: an image
//! was written here, from the TOC, by this process or the one before; what is mounted is in the table, and leaves the table when it is unmounted.
//! A layer that is whole is read without this process: by everybody if it was whole when it was shown, else by whoever mounts
//! it after that.
//! Not here: images (`erofs`), reads of data spaces (`fuse`), whether the kernel can do it (`probe.rs`).

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use headstart_layer_format::Toc;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::device::Device;
use super::readahead::raised;
use super::replace::replace_image;
use super::whole::Whole;
use super::{FuseTree, How, Presentation};
use crate::cache::{Layer, Loan};
use crate::erofs::{self, ErofsError, ShortTimes};
use crate::fuse::mount_table::mounts;

/// A few writes for the image of an ordinary layer: a container waits for it.
const IMAGE_BUFFER: usize = 256 << 10;

#[derive(Debug)]
pub struct ErofsTree {
    fuse: FuseTree,
    mounts: PathBuf,
    readahead_kib: u32,
    whole: Whole,
    short: ShortTimes,
    /// By slot.
    shown: Mutex<HashMap<u32, Shown>>,
}

/// How a layer is shown.
#[derive(Debug)]
struct Shown {
    at: PathBuf,
    data: Data,
}

/// Where the bytes of a layer's files come from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Data {
    /// It has no image, or none that can be mounted, and why: the FUSE tree shows it.
    Tree(Arc<str>),
    /// From this process.
    Asked,
    /// From a local file, or a local file was tried and refused.
    Settled,
}

impl Shown {
    fn is_mount(&self) -> bool {
        !matches!(self.data, Data::Tree(_))
    }
}

impl ErofsTree {
    pub(super) fn new(fuse: FuseTree, mounts: &Path, readahead_kib: u32, whole: Whole, short: ShortTimes) -> Self {
        Self {
            fuse,
            mounts: mounts.to_owned(),
            readahead_kib,
            whole,
            short,
            shown: Mutex::default(),
        }
    }

    /// Detaches every mount below `dir`, which a killed predecessor left, and removes the mount points. Asks nobody but
    /// the kernel: what they read from is dead. What stays is in the way of what needs its place, and of nothing else.
    pub fn clear(dir: &Path) {
        // Whatever else is there is not ours, and whoever wants a directory there will say so.
        let Some(dir) = dir.canonicalize().ok().filter(|d| d.is_dir()) else {
            return;
        };
        if let Err(error) = try_clear(&dir) {
            tracing::warn!(path = %dir.display(), %error, "stale-mounts-not-cleared");
        }
    }

    /// Goes on with the mounts of a predecessor whose FUSE mount goes on. Those of layers that are no more are undone.
    pub fn take_over(&self, layers: &[Arc<Layer>]) -> io::Result<()> {
        let Some(dir) = self.mounts.canonicalize().ok() else {
            return Ok(());
        };
        for mount in mounts()?.iter().rev() {
            let Ok(name) = mount.point.strip_prefix(&dir) else {
                continue;
            };
            let slot = name.to_str().and_then(|name| name.parse::<u32>().ok());
            let known = slot.filter(|slot| mount.kind == "erofs" && layers.iter().any(|l| l.slot() == *slot));
            let at = self.mounts.join(name);
            match known {
                Some(slot) if !self.lock().contains_key(&slot) => {
                    // From this process, or already from a local file: then it is mounted from there once more.
                    let data = Data::Asked;
                    self.lock().insert(slot, Shown { at, data });
                }
                _ => undo(&at),
            }
        }
        Ok(())
    }

    fn show(&self, layer: &Layer) -> Result<Shown, ErofsError> {
        let image = layer.file().image();
        write_image(&*layer.contents().toc()?, self.short, &image)?;
        let slot = layer.slot().to_string();
        let asked = Device::asked(self.fuse.device(&slot), self.readahead_kib);
        let at = self.mounts.join(slot);
        std::fs::create_dir_all(&at)?;
        let mount = |device: &Device| mount_image(&image, device, &at);
        let mut data = Data::Asked;
        if let Some((loan, device)) = self.local(layer) {
            // Refused once, it would be the next time; we are as good.
            data = Data::Settled;
            match mount(&device) {
                Ok(()) => return Ok(Shown { at, data }),
                Err(error) => {
                    tracing::warn!(layer = %layer.digest(), %error, "layer-not-read-without-us");
                    layer.file().take_back(&loan);
                }
            }
        }
        if let Err(error) = mount(&asked) {
            // Empty, as nothing was mounted.
            let _ = std::fs::remove_dir(&at);
            return Err(error.into());
        }
        Ok(Shown { at, data })
    }

    /// The layer's own file, if it is whole, the kernel may read it, and what is lent leaves room for it (`cache/room.rs`).
    fn local(&self, layer: &Layer) -> Option<(Loan, Device)> {
        let direct = match self.whole {
            Whole::Direct => true,
            Whole::Cached => false,
            Whole::Asked => return None,
        };
        let loan = layer.file().whole()?;
        let device = Device::local(loan.path.clone(), direct, self.readahead_kib);
        Some((loan, device))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Shown>> {
        self.shown.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl Presentation for ErofsTree {
    fn present(&self, layer: Arc<Layer>) -> PathBuf {
        if let Some(shown) = self.lock().get(&layer.slot()) {
            return shown.at.clone();
        }
        // The device is there from now on; and the tree, for layers that cannot be otherwise.
        let tree = self.fuse.offer(Arc::clone(&layer));
        // Whoever pulls the layer may have been told already that it is here: it is shown, whatever becomes of its image.
        let shown = catch_unwind(AssertUnwindSafe(|| self.show(&layer)));
        let shown = shown.unwrap_or_else(|_| Err(io::Error::other("the writer of images broke").into()));
        let shown = shown.unwrap_or_else(|error| {
            tracing::warn!(layer = %layer.digest(), %error, "layer-shown-by-fuse");
            self.fuse.prepare(layer.slot());
            Shown {
                at: tree,
                data: Data::Tree(error.to_string().into()),
            }
        });
        let path = shown.at.clone();
        self.lock().insert(layer.slot(), shown);
        path
    }

    fn how(&self, slot: u32) -> Option<How> {
        let all = self.lock();
        let shown = all.get(&slot)?;
        Some(match &shown.data {
            Data::Tree(why) => How {
                by: self.fuse.name(),
                why: Some(Arc::clone(why)),
            },
            Data::Asked | Data::Settled => How {
                by: self.name(),
                why: None,
            },
        })
    }

    fn completed(&self, layer: &Layer) {
        // Held to the end: a layer that is withdrawn meanwhile waits, and what it unmounts then is the new mount.
        let mut all = self.lock();
        let Some(shown) = all.get_mut(&layer.slot()).filter(|s| s.data == Data::Asked) else {
            return;
        };
        // Not now, for want of room in what may be lent: it is asked again with every flush of the node (`layers`), and
        // mounted from its file once others are gone. By who comes first.
        let Some((loan, device)) = self.local(layer) else {
            return;
        };
        // Once: what was refused now would be the next time. The next start mounts the file at once.
        shown.data = Data::Settled;
        let _span = tracing::info_span!(parent: None, "switch layer", layer = %layer.digest()).entered();
        match replace_image(&layer.file().image(), &device, &shown.at) {
            Ok(()) => tracing::info!(layer = %layer.digest(), slot = layer.slot(), "layer-read-without-us"),
            Err(error) => {
                tracing::warn!(layer = %layer.digest(), %error, "layer-not-switched");
                layer.file().take_back(&loan);
            }
        }
    }

    fn settle(&self) {
        self.fuse.settle();
    }

    fn withdraw(&self, layer: &Layer) {
        let shown = self.lock().remove(&layer.slot());
        if let Some(shown) = shown.filter(Shown::is_mount) {
            undo(&shown.at);
        }
        self.fuse.withdraw(layer);
    }

    fn name(&self) -> &'static str {
        "erofs"
    }

    fn leave(&self) {
        self.lock().clear();
        self.fuse.leave();
    }

    fn close(&self) {
        let all: Vec<Shown> = self.lock().drain().map(|(_, shown)| shown).collect();
        for shown in all.iter().filter(|s| s.is_mount()) {
            undo(&shown.at);
        }
        self.fuse.close();
    }
}

impl Drop for ErofsTree {
    fn drop(&mut self) {
        self.close();
    }
}

fn try_clear(dir: &Path) -> io::Result<()> {
    let mut first = Ok(());
    // The latest first: they may lie on each other. One that stays keeps no other.
    for point in mounts()?.iter().rev().map(|m| &m.point).filter(|p| p.starts_with(dir)) {
        tracing::info!(path = %point.display(), "stale-mount-detached");
        first = first.and(unmount(point, UnmountFlags::DETACH).map_err(io::Error::from));
    }
    // Not through a mount that stays.
    first?;
    std::fs::remove_dir_all(dir)
}

/// Writes an image in place of an older one, which may still be mounted somewhere. Not made durable: the next start
/// writes its own.
pub(super) fn write_image(toc: &Toc, short: ShortTimes, path: &Path) -> Result<(), ErofsError> {
    let new = path.with_extension("new");
    let mut out = BufWriter::with_capacity(IMAGE_BUFFER, File::create(&new)?);
    erofs::write(toc, short, &mut out)?;
    out.flush()?;
    drop(out);
    Ok(std::fs::rename(&new, path)?)
}

/// Mounts an image. By the system call: mount(8) would put a loop device between.
pub(super) fn mount_image(image: &Path, device: &Device, at: &Path) -> io::Result<()> {
    let more: &[u8] = if device.direct { b",directio" } else { b"" };
    let option = [b"device=", device.path.as_os_str().as_bytes(), more].concat();
    let option = CString::new(option).map_err(io::Error::other)?;
    // Set-id programs and devices work as they would unpacked.
    raised(device.readahead_kib, || {
        Ok(mount(image, at, "erofs", MountFlags::RDONLY, Some(option.as_c_str()))?)
    })
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
