//! The answer to one request.
//!
//! In: attributes, names and bytes. Out: one message to the kernel. Invariant: every request is answered exactly once, with
//! EIO if whoever had to answer gave up; only then does it leave the table of requests.
//! Not here: what the answers are (`fuse/kernel.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::device::Device;
use super::in_flight::{InFlight, Slot};
use crate::fuse::attr::{Attr, FileKind};
use crate::fuse::tree_fs::Space;

/// An errno, as the kernel counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// The connection, and the table of what is to be answered on it.
#[derive(Debug)]
pub struct Line {
    pub device: Device,
    pub table: InFlight,
    leaving: AtomicBool,
}

impl Line {
    pub fn new(device: Device, table: InFlight) -> Self {
        Self {
            device,
            table,
            leaving: AtomicBool::new(false),
        }
    }

    /// A successor answers what this process does not get done: no EIO for what ends with it.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }
}

#[derive(Debug)]
pub struct Reply {
    line: Arc<Line>,
    unique: u64,
    slot: Option<Slot>,
    sent: bool,
}

impl Reply {
    /// `slot`: where the request stands, if it was put off before.
    pub(super) fn new(line: &Arc<Line>, unique: u64, slot: Option<Slot>) -> Self {
        Self {
            line: Arc::clone(line),
            unique,
            slot,
            sent: false,
        }
    }

    /// To be called by the thread that received the request, before anybody else gets this: other requests are handled
    /// before it is answered. False if it cannot be put off.
    pub fn put_off(&mut self, request: &[u8]) -> bool {
        if self.slot.is_none() {
            self.slot = self.line.table.put_off(request);
        }
        self.slot.is_some()
    }

    /// Whether somebody else waits for the thread that has this.
    pub fn others_wait(&self) -> bool {
        self.line.device.has_request()
    }

    pub fn error(mut self, errno: Errno) {
        self.send(-errno.0, &[]);
    }

    /// Done, and nothing to say.
    pub fn ok(mut self) {
        self.send(0, &[]);
    }

    pub fn data(mut self, bytes: &[u8]) {
        self.send(0, &[bytes]);
    }

    /// A name was found.
    pub fn entry(mut self, attr: &Attr, ttl: Duration) {
        let mut out = Vec::with_capacity(ENTRY_LEN);
        put_entry(&mut out, attr, ttl);
        self.send(0, &[&out]);
    }

    /// A name does not exist, which may be remembered for `ttl`: an entry of node 0.
    pub fn absent(mut self, ttl: Duration) {
        let mut out = [0; ENTRY_LEN];
        out[16..24].copy_from_slice(&ttl.as_secs().to_ne_bytes());
        self.send(0, &[&out]);
    }

    pub fn attr(mut self, attr: &Attr, ttl: Duration) {
        // struct fuse_attr_out: valid, valid_nsec, dummy, attr.
        let mut out = ttl.as_secs().to_ne_bytes().to_vec();
        out.extend(ttl.subsec_nanos().to_ne_bytes());
        out.extend([0; 4]);
        put_attr(&mut out, attr);
        self.send(0, &[&out]);
    }

    /// A file is open. `flags`: of [`super::abi::fopen`]. There is no open state, hence no handle.
    pub fn opened(mut self, flags: u32) {
        // struct fuse_open_out: fh, open_flags, backing_id.
        let mut out = [0; 16];
        out[8..12].copy_from_slice(&flags.to_ne_bytes());
        self.send(0, &[&out]);
    }

    /// Length of an attribute's value, or of all names.
    pub fn size(mut self, size: u32) {
        let mut out = [0; 8];
        out[..4].copy_from_slice(&size.to_ne_bytes());
        self.send(0, &[&out]);
    }

    pub fn space(mut self, space: &Space, name_len_max: u32) {
        // struct fuse_kstatfs: blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, ...
        let mut out = Vec::with_capacity(80);
        for n in [space.blocks, space.free, space.available, space.files, 0] {
            out.extend(n.to_ne_bytes());
        }
        for n in [space.block_size, name_len_max, space.block_size] {
            out.extend(n.to_ne_bytes());
        }
        out.resize(80, 0);
        self.send(0, &[&out]);
    }

    fn send(&mut self, error: i32, parts: &[&[u8]]) {
        self.sent = true;
        if error == -libc::EIO && self.slot.is_some() && self.line.leaving.load(Ordering::SeqCst) {
            // It stays in the table.
            return;
        }
        if let Err(refused) = self.line.device.answer(self.unique, error, parts) {
            // The reader was killed, or a predecessor had answered; or the mount is gone.
            tracing::debug!(unique = self.unique, error = %refused, "answer-not-taken");
        }
        if let Some(slot) = self.slot.take() {
            self.line.table.release(slot);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.sent {
            if !self.line.leaving.load(Ordering::SeqCst) {
                tracing::error!(unique = self.unique, "request-without-answer");
            }
            self.send(-libc::EIO, &[]);
        }
    }
}

/// Names of a directory, up to the size that the kernel asked for.
#[derive(Debug)]
pub struct Listing {
    out: Vec<u8>,
    size: usize,
}

impl Listing {
    pub fn new(size: u32) -> Self {
        // The kernel asks for a page or a few; a huge number is not believed before there are so many names.
        Self {
            out: Vec::new(),
            size: size as usize,
        }
    }

    /// False when it is full. `next`: where to go on after this name.
    pub fn add(&mut self, attr: &Attr, name: &[u8], next: u64) -> bool {
        self.put(&Plus::Absent, attr, name, next)
    }

    /// With attributes, which the kernel may keep for `ttl`.
    pub fn add_plus(&mut self, attr: &Attr, name: &[u8], next: u64, ttl: Duration) -> bool {
        self.put(&Plus::Entry(ttl), attr, name, next)
    }

    /// Without them, where the kernel asked for them too: it looks the name up when somebody wants them.
    pub fn add_bare(&mut self, attr: &Attr, name: &[u8], next: u64) -> bool {
        self.put(&Plus::Empty, attr, name, next)
    }

    fn put(&mut self, plus: &Plus, attr: &Attr, name: &[u8], next: u64) -> bool {
        // struct fuse_dirent: ino, off, namelen, type; then the name. struct fuse_direntplus: an entry before it.
        let entry_len = match plus {
            Plus::Absent => 0,
            Plus::Entry(_) | Plus::Empty => ENTRY_LEN,
        };
        let len = (entry_len + 24 + name.len()).next_multiple_of(8);
        if self.out.len() + len > self.size {
            return false;
        }
        let end = self.out.len() + len;
        match plus {
            Plus::Absent => {}
            Plus::Entry(ttl) => put_entry(&mut self.out, attr, *ttl),
            // A node id of 0, which in a listing means that nothing is said.
            Plus::Empty => self.out.resize(self.out.len() + ENTRY_LEN, 0),
        }
        self.out.extend(attr.node.id().to_ne_bytes());
        self.out.extend(next.to_ne_bytes());
        self.out.extend((name.len() as u32).to_ne_bytes());
        self.out.extend((type_bits(attr.kind) >> 12).to_ne_bytes());
        self.out.extend(name);
        self.out.resize(end, 0);
        true
    }

    pub fn send(self, reply: Reply) {
        reply.data(&self.out);
    }
}

/// What stands before a name where the kernel asked for attributes too.
#[derive(Clone, Copy, Debug)]
enum Plus {
    /// It did not.
    Absent,
    Entry(Duration),
    Empty,
}

const ENTRY_LEN: usize = 128;

/// struct fuse_entry_out: nodeid, generation, entry_valid, attr_valid, both nsec, attr. Node ids are never used again for
/// another file, so there is one generation.
fn put_entry(out: &mut Vec<u8>, attr: &Attr, ttl: Duration) {
    for n in [attr.node.id(), 0, ttl.as_secs(), ttl.as_secs()] {
        out.extend(n.to_ne_bytes());
    }
    for _ in 0..2 {
        out.extend(ttl.subsec_nanos().to_ne_bytes());
    }
    put_attr(out, attr);
}

/// struct fuse_attr: ino, size, blocks, atime, mtime, ctime, their nsec, mode, nlink, uid, gid, rdev, blksize, flags.
fn put_attr(out: &mut Vec<u8>, attr: &Attr) {
    let (secs, nanos) = (attr.mtime.secs.cast_unsigned(), attr.mtime.nanos);
    for n in [attr.node.id(), attr.size, attr.blocks, secs, secs, secs] {
        out.extend(n.to_ne_bytes());
    }
    let mode = type_bits(attr.kind) | u32::from(attr.perm);
    for n in [
        nanos, nanos, nanos, mode, attr.nlink, attr.uid, attr.gid, attr.rdev, 4096, 0,
    ] {
        out.extend(n.to_ne_bytes());
    }
}

/// As in `st_mode`.
fn type_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::Directory => libc::S_IFDIR,
        FileKind::Regular => libc::S_IFREG,
        FileKind::Symlink => libc::S_IFLNK,
        FileKind::CharDevice => libc::S_IFCHR,
        FileKind::BlockDevice => libc::S_IFBLK,
        FileKind::Fifo => libc::S_IFIFO,
    }
}
