//! systemd, or whoever speaks its protocol (sd_notify(3), sd_listen_fds(3)).
//!
//! In: environment variables, and descriptors from 3 on. Out: notices, and descriptors kept in its store. Invariant: without
//! a service manager nothing is done; a manager that does not listen holds nobody up.
//! Not here: what is kept (`keeper.rs`), how health is judged (`watchdog.rs`).

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};

use super::{Kept, message};

/// The name of our descriptors in the store.
const NAME: &str = "headstart";
/// `SD_LISTEN_FDS_START`
const FIRST_FD: i32 = 3;
/// More is not ours.
const FDS_MAX: i32 = 64;

#[derive(Debug)]
pub struct ServiceManager {
    socket: OwnedFd,
    address: SocketAddrUnix,
    watchdog: Option<Duration>,
    keeps_while_stopped: bool,
    /// What it gave us at the start.
    given: Mutex<Vec<OwnedFd>>,
}

impl ServiceManager {
    /// `None`: nobody manages this process.
    ///
    /// # Safety
    /// To be called once, before this process opens anything: descriptors from 3 on that the environment speaks of become
    /// this value's.
    pub unsafe fn from_environment() -> Option<Self> {
        let name = std::env::var_os("NOTIFY_SOCKET")?;
        let address = match name.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddrUnix::new_abstract_name(name),
            None => SocketAddrUnix::new(name.as_os_str()),
        };
        let given = match is_for_us("LISTEN_PID") {
            // SAFETY: passed on to the caller.
            true => unsafe { given() },
            false => Vec::new(),
        };
        // Nonblocking: a manager that is stuck must not hold us up.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Some(Self {
            socket: socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None).ok()?,
            address: address.ok()?,
            watchdog: number("WATCHDOG_USEC")
                .filter(|_| std::env::var_os("WATCHDOG_PID").is_none() || is_for_us("WATCHDOG_PID"))
                .map(Duration::from_micros),
            // Said by systemd from 254 on, as is FileDescriptorStorePreserve=, which our unit has.
            keeps_while_stopped: number("FDSTORE").is_some_and(|max| max >= Kept::COUNT),
            given: Mutex::new(given),
        })
    }

    /// Whether its store outlives a stop, and not only a restart.
    pub(super) fn keeps_while_stopped(&self) -> bool {
        self.keeps_while_stopped
    }

    /// Mounts are back, and calls are answered.
    pub fn ready(&self) {
        self.tell("READY=1", &[]);
    }

    /// The start goes on, and will say so again, or be ready, within `time`.
    pub(super) fn starting(&self, time: Duration) {
        self.tell(&format!("EXTEND_TIMEOUT_USEC={}", time.as_micros()), &[]);
    }

    pub fn stopping(&self) {
        self.tell("STOPPING=1", &[]);
    }

    /// All is well; to be said more often than [`ServiceManager::watchdog`].
    pub fn well(&self) {
        self.tell("WATCHDOG=1", &[]);
    }

    /// The longest silence that is not taken for a hang.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Whether a predecessor stored anything that nobody took yet.
    pub(super) fn has_given(&self) -> bool {
        !self.given.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// What a predecessor stored. The manager keeps it too.
    pub(super) fn take(&self) -> Option<Kept> {
        let given = std::mem::take(&mut *self.given.lock().unwrap_or_else(PoisonError::into_inner));
        Kept::of(given)
    }

    pub(super) fn keep(&self, kept: &Kept) -> io::Result<()> {
        self.forget()?;
        let fds = [kept.device.as_fd(), kept.table.as_fd()];
        self.send(&format!("FDSTORE=1\nFDNAME={NAME}"), &fds)
    }

    pub(super) fn forget(&self) -> io::Result<()> {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={NAME}"), &[])
    }

    fn tell(&self, what: &str, fds: &[std::os::fd::BorrowedFd<'_>]) {
        if let Err(error) = self.send(what, fds) {
            tracing::warn!(%error, what, "service-manager-not-told");
        }
    }

    fn send(&self, what: &str, fds: &[std::os::fd::BorrowedFd<'_>]) -> io::Result<()> {
        message::send(&self.socket, Some(&self.address), what.as_bytes(), fds)
    }
}

/// # Safety
/// The descriptors must not belong to anybody yet.
unsafe fn given() -> Vec<OwnedFd> {
    let count = number("LISTEN_FDS").and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let fds = (FIRST_FD..FIRST_FD + count.clamp(0, FDS_MAX)).zip(names.split(':'));
    fds.filter_map(|(fd, name)| {
        // An environment that lies must not make us close what is not there.
        // SAFETY: only looked at.
        let there = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        // SAFETY: open, and by the caller's promise nobody's.
        (there && name == NAME).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
    })
    .collect()
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn is_for_us(variable: &str) -> bool {
    number(variable) == Some(u64::from(std::process::id()))
}
