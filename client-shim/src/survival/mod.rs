//! How mounts outlive the process that serves them.
//!
//! In: a mount's descriptor and its table of requests. Out: the same two for the next process, after kill -9, a restart or an
//! upgrade. Invariant: while somebody keeps them, a read that meets no process waits; it does not fail.
//! Not here: what the next process does with them (`fuse/session.rs`, `fuse/wire`).
//!
//! The kernel ends a FUSE filesystem with the last descriptor of its connection. So somebody else holds one too: systemd's
//! file descriptor store (`service_manager.rs`), or where there is no systemd a tiny process of our own (`holder.rs`).

mod config;
mod holder;
mod holder_client;
mod keeper;
mod message;
mod progress;
mod service_manager;
mod watchdog;

use std::os::fd::OwnedFd;

use rustix::fs::FileType;

pub use config::{KeepWith, SurvivalConfig};
pub use holder::{HOLD, hold};
pub use keeper::{KeepError, Keeper};
pub use progress::Progress;
pub use service_manager::ServiceManager;
pub use watchdog::feed_watchdog;

/// What a successor gets.
#[derive(Debug)]
pub struct Kept {
    /// `/dev/fuse`, of one mount.
    pub device: OwnedFd,
    /// Its requests in flight.
    pub table: OwnedFd,
}

impl Kept {
    /// Descriptors.
    const COUNT: u64 = 2;

    /// Whichever order they come in: one is a device, the other a file. `None` for anything else.
    fn of(fds: Vec<OwnedFd>) -> Option<Self> {
        let (mut device, mut table) = (None, None);
        for fd in fds {
            let mode = rustix::fs::fstat(&fd).ok()?.st_mode;
            let place = match FileType::from_raw_mode(mode) {
                FileType::CharacterDevice => &mut device,
                FileType::RegularFile => &mut table,
                _ => return None,
            };
            if place.replace(fd).is_some() {
                return None;
            }
        }
        Some(Self {
            device: device?,
            table: table?,
        })
    }
}
