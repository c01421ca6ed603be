//! Messages with descriptors, over unix sockets.
//!
//! In: a few bytes and at most two descriptors. Out: the same at the other end. Invariant: a message has at most
//! [`LEN_MAX`] bytes, more is cut off and not understood; descriptors that come are closed on exec, and closed if nobody
//! wants them.
//! Not here: what messages mean (`holder.rs`, `service_manager.rs`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix,
};

pub(super) const LEN_MAX: usize = 128;
/// The device and the table.
const FDS_MAX: usize = 2;

/// Sends on a connected socket, or to `to`.
pub(super) fn send(
    socket: impl AsFd,
    to: Option<&SocketAddrUnix>,
    text: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    let text = [IoSlice::new(text)];
    match to {
        Some(to) => rustix::net::sendmsg_addr(socket, to, &text, &mut ancillary, SendFlags::NOSIGNAL)?,
        None => rustix::net::sendmsg(socket, &text, &mut ancillary, SendFlags::NOSIGNAL)?,
    };
    Ok(())
}

/// `None` at the end of the connection.
pub(super) fn receive(socket: impl AsFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut text = [0; LEN_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let fds: Vec<OwnedFd> = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((text[..received.bytes].to_vec(), fds)))
}
