//! What each request of the kernel is answered.
//!
//! In: requests, on the session's one thread. Out: replies. Invariant: this thread never waits for the
//! network: what is not here is read on the runtime and replied to from there, so a stuck read holds up nobody else; and it
//! waits for the disk only when nobody else waits for it, or many wait for the disk already (or with one of those and an eviction
//! of the same layer). The
//! mount is read-only, so requests that would change something are not even sent; they would be refused.
//! Not here: the protocol (`fuse/wire`), what is in the tree (`fuse/tree_fs.rs`).

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use headstart_layer_format::limits::NAME_LEN_MAX;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::node_id::Node;
use super::probe_file;
use super::read_plan::ReadPlan;
use super::tree_fs::{DirItem, FsError, Lookup, Told, TreeFs};
use super::wire::abi::{flag, fopen};
use super::wire::reply::{Errno, Listing, Reply};
use super::wire::request::{Request, What};
use crate::cache::Found;
use crate::counters::Counters;

/// Trees do not change: names and attributes may be cached for ever (a year, so that no sum overflows).
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// For `layers/` itself, whose entries come and go.
const NOW: Duration = Duration::ZERO;
/// Reads that wait for the disk beside the session's thread: what a disk is quicker with than with one at a time. Each has a
/// buffer of its own, 1 MiB at the most.
const ASIDE_MAX: usize = 16;

#[derive(Debug)]
pub struct KernelFs {
    tree: Arc<TreeFs>,
    counters: Arc<Counters>,
    runtime: Handle,
    /// The kernel takes ENOSYS to `open` (`opendir`) as "never ask again, and keep the cache".
    open_is_optional: bool,
    opendir_is_optional: bool,
    /// Where what is here is read to, at most [`READ_SIZE_MAX`](super::read_plan::READ_SIZE_MAX): memory of each answer's own
    /// would be zeroed first, and for large ones come from the kernel page by page.
    answer: RefCell<Vec<u8>>,
    /// One a read that waits for the disk beside this thread.
    aside: Arc<Semaphore>,
}

impl KernelFs {
    /// `has_devices`: the kernel reads data spaces through files here, and caches itself what it has read of them.
    /// `kernel`: its flags in the handshake.
    pub fn new(tree: Arc<TreeFs>, counters: Arc<Counters>, runtime: Handle, has_devices: bool, kernel: u64) -> Self {
        Self {
            tree,
            counters,
            runtime,
            // "Never ask again" is said of the whole mount, and devices must be asked about: they are opened uncached.
            open_is_optional: kernel & flag::NO_OPEN_SUPPORT != 0 && !has_devices,
            opendir_is_optional: kernel & flag::NO_OPENDIR_SUPPORT != 0,
            answer: RefCell::default(),
            aside: Arc::new(Semaphore::new(ASIDE_MAX)),
        }
    }

    /// `bytes`: the request as it came.
    pub fn answer(&self, request: &Request<'_>, bytes: &[u8], reply: Reply) {
        self.counters.kernel_requests.add(1);
        let id = request.header.node;
        match request.what {
            What::Lookup { name } => self.lookup(id, name, reply),
            What::Getattr => self.getattr(id, reply),
            What::Readlink => self.readlink(id, reply),
            What::Open => self.open(id, reply),
            What::Opendir => self.opendir(reply),
            What::Read { offset, size } => self.read(id, offset, size, bytes, reply),
            What::Readdir { offset, size } => self.readdir(id, offset, size, reply),
            What::ReaddirPlus { offset, size } => self.readdirplus(id, offset, size, reply),
            What::Statfs => self.statfs(reply),
            What::Getxattr { name, size } => self.getxattr(id, name, size, reply),
            What::Listxattr { size } => self.listxattr(id, size, reply),
            What::Release => reply.ok(),
            // The kernel does without, and of some does not ask again: flush, access, interrupt, lseek.
            What::Init(_) | What::Forget | What::Destroy | What::Other => reply.error(Errno(libc::ENOSYS)),
        }
    }

    fn xattr_reply(answer: Result<Vec<u8>, FsError>, size: u32, reply: Reply) {
        match answer {
            Err(e) => reply.error(errno(e)),
            // At most 64 KiB: limits::XATTR_VALUE_LEN_MAX and XATTRS_LEN_MAX.
            Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
            Ok(bytes) if bytes.len() > size as usize => reply.error(Errno(libc::ERANGE)),
            Ok(bytes) => reply.data(&bytes),
        }
    }

    fn read_later(&self, plan: ReadPlan, request: &[u8], mut reply: Reply) {
        match reply.put_off(request) {
            true => drop(self.runtime.spawn(fetched(plan, reply, Arc::clone(&self.counters)))),
            false => reply.error(Errno(libc::EIO)),
        }
    }

    /// Waits for the disk on a thread of its own.
    fn read_aside(&self, plan: ReadPlan, request: &[u8], mut reply: Reply, turn: OwnedSemaphorePermit) {
        if !reply.put_off(request) {
            return reply.error(Errno(libc::EIO));
        }
        self.counters.reads_aside.add(1);
        let (counters, runtime) = (Arc::clone(&self.counters), self.runtime.clone());
        self.runtime.spawn_blocking(move || {
            let read = plan.read_cached();
            drop(turn);
            match read {
                Ok(Some(bytes)) => had(&plan, &bytes, reply, &counters),
                // It was given back just now.
                Ok(None) => drop(runtime.spawn(fetched(plan, reply, counters))),
                Err(error) => failed(&plan, &error, reply, &counters),
            }
        });
    }

    fn lookup(&self, parent: u64, name: &OsStr, reply: Reply) {
        match node(parent).and_then(|n| self.tree.lookup(n, name.as_bytes())) {
            Ok(Lookup::Found(attr)) => reply.entry(&attr, ttl(attr.node)),
            // Node id 0 with a lifetime: a name known not to exist.
            Ok(Lookup::Absent) => reply.absent(FOREVER),
            Ok(Lookup::AbsentNow) => reply.error(Errno(libc::ENOENT)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn getattr(&self, ino: u64, reply: Reply) {
        match node(ino).and_then(|n| self.tree.attr(n)) {
            Ok(attr) => reply.attr(&attr, ttl(attr.node)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readlink(&self, ino: u64, reply: Reply) {
        match node(ino).and_then(|n| self.tree.readlink(n)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn open(&self, ino: u64, reply: Reply) {
        match self.open_is_optional {
            // Cached once, by the filesystem above it.
            _ if matches!(Node::from_id(ino), Some(Node::Device { .. } | Node::Probe)) => {
                reply.opened(fopen::DIRECT_IO);
            }
            true => reply.error(Errno(libc::ENOSYS)),
            false => reply.opened(fopen::KEEP_CACHE),
        }
    }

    fn opendir(&self, reply: Reply) {
        match self.opendir_is_optional {
            true => reply.error(Errno(libc::ENOSYS)),
            false => reply.opened(fopen::KEEP_CACHE),
        }
    }

    fn read(&self, ino: u64, offset: u64, size: u32, request: &[u8], reply: Reply) {
        if node(ino) == Ok(Node::Probe) {
            return reply.data(&probe_file::bytes(offset, size.into()));
        }
        let plan = match node(ino).and_then(|n| self.tree.plan_read(n, offset, size)) {
            Ok(plan) => plan,
            Err(e) => return reply.error(errno(e)),
        };
        plan.note();
        let mut answer = self.answer.borrow_mut();
        let found = match plan.read_now(&mut answer) {
            Ok(Found::Here) => Ok(true),
            Ok(Found::Missing) => Ok(false),
            // Nobody else is held up by it, or as many wait beside already as disks can make use of.
            Ok(Found::OnDisk) => match reply.others_wait().then(|| Arc::clone(&self.aside).try_acquire_owned()) {
                Some(Ok(turn)) => return self.read_aside(plan, request, reply, turn),
                _ => plan.read_cached_into(&mut answer),
            },
            Err(error) => Err(error),
        };
        match found {
            Ok(true) => had(&plan, plan.answer(&answer), reply, &self.counters),
            Ok(false) => self.read_later(plan, request, reply),
            Err(error) => failed(&plan, &error, reply, &self.counters),
        }
    }

    fn readdir(&self, ino: u64, offset: u64, size: u32, reply: Reply) {
        let mut listing = Listing::new(size);
        let listed = node(ino).and_then(|n| {
            let visit = &mut |item: DirItem<'_>| listing.add(&item.attr, item.name, item.next);
            self.tree.read_dir(n, offset, visit)
        });
        match listed {
            Ok(()) => listing.send(reply),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(&self, ino: u64, offset: u64, size: u32, reply: Reply) {
        let mut listing = Listing::new(size);
        let listed = node(ino).and_then(|n| {
            let visit = &mut |item: DirItem<'_>| match item.told {
                Told::All => listing.add_plus(&item.attr, item.name, item.next, ttl(item.attr.node)),
                Told::Kind => listing.add_bare(&item.attr, item.name, item.next),
            };
            self.tree.read_dir(n, offset, visit)
        });
        match listed {
            Ok(()) => listing.send(reply),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn statfs(&self, reply: Reply) {
        match self.tree.space() {
            Ok(space) => reply.space(&space, NAME_LEN_MAX as u32),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn getxattr(&self, ino: u64, name: &OsStr, size: u32, reply: Reply) {
        let answer = node(ino).and_then(|n| self.tree.xattr(n, name.as_bytes()));
        Self::xattr_reply(answer, size, reply);
    }

    fn listxattr(&self, ino: u64, size: u32, reply: Reply) {
        let answer = node(ino).and_then(|n| self.tree.xattr_names(n));
        Self::xattr_reply(answer, size, reply);
    }
}

/// A read of what is here.
fn had(plan: &ReadPlan, bytes: &[u8], reply: Reply, counters: &Counters) {
    reply.data(bytes);
    counters.read_hits.add(1);
    counters.hit_bytes.add(bytes.len() as u64);
    plan.read_ahead();
}

fn failed(plan: &ReadPlan, error: &io::Error, reply: Reply, counters: &Counters) {
    counters.read_errors.add(1);
    tracing::warn!(layer = %plan.layer().digest(), %error, "cache-read-failed");
    reply.error(Errno(libc::EIO));
}

/// A read of what is not. The number of these is bounded by the number of threads that wait in the kernel; each holds no buffer
/// until its chunks are there (the fetch budget bounds those).
async fn fetched(plan: ReadPlan, reply: Reply, counters: Arc<Counters>) {
    counters.read_misses.add(1);
    let digest = *plan.layer().digest();
    match plan.read().await {
        Ok(bytes) => {
            reply.data(&bytes);
            counters.miss_bytes.add(bytes.len() as u64);
        }
        Err(e) => {
            counters.read_errors.add(1);
            tracing::warn!(layer = %digest, error = %e, "read-failed");
            reply.error(Errno(libc::EIO));
        }
    }
}

fn node(id: u64) -> Result<Node, FsError> {
    Node::from_id(id).ok_or(FsError::Stale)
}

fn ttl(node: Node) -> Duration {
    match node {
        Node::Root | Node::Layers | Node::Devices | Node::Probe => NOW,
        Node::File { .. } | Node::Device { .. } => FOREVER,
    }
}

fn errno(error: FsError) -> Errno {
    Errno(match error {
        FsError::Stale => libc::ESTALE,
        FsError::NotADirectory => libc::ENOTDIR,
        FsError::IsADirectory => libc::EISDIR,
        FsError::NameTooLong => libc::ENAMETOOLONG,
        FsError::Invalid => libc::EINVAL,
        FsError::NoAttribute => libc::ENODATA,
        FsError::Io => libc::EIO,
    })
}
