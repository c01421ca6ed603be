//! Another mount in the place of one that is in use.
//!
//! In: a mount point with an EROFS image on it, and an image with a device. Out: the new mount at that point. Invariant: at every
//! moment somebody who looks there sees one of the two; whoever uses the old one keeps it until he lets go. After an error nobody
//! ever saw the new one.
//! Not here: when a layer is worth it (`erofs_tree.rs`).

use std::io;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::device::Device;
use super::readahead::raised;

/// Mounts beneath the old one and takes that away. A kernel that mounts no beneath (before 6.5) refuses, and nothing has changed.
pub(super) fn replace_image(image: &Path, device: &Device, at: &Path) -> io::Result<()> {
    let context = fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", image)?;
    fsconfig_set_string(&context, "device", &device.path)?;
    if device.direct {
        fsconfig_set_flag(&context, "directio")?;
    }
    fsconfig_set_flag(&context, "ro")?;
    raised(device.readahead_kib, || Ok(fsconfig_create(&context)?))?;
    let new = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_BENEATH;
    move_mount(&new, "", CWD, at, flags)?;
    // Overlays have clones of the old mount, and processes in it keep it: only its place is taken.
    if let Err(error) = unmount(at, UnmountFlags::DETACH) {
        // Both are right. The new one is there to stay, and seen once the old one goes.
        tracing::warn!(path = %at.display(), error = %io::Error::from(error), "old-mount-not-undone");
    }
    Ok(())
}
