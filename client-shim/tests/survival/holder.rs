//! What the shim's holder is asked by others than the shim.
//!
//! In: a node's root, a word. Out: the answer, and descriptors. Not here: the node (`node.rs`).

use std::os::fd::OwnedFd;
use std::path::Path;

use crate::message;

/// As another version of the shim might: any word.
pub fn ask_holder(root: &Path, word: &[u8]) -> Option<Vec<u8>> {
    converse(root, word).map(|(text, _)| text)
}

fn converse(root: &Path, word: &[u8]) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    use rustix::net::*;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let address = SocketAddrUnix::new(root.join("holder.sock")).unwrap();
    connect(&socket, &address).ok()?;
    send(&socket, word, SendFlags::NOSIGNAL).ok()?;
    message::receive(&socket).ok()?
}

/// The `/dev/fuse` that it keeps.
pub fn kept_device(root: &Path) -> OwnedFd {
    let (text, mut descriptors) = converse(root, b"take").unwrap();
    assert_eq!(text, b"ok");
    descriptors.remove(0)
}
