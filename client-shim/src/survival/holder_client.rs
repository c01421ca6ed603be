//! The shim's side of the holder: starts it, gives it descriptors, gets them back.
//!
//! In: the node's root directory. Out: answers of the holder, in bounded time. Invariant: there is at most one holder a root:
//! whoever starts one has the node's lock. Not here: the protocol's words (`holder.rs`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with};

use super::holder::{HOLD, KEEP, OK, QUIT, TAKE};
use super::{Kept, message};

const SOCKET: &str = "holder.sock";
/// The holder answers at once; this is for machines that swap.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 8;

#[derive(Debug)]
pub(super) struct HolderClient {
    root: PathBuf,
    connection: Option<OwnedFd>,
}

impl HolderClient {
    /// Does not start anything.
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            connection: None,
        }
    }

    /// What a holder keeps; `None` too if there is no holder.
    pub(super) fn take(&mut self) -> io::Result<Option<Kept>> {
        if self.connect()?.is_none() {
            return Ok(None);
        }
        let (text, fds) = self.ask(TAKE, None)?;
        Ok((text == OK).then(|| Kept::of(fds)).flatten())
    }

    /// Starts a holder if there is none, also if there was one a moment ago.
    pub(super) fn keep(&mut self, kept: &Kept) -> io::Result<()> {
        let known = self.connection.is_some();
        if self.connect()?.is_none() {
            self.start()?;
        }
        let answer = match self.ask(KEEP, Some(kept)) {
            Err(_) if known => {
                if self.connect()?.is_none() {
                    self.start()?;
                }
                self.ask(KEEP, Some(kept))
            }
            answer => answer,
        };
        let (text, _) = answer?;
        match text == OK {
            true => Ok(()),
            false => Err(io::Error::other("it did not accept them")),
        }
    }

    /// Ends the holder, if there is one.
    pub(super) fn quit(&mut self) -> io::Result<()> {
        if self.connect()?.is_some() {
            self.ask(QUIT, None)?;
        }
        self.connection = None;
        match std::fs::remove_file(self.root.join(SOCKET)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// For noticing its end: readable then, and only then.
    pub(super) fn connection(&self) -> Option<io::Result<OwnedFd>> {
        self.connection.as_ref().map(|c| c.as_fd().try_clone_to_owned())
    }

    fn ask(&mut self, word: &[u8], kept: Option<&Kept>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the holder is gone");
        let connection = self.connection.as_ref().ok_or_else(gone)?;
        let fds: Vec<_> = kept.iter().flat_map(|k| [k.device.as_fd(), k.table.as_fd()]).collect();
        let answer = message::send(connection, None, word, &fds).and_then(|()| message::receive(connection));
        match answer {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => {
                self.connection = None;
                Err(gone())
            }
            Err(error) => {
                self.connection = None;
                Err(error)
            }
        }
    }

    /// `None`: nobody listens.
    fn connect(&mut self) -> io::Result<Option<&OwnedFd>> {
        if self.connection.is_none() {
            let (_dir, address) = self.address()?;
            let socket = seqpacket()?;
            match connect(&socket, &address) {
                Ok(()) => {}
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            for timeout in [Timeout::Recv, Timeout::Send] {
                set_socket_timeout(&socket, timeout, Some(ANSWER_TIMEOUT))?;
            }
            self.connection = Some(socket);
        }
        Ok(self.connection.as_ref())
    }

    /// The socket is listening before the process runs, so it can be connected to at once.
    fn start(&mut self) -> io::Result<()> {
        match std::fs::remove_file(self.root.join(SOCKET)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (dir, address) = self.address()?;
        let listener = seqpacket()?;
        // On the socket itself: its name gets the mode it has, so there is no moment at which others may connect.
        rustix::fs::fchmod(&listener, Mode::RUSR | Mode::WUSR)?;
        bind(&listener, &address)?;
        listen(&listener, BACKLOG)?;
        let mut child = Command::new("/proc/self/exe")
            .arg(HOLD)
            .current_dir("/")
            .env_clear()
            .stdin(Stdio::from(listener))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        drop(dir);
        tracing::info!(pid = child.id(), "holder-started");
        // Whoever ends while we run wants to be waited for.
        std::thread::Builder::new()
            .name("holder".into())
            .spawn(move || child.wait())?;
        match self.connect()? {
            Some(_) => Ok(()),
            None => Err(io::Error::other("it does not listen")),
        }
    }

    /// By way of the open directory, for a socket's path may have 107 bytes only.
    fn address(&self) -> io::Result<(OwnedFd, SocketAddrUnix)> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        let dir = rustix::fs::open(&self.root, flags, Mode::empty())?;
        let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?;
        Ok((dir, address))
    }
}

fn seqpacket() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}
