//! The holder: a process that keeps a mount's descriptors while no shim runs.
//!
//! In: a listening socket as standard input. Out: exit, when there is nothing to keep. Invariant: one thread, no network, no
//! files; it holds one pair of descriptors and answers only its own user; it waits for nobody, and what it keeps is bounded.
//! Not here: the other side (`holder_client.rs`), and what the descriptors are for.
//!
//! # The protocol
//! A unix socket of type SEQPACKET, `<root_dir>/holder.sock`, mode 0600. Each message is one of the words below, each gets
//! one answer, and a connection may ask again. Words are never given another meaning: a shim must get along with the holder
//! that an older or a newer shim started.
//!
//! | word | with | answer |
//! |---|---|---|
//! | `keep` | a `/dev/fuse` and a table of requests | `ok`: they replace what was kept |
//! | `take` | | `ok` with copies of both, or `none` |
//! | `quit` | | `ok`; then everything is closed, and the process ends |
//!
//! Anything else: `what`. A connection that stays silent costs nothing; there may be [`CONNECTIONS_MAX`] of them. The holder
//! also ends when what it keeps serves no mount any more, or when it was given nothing in [`IDLE`], and nobody is connected.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SocketFlags, accept_with};

use super::{Kept, message};

/// A shim has one; more are left by shims that are about to end.
const CONNECTIONS_MAX: usize = 8;
const IDLE: Duration = Duration::from_secs(10);

/// The argument that makes this program a holder.
pub const HOLD: &str = "hold";

pub(super) const KEEP: &[u8] = b"keep";
pub(super) const TAKE: &[u8] = b"take";
pub(super) const QUIT: &[u8] = b"quit";
pub(super) const OK: &[u8] = b"ok";
pub(super) const NONE: &[u8] = b"none";
const WHAT: &[u8] = b"what";

/// The whole process, after its arguments are parsed.
pub fn hold() -> ExitCode {
    // Signals to the shim's group or terminal are not for us.
    let _ = rustix::process::setsid();
    let listener = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(listener) => listener,
        Err(_) => return ExitCode::FAILURE,
    };
    match run(&listener) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("headstart-shim: failed to hold descriptors: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(listener: &OwnedFd) -> io::Result<()> {
    let mut kept: Option<Kept> = None;
    let mut connections: Vec<OwnedFd> = Vec::new();
    loop {
        let mut polled = vec![PollFd::new(listener, PollFlags::IN)];
        polled.extend(connections.iter().map(|c| PollFd::new(c, PollFlags::IN)));
        // Only errors: requests on it are not for us.
        polled.extend(kept.iter().map(|k| PollFd::new(&k.device, PollFlags::empty())));
        let idle = (kept.is_none() && connections.is_empty()).then(|| Timespec {
            tv_sec: IDLE.as_secs() as i64,
            tv_nsec: 0,
        });
        match poll(&mut polled, idle.as_ref()) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let events: Vec<PollFlags> = polled.iter().map(|p| p.revents()).collect();
        drop(polled);
        if kept.is_some() && events.last().is_some_and(|e| e.contains(PollFlags::ERR)) {
            kept = None;
        }
        // From the last, so that numbers stay right while some are removed.
        for at in (0..connections.len()).rev() {
            if events[at + 1].is_empty() {
                continue;
            }
            match converse(&connections[at], &mut kept) {
                Ok(Next::Ask) => {}
                Ok(Next::Quit) => return Ok(()),
                Ok(Next::HangUp) | Err(_) => {
                    connections.swap_remove(at);
                }
            }
        }
        if !events[0].is_empty()
            && let Ok(connection) = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
            && is_ours(&connection)
        {
            if connections.len() >= CONNECTIONS_MAX {
                connections.remove(0);
            }
            connections.push(connection);
        }
    }
}

/// The socket's mode says the same; this also holds if somebody gave it another.
fn is_ours(connection: &OwnedFd) -> bool {
    peer_uid(connection).is_ok_and(|uid| uid == rustix::process::geteuid().as_raw())
}

/// By hand: the number of a peer that this PID namespace cannot see is zero, which rustix's type has no room for.
fn peer_uid(connection: &OwnedFd) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: the descriptor is open, and the place has the length that is told.
    let answer = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &mut len,
        )
    };
    match answer {
        0 => Ok(peer.uid),
        _ => Err(io::Error::last_os_error()),
    }
}

enum Next {
    Ask,
    HangUp,
    Quit,
}

fn converse(connection: &OwnedFd, kept: &mut Option<Kept>) -> io::Result<Next> {
    let Some((text, fds)) = message::receive(connection)? else {
        return Ok(Next::HangUp);
    };
    match text.as_slice() {
        KEEP => match Kept::of(fds) {
            Some(new) => {
                *kept = Some(new);
                message::send(connection, None, OK, &[])?;
            }
            None => message::send(connection, None, WHAT, &[])?,
        },
        TAKE => match kept {
            Some(kept) => message::send(connection, None, OK, &[kept.device.as_fd(), kept.table.as_fd()])?,
            None => message::send(connection, None, NONE, &[])?,
        },
        QUIT => {
            message::send(connection, None, OK, &[])?;
            return Ok(Next::Quit);
        }
        _ => message::send(connection, None, WHAT, &[])?,
    }
    Ok(Next::Ask)
}
