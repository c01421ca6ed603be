//! The node's one FUSE mount: made, kept, undone.
//!
//! In: a mount point and a filesystem. Out: a mount that is gone after `close`, whoever still looks at it.
//! Invariant: one thread reads requests (two on one descriptor cost more CPU than they save); what a killed predecessor
//! left is detached before mounting. Not here: what is in the mount, and keeping it alive across a restart.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, INodeNo, MountOption, Notifier, Session, SessionACL};
use rustix::mount::{UnmountFlags, unmount};

use super::kernel::KernelFs;
use super::node_id::Node;

/// Stale mounts stacked on one mount point; more than a few is not our doing.
const STALE_MOUNTS_MAX: usize = 32;

/// How long the thread of an unmounted, unused mount may take to notice. It is woken at once; this is for busy machines.
const THREAD_END_WAIT: Duration = Duration::from_millis(500);

/// What `mount` shows as the source.
const SOURCE_NAME: &str = "headstart";

pub struct FuseMount {
    path: PathBuf,
    notifier: Notifier,
    session: Mutex<Option<BackgroundSession>>,
}

impl std::fmt::Debug for FuseMount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FuseMount").field("path", &self.path).finish()
    }
}

impl FuseMount {
    /// Mounts at `path`, which is created if need be, and starts the thread that serves it.
    pub fn new(path: &Path, fs: KernelFs, readahead_kib: u32) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(SOURCE_NAME.into()),
            MountOption::DefaultPermissions,
            MountOption::RO,
            MountOption::NoAtime,
            // A one-layer view is bind-mounted from here, and must honour what an unpacked layer would.
            MountOption::Dev,
            MountOption::Suid,
        ];
        config.acl = SessionACL::All;
        let session = Session::new(fs, path, &config)?.spawn()?;
        let mount = Self {
            path: path.to_owned(),
            notifier: session.notifier(),
            session: Mutex::new(Some(session)),
        };
        if let Err(error) = set_readahead(path, readahead_kib) {
            tracing::warn!(%error, "kernel-readahead-not-set");
        }
        Ok(mount)
    }

    /// The kernel drops its cached listing of `layers/`.
    pub fn layers_changed(&self) {
        self.logged(self.notifier.inval_inode(INodeNo(Node::Layers.id()), 0, 0));
    }

    /// The kernel drops a withdrawn layer's names.
    pub fn forget_slot(&self, slot: u32) {
        let name = slot.to_string();
        for parent in [Node::Layers, Node::Devices] {
            let name = OsStr::from_bytes(name.as_bytes());
            self.logged(self.notifier.inval_entry(INodeNo(parent.id()), name));
        }
    }

    /// The kernel not having cached something is the usual answer, and fine.
    fn logged(&self, outcome: io::Result<()>) {
        if let Err(error) = outcome
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, "kernel-invalidation-refused");
        }
    }

    /// Unmounts. If somebody still uses the mount it disappears from the tree now and ends with its last user, served
    /// until this process exits. Blocks, for a bounded time. Closing twice does nothing.
    pub fn close(&self) {
        let Some(session) = self.lock().take() else {
            return;
        };
        if unmount(&self.path, UnmountFlags::empty()).is_err() {
            tracing::info!(path = %self.path.display(), "mount-busy-detaching");
            if let Err(error) = unmount(&self.path, UnmountFlags::DETACH) {
                tracing::warn!(path = %self.path.display(), error = %io::Error::from(error), "unmount-failed");
            }
        }
        // An overlay has its own copy of the mount: the unmount succeeds, yet the thread must go on serving. So it is
        // given a moment to end, then let go (dropping a session does not stop its thread).
        let started = Instant::now();
        while !session.guard.is_finished() && started.elapsed() < THREAD_END_WAIT {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<BackgroundSession>> {
        self.session.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        self.close();
    }
}

/// Detaches whatever is mounted at `path`: a mount whose process was killed answers every call with an error, and new
/// mounts on top of it would pile up. The caller holds the node's lock, so nobody serves it.
pub fn detach_stale(path: &Path) -> io::Result<()> {
    // `canonicalize` would stat the dead mount; its parent is alive.
    let Some((parent, name)) = path.parent().zip(path.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the mount point has no parent",
        ));
    };
    std::fs::create_dir_all(parent)?;
    let path = parent.canonicalize()?.join(name);
    for _ in 0..STALE_MOUNTS_MAX {
        if !is_mount_point(&path)? {
            return Ok(());
        }
        tracing::info!(path = %path.display(), "stale-mount-detached");
        unmount(&path, UnmountFlags::DETACH)?;
    }
    Err(io::Error::other("it is mounted over and over"))
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    Ok(mount_points()?.iter().any(|p| p == path))
}

/// Every mount point of this process's namespace, in the order they were mounted.
pub fn mount_points() -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    // proc(5): the fifth field is the mount point.
    let points = table
        .split(|&b| b == b'\n')
        .filter_map(|line| line.split(|&b| b == b' ').nth(4));
    Ok(points.into_iter().map(unescape).collect())
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(escaped) => {
                out.push(escaped);
                rest = &tail[3..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

/// The FUSE handshake cannot raise read-ahead above 128 KiB; the mount's backing device can. Of any mount.
pub fn set_readahead(path: &Path, kib: u32) -> io::Result<()> {
    let device = std::fs::metadata(path)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    std::fs::write(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"), kib.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(br"/a\9"), Path::new(r"/a\9"));
    }
}
