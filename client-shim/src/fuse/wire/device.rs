//! `/dev/fuse`, opened: one connection with the kernel.
//!
//! In: answers and notices. Out: requests. Invariant: every message is one system call, so threads may write at once.
//! The connection lives as long as any process holds the descriptor, which is what a successor lives from.
//! Not here: what messages say.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::abi::{OUT_HEADER_LEN, notify};

#[derive(Debug)]
pub struct Device(OwnedFd);

impl Device {
    pub fn open() -> io::Result<Self> {
        let fd = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self(fd))
    }

    /// Somebody else's connection, kept over a restart.
    pub fn adopt(fd: OwnedFd) -> Self {
        Self(fd)
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Whether there is a filesystem at the other end: mounted, and not given up by the kernel.
    pub fn is_connected(&self) -> bool {
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut polled, Some(&Timespec::default())) {
            Ok(_) => !polled[0].revents().intersects(PollFlags::ERR | PollFlags::HUP),
            Err(_) => false,
        }
    }

    /// Whether a request is there to be received.
    pub fn has_request(&self) -> bool {
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec::default())).is_ok() && polled[0].revents().contains(PollFlags::IN)
    }

    /// The next request; `None` when the filesystem is no more. Blocks.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.0, &mut *buffer) {
                Ok(len) => return Ok(Some(len)),
                // ENOENT: the request was taken back while it was read.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::NODEV) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Answers a request: `error` is 0 or a negative errno.
    pub fn answer(&self, unique: u64, error: i32, parts: &[&[u8]]) -> io::Result<()> {
        let len = OUT_HEADER_LEN + parts.iter().map(|p| p.len()).sum::<usize>();
        let mut header = [0; OUT_HEADER_LEN];
        header[..4].copy_from_slice(&(len as u32).to_ne_bytes());
        header[4..8].copy_from_slice(&error.to_ne_bytes());
        header[8..].copy_from_slice(&unique.to_ne_bytes());
        let mut slices = vec![IoSlice::new(&header)];
        slices.extend(parts.iter().map(|p| IoSlice::new(p)));
        rustix::io::writev(&self.0, &slices)?;
        Ok(())
    }

    /// The kernel drops what it has cached of a node.
    pub fn forget_content(&self, node: u64) -> io::Result<()> {
        // struct fuse_notify_inval_inode_out: ino, off, len; a length of 0 is "to the end".
        let body = [node.to_ne_bytes(), [0; 8], [0; 8]].concat();
        self.answer(0, notify::INVAL_INODE, &[&body])
    }

    /// The kernel drops a name.
    pub fn forget_name(&self, parent: u64, name: &OsStr) -> io::Result<()> {
        // struct fuse_notify_inval_entry_out: parent, namelen, flags; then the name with a NUL.
        let mut body = parent.to_ne_bytes().to_vec();
        body.extend((name.len() as u32).to_ne_bytes());
        body.extend(0u32.to_ne_bytes());
        body.extend(name.as_bytes());
        body.push(0);
        self.answer(0, notify::INVAL_ENTRY, &[&body])
    }

    /// The kernel sends again every request that was read and not answered, each with a new name (Linux 6.9).
    pub fn resend(&self) -> io::Result<()> {
        self.answer(0, notify::RESEND, &[])
    }
}
