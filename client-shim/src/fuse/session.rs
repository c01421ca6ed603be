//! The node's one FUSE mount: made or taken over, kept, undone.
//!
//! In: a mount point, or what a predecessor left of one, and a filesystem. Out: a mount that is gone after `close`, whoever
//! still looks at it, and that survives `leave`. Invariant: one thread reads requests (two on one descriptor cost more CPU
//! than they save); a descriptor is taken over only together with the mount that it serves.
//! Not here: what is in the mount; who keeps descriptors while no process serves them (`survival`).

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::kernel::KernelFs;
use super::mount_table::{self, mounts};
use super::node_id::Node;
use super::wire::device::Device;
use super::wire::facts::Facts;
use super::wire::in_flight::InFlight;
use super::wire::reply::Line;
use super::wire::serve::{Leftovers, serve, shake_hands};
use crate::survival::Kept;

/// How long the thread of an unmounted, unused mount may take to notice. It is woken at once; this is for busy machines.
const THREAD_END_WAIT: Duration = Duration::from_millis(500);

/// What `mount` shows as the source.
const SOURCE_NAME: &str = "headstart";

/// A mount without anybody who serves it yet.
#[derive(Debug)]
pub struct Connection {
    path: PathBuf,
    line: Arc<Line>,
    pub facts: Facts,
    adopted: bool,
}

impl Connection {
    /// Mounts at `path`, which is created if need be.
    pub fn mount(path: &Path, has_devices: bool) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let device = Device::open()?;
        // A one-layer view is bind-mounted from here, and must honour what an unpacked layer would: set-id, devices.
        let flags = MountFlags::RDONLY | MountFlags::NOATIME;
        let options = format!(
            "fd={},rootmode={:o},user_id=0,group_id=0,default_permissions,allow_other",
            device.fd().as_raw_fd(),
            std::fs::metadata(path)?.permissions().mode(),
        );
        let options = CString::new(options).map_err(io::Error::other)?;
        mount(SOURCE_NAME, path, "fuse", flags, Some(options.as_c_str()))?;
        Self::set_up(path, device, has_devices).inspect_err(|_| {
            // Not our mount any more, or never was; the error to report is the first.
            let _ = unmount(path, UnmountFlags::DETACH);
        })
    }

    fn set_up(path: &Path, device: Device, has_devices: bool) -> io::Result<Self> {
        let kernel = shake_hands(&device)?;
        let at = mount_table::top(path)?.ok_or_else(|| io::Error::other("the mount is gone already"))?;
        let facts = Facts {
            device: at.device,
            kernel,
            has_devices,
        };
        let table = InFlight::new(&facts)?;
        Ok(Self {
            path: path.to_owned(),
            line: Arc::new(Line::new(device, table)),
            facts,
            adopted: false,
        })
    }

    /// Takes over what a predecessor left, if it is the mount at `path`.
    pub fn adopt(path: &Path, kept: Kept) -> io::Result<Self> {
        let other = |why| Err(io::Error::other(why));
        let (table, facts) = InFlight::adopt(kept.table)?;
        let device = Device::adopt(kept.device);
        if !device.is_connected() {
            return other("its filesystem is gone");
        }
        match mount_table::top(path)? {
            Some(at) if at.device == facts.device => {}
            Some(_) => return other("something else is mounted there"),
            None => return other("it is not mounted there any more"),
        }
        Ok(Self {
            path: path.to_owned(),
            line: Arc::new(Line::new(device, table)),
            facts,
            adopted: true,
        })
    }

    /// What must be kept for a successor.
    pub fn kept(&self) -> io::Result<Kept> {
        Ok(Kept {
            device: self.line.device.fd().try_clone_to_owned()?,
            table: self.line.table.fd().try_clone_to_owned()?,
        })
    }

    /// Whether the kernel can send requests again that nobody answered.
    pub fn can_resend(&self) -> bool {
        self.facts.kernel & super::wire::abi::flag::HAS_RESEND != 0
    }

    /// Starts the thread that serves it.
    pub fn serve(self, fs: KernelFs, readahead_kib: u32, resend: bool) -> io::Result<FuseMount> {
        let leftovers = match (self.adopted, resend && self.can_resend()) {
            (false, _) => Leftovers::None,
            (true, true) => Leftovers::Resend,
            (true, false) => Leftovers::Table,
        };
        let line = Arc::clone(&self.line);
        let thread = std::thread::Builder::new().name("fuse".into()).spawn(move || {
            if let Err(error) = serve(&line, &fs, leftovers) {
                tracing::error!(%error, "fuse-session-ended");
            }
        })?;
        if let Err(error) = mount_table::set_readahead_of(self.facts.device, readahead_kib) {
            tracing::warn!(%error, "kernel-readahead-not-set");
        }
        Ok(FuseMount {
            path: self.path,
            line: self.line,
            thread: Mutex::new(Some(thread)),
        })
    }
}

pub struct FuseMount {
    path: PathBuf,
    line: Arc<Line>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for FuseMount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FuseMount").field("path", &self.path).finish()
    }
}

impl FuseMount {
    /// The kernel drops its cached listing of `layers/`.
    pub fn layers_changed(&self) {
        Self::logged(self.line.device.forget_content(Node::Layers.id()));
    }

    /// The kernel drops a withdrawn layer's names.
    pub fn forget_slot(&self, slot: u32) {
        let name = slot.to_string();
        for parent in [Node::Layers, Node::Devices] {
            let name = OsStr::from_bytes(name.as_bytes());
            Self::logged(self.line.device.forget_name(parent.id(), name));
        }
    }

    /// The kernel not having cached something is the usual answer, and fine.
    fn logged(outcome: io::Result<()>) {
        if let Err(error) = outcome
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::debug!(%error, "kernel-invalidation-refused");
        }
    }

    /// Whether requests are being read.
    pub fn is_served(&self) -> bool {
        self.lock().as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Leaves the mount to a successor: from now on nothing is answered with an error only because this process ends.
    pub fn leave(&self) {
        self.line.leave();
        self.lock().take();
    }

    /// Unmounts. If somebody still uses the mount it disappears from the tree now and ends with its last user, served
    /// until this process exits. Blocks, for a bounded time. Closing twice, or what was left, does nothing.
    pub fn close(&self) {
        let Some(thread) = self.lock().take() else {
            return;
        };
        if unmount(&self.path, UnmountFlags::empty()).is_err() {
            tracing::info!(path = %self.path.display(), "mount-busy-detaching");
            if let Err(error) = unmount(&self.path, UnmountFlags::DETACH) {
                tracing::warn!(path = %self.path.display(), error = %io::Error::from(error), "unmount-failed");
            }
        }
        // An overlay has its own copy of the mount: the unmount succeeds, yet the thread must go on serving. So it is
        // given a moment to end, then let go.
        let started = Instant::now();
        while !thread.is_finished() && started.elapsed() < THREAD_END_WAIT {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.thread.lock().unwrap_or_else(|p| p.into_inner())
    }
}

impl Drop for FuseMount {
    fn drop(&mut self) {
        self.close();
    }
}

/// Stale mounts stacked on one mount point; more than a few is not our doing.
const STALE_MOUNTS_MAX: usize = 32;

/// Detaches whatever is mounted at `path`: a mount whose process was killed answers every call with an error, and new
/// mounts on top of it would pile up. The caller holds the node's lock, so nobody serves it.
///
/// By force, which ends its connection with the kernel: everybody who waits for an answer gets an error. Letting go of all
/// descriptors does not suffice: a killed shim whose last thread waits for such an answer has its own open until it comes.
pub fn detach_stale(path: &Path) -> io::Result<()> {
    let path = mount_table::resolved(path)?;
    for _ in 0..STALE_MOUNTS_MAX {
        if !mounts()?.iter().any(|m| m.point == path) {
            return Ok(());
        }
        tracing::info!(path = %path.display(), "stale-mount-detached");
        unmount(&path, UnmountFlags::DETACH | UnmountFlags::FORCE)?;
    }
    Err(io::Error::other("it is mounted over and over"))
}
