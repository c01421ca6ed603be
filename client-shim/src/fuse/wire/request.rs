//! One request of the kernel.
//!
//! In: the bytes of one `read(2)` of `/dev/fuse`. Out: a [`Request`]. Invariant: a message that is shorter than it says,
//! or than its kind needs, is `None`; nothing here panics.
//! Not here: answers (`reply.rs`), the handshake (`init.rs`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::abi::{IN_HEADER_LEN, op};

/// Fixed part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub opcode: u32,
    /// The kernel's name for this request; an answer bears it again.
    pub unique: u64,
    pub node: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    pub header: Header,
    pub what: What<'a>,
}

/// What is asked, of the header's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What<'a> {
    Lookup {
        name: &'a OsStr,
    },
    Getattr,
    Readlink,
    Open,
    Opendir,
    Read {
        offset: u64,
        size: u32,
    },
    Readdir {
        offset: u64,
        size: u32,
    },
    ReaddirPlus {
        offset: u64,
        size: u32,
    },
    Statfs,
    Getxattr {
        name: &'a OsStr,
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    /// A file or directory is closed; there is nothing to do, but it wants an answer.
    Release,
    /// The kernel forgets nodes. No answer.
    Forget,
    /// The filesystem ends.
    Destroy,
    /// The first request of a mount; the rest of it is `init.rs`'s.
    Init(&'a [u8]),
    /// Whatever else there is: ours is read-only, and the rest is optional.
    Other,
}

impl<'a> Request<'a> {
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let len = u32_at(bytes, 0)? as usize;
        let header = Header {
            opcode: u32_at(bytes, 4)?,
            unique: u64_at(bytes, 8)?,
            node: u64_at(bytes, 16)?,
        };
        let body = bytes.get(IN_HEADER_LEN..len)?;
        let what = match header.opcode {
            op::LOOKUP => What::Lookup { name: name(body)? },
            op::GETATTR => What::Getattr,
            op::READLINK => What::Readlink,
            op::OPEN => What::Open,
            op::OPENDIR => What::Opendir,
            // struct fuse_read_in: fh, offset, size, ...
            op::READ | op::READDIR | op::READDIRPLUS => {
                let (offset, size) = (u64_at(body, 8)?, u32_at(body, 16)?);
                match header.opcode {
                    op::READ => What::Read { offset, size },
                    op::READDIR => What::Readdir { offset, size },
                    _ => What::ReaddirPlus { offset, size },
                }
            }
            op::STATFS => What::Statfs,
            // struct fuse_getxattr_in: size, padding; then the name.
            op::GETXATTR => What::Getxattr {
                name: name(body.get(8..)?)?,
                size: u32_at(body, 0)?,
            },
            op::LISTXATTR => What::Listxattr { size: u32_at(body, 0)? },
            op::RELEASE | op::RELEASEDIR => What::Release,
            op::FORGET | op::BATCH_FORGET => What::Forget,
            op::DESTROY => What::Destroy,
            op::INIT => What::Init(body),
            _ => What::Other,
        };
        Some(Self { header, what })
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// A name ends with a NUL.
fn name(bytes: &[u8]) -> Option<&OsStr> {
    let end = bytes.iter().position(|&b| b == 0)?;
    Some(OsStr::from_bytes(&bytes[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut out = ((IN_HEADER_LEN + body.len()) as u32).to_ne_bytes().to_vec();
        out.extend(opcode.to_ne_bytes());
        out.extend(7u64.to_ne_bytes());
        out.extend(9u64.to_ne_bytes());
        out.resize(IN_HEADER_LEN, 0);
        out.extend(body);
        out
    }

    #[test]
    fn whole_messages_parse_and_cut_ones_do_not() {
        let read = [&[0; 8][..], &4096u64.to_ne_bytes(), &512u32.to_ne_bytes(), &[0; 20]].concat();
        let read = message(op::READ, &read);
        let header = Header {
            opcode: op::READ,
            unique: 7,
            node: 9,
        };
        let what = What::Read {
            offset: 4096,
            size: 512,
        };
        assert_eq!(Request::parse(&read), Some(Request { header, what }));
        assert!((0..read.len()).all(|len| Request::parse(&read[..len]).is_none()));

        let lookup = message(op::LOOKUP, b"name\0");
        let name = OsStr::new("name");
        assert_eq!(Request::parse(&lookup).unwrap().what, What::Lookup { name });
        assert!(Request::parse(&message(op::LOOKUP, b"name")).is_none(), "no end");
        let getxattr = message(op::GETXATTR, b"\x10\0\0\0\0\0\0\0user.a\0");
        let name = OsStr::new("user.a");
        let what = What::Getxattr { name, size: 16 };
        assert_eq!(Request::parse(&getxattr).unwrap().what, what);
        assert!(
            Request::parse(&message(op::READ, &[])).is_none(),
            "too short for its kind"
        );
        assert_eq!(Request::parse(&message(4711, &[])).unwrap().what, What::Other);
    }
}
