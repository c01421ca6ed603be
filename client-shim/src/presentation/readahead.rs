//! How far ahead the kernel reads in an EROFS mount.
//!
//! In: a mount that is about to be made. Out: the mount, with its read-ahead raised. Invariant: one mount of this process at a time.
//! Not here: FUSE mounts, whose backing device has the number that `stat` tells (`fuse/session.rs`).
//!
//! The kernel names an EROFS mount's backing device by a counter (`erofs-17`) and tells nobody which mount it is of. It is the one
//! that was not there before. Another program's mount that appears just then is raised too, which does it no harm.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Mutex;

const DEVICES: &str = "/sys/class/bdi";
const PREFIX: &str = "erofs-";

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Runs `mount`, which makes one EROFS mount.
pub(super) fn raised<T>(kib: u32, mount: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|p| p.into_inner());
    let before = devices();
    let mounted = mount()?;
    if let Err(error) = before.and_then(|before| raise(&before, kib)) {
        tracing::warn!(%error, "kernel-readahead-not-set");
    }
    Ok(mounted)
}

fn raise(before: &BTreeSet<OsString>, kib: u32) -> io::Result<()> {
    for new in devices()?.difference(before) {
        std::fs::write(Path::new(DEVICES).join(new).join("read_ahead_kb"), kib.to_string())?;
    }
    Ok(())
}

fn devices() -> io::Result<BTreeSet<OsString>> {
    let names = std::fs::read_dir(DEVICES)?.map(|entry| Ok(entry?.file_name()));
    names
        .filter(|name| !matches!(name, Ok(n) if !n.to_string_lossy().starts_with(PREFIX)))
        .collect()
}
