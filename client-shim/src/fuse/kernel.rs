//! The FUSE protocol, and only that.
//!
//! In: requests of the kernel, on the session's one thread. Out: replies. Invariant: this thread never waits for the
//! network: what is not here is read on the runtime and replied to from there, so a stuck read holds up nobody else. The
//! mount is read-only, so requests that would change something are not even sent; the defaults refuse them.
//! Not here: what the answers are (`fuse/tree_fs.rs`).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyStatfs, ReplyXattr, Request,
};
use headstart_layer_format::limits::NAME_LEN_MAX;
use headstart_layer_format::toc::Mtime;
use tokio::runtime::Handle;

use super::attr::{Attr, FileKind};
use super::node_id::Node;
use super::probe_file;
use super::read_plan::{READ_SIZE_MAX, ReadPlan};
use super::tree_fs::{FsError, Lookup, TreeFs};
use crate::counters::Counters;

/// Trees do not change: names and attributes may be cached for ever (a year, so that no sum overflows).
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
/// For `layers/` itself, whose entries come and go.
const NOW: Duration = Duration::ZERO;
/// Ids are never reused for another file, so there is one generation.
const GENERATION: Generation = Generation(0);
/// Requests of read-ahead the kernel may have under way. Its default of 12 would let a few sequential readers that wait
/// for the network keep others from reading ahead.
const BACKGROUND_MAX: u16 = 64;
/// Each makes the kernel ask less. Those a kernel lacks are left out.
const WANTED: [InitFlags; 7] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_MAX_PAGES,
    // Containers in user namespaces (from 6.12 on): who asks does not matter here, and the kernel checks permissions.
    InitFlags::FUSE_ALLOW_IDMAP,
];

#[derive(Debug)]
pub struct KernelFs {
    tree: Arc<TreeFs>,
    counters: Arc<Counters>,
    runtime: Handle,
    /// The kernel reads data spaces through files here, and caches itself what it has read of them.
    has_devices: bool,
    /// The kernel takes ENOSYS to `open` (`opendir`) as "never ask again, and keep the cache".
    open_is_optional: bool,
    opendir_is_optional: bool,
}

impl KernelFs {
    pub fn new(tree: Arc<TreeFs>, counters: Arc<Counters>, runtime: Handle, has_devices: bool) -> Self {
        Self {
            tree,
            counters,
            runtime,
            has_devices,
            open_is_optional: false,
            opendir_is_optional: false,
        }
    }

    fn xattr_reply(answer: Result<Vec<u8>, FsError>, size: u32, reply: ReplyXattr) {
        match answer {
            Err(e) => reply.error(errno(e)),
            // At most 64 KiB: limits::XATTR_VALUE_LEN_MAX and XATTRS_LEN_MAX.
            Ok(bytes) if size == 0 => reply.size(bytes.len() as u32),
            Ok(bytes) if bytes.len() > size as usize => reply.error(Errno::ERANGE),
            Ok(bytes) => reply.data(&bytes),
        }
    }

    fn read_later(&self, plan: ReadPlan, reply: ReplyData) {
        self.counters.read_misses.add(1);
        let counters = Arc::clone(&self.counters);
        // The number of these is bounded by the number of threads that wait in the kernel; each holds no buffer until
        // its chunks are there (the fetch budget bounds those).
        self.runtime.spawn(async move {
            let digest = *plan.layer().digest();
            match plan.read().await {
                Ok(bytes) => reply.data(&bytes),
                Err(e) => {
                    counters.read_errors.add(1);
                    tracing::warn!(layer = %digest, error = %e, "read-failed");
                    reply.error(Errno::EIO);
                }
            }
        });
    }
}

impl Filesystem for KernelFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let has = config.capabilities();
        for flag in WANTED {
            if has.contains(flag) {
                // Just checked that the kernel has it.
                let _ = config.add_capabilities(flag);
            }
        }
        // "Never ask again" is said of the whole mount, and devices must be asked about: they are opened uncached.
        self.open_is_optional = has.contains(InitFlags::FUSE_NO_OPEN_SUPPORT) && !self.has_devices;
        self.opendir_is_optional = has.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        // The bound of one read comes from this (fuser derives the page limit from it).
        let _ = config.set_max_write(READ_SIZE_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.counters.kernel_requests.add(1);
        match node(parent).and_then(|n| self.tree.lookup(n, name.as_bytes())) {
            Ok(Lookup::Found(attr)) => reply.entry(&ttl(attr.node), &file_attr(&attr), GENERATION),
            // Node id 0 with a lifetime: a name known not to exist.
            Ok(Lookup::Absent) => reply.entry(&FOREVER, &nothing(), GENERATION),
            Ok(Lookup::AbsentNow) => reply.error(Errno::ENOENT),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.counters.kernel_requests.add(1);
        match node(ino).and_then(|n| self.tree.attr(n)) {
            Ok(attr) => reply.attr(&ttl(attr.node), &file_attr(&attr)),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.counters.kernel_requests.add(1);
        match node(ino).and_then(|n| self.tree.readlink(n)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.counters.kernel_requests.add(1);
        match self.open_is_optional {
            // Cached once, by the filesystem above it.
            _ if matches!(Node::from_id(ino.0), Some(Node::Device { .. } | Node::Probe)) => {
                reply.opened(FileHandle(0), fuser::FopenFlags::FOPEN_DIRECT_IO);
            }
            true => reply.error(Errno::ENOSYS),
            false => reply.opened(FileHandle(0), fuser::FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.counters.kernel_requests.add(1);
        match self.opendir_is_optional {
            true => reply.error(Errno::ENOSYS),
            false => reply.opened(FileHandle(0), fuser::FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.counters.kernel_requests.add(1);
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.counters.kernel_requests.add(1);
        if node(ino) == Ok(Node::Probe) {
            return reply.data(&probe_file::bytes(offset, size.into()));
        }
        let plan = match node(ino).and_then(|n| self.tree.plan_read(n, offset, size)) {
            Ok(plan) => plan,
            Err(e) => return reply.error(errno(e)),
        };
        match plan.read_cached() {
            Ok(Some(bytes)) => {
                reply.data(&bytes);
                self.counters.read_hits.add(1);
                plan.read_ahead();
            }
            Ok(None) => self.read_later(plan, reply),
            Err(e) => {
                self.counters.read_errors.add(1);
                tracing::warn!(layer = %plan.layer().digest(), error = %e, "cache-read-failed");
                reply.error(Errno::EIO);
            }
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.counters.kernel_requests.add(1);
        let listed = node(ino).and_then(|n| {
            self.tree.read_dir(n, offset, &mut |item| {
                let attr = &item.attr;
                !reply.add(
                    INodeNo(attr.node.id()),
                    item.next,
                    file_type(attr.kind),
                    OsStr::from_bytes(item.name),
                )
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.counters.kernel_requests.add(1);
        let listed = node(ino).and_then(|n| {
            self.tree.read_dir(n, offset, &mut |item| {
                let id = item.attr.node;
                let attr = file_attr(&item.attr);
                let name = OsStr::from_bytes(item.name);
                !reply.add(INodeNo(id.id()), item.next, name, &ttl(id), &attr, GENERATION)
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.counters.kernel_requests.add(1);
        match self.tree.space() {
            Ok(s) => reply.statfs(
                s.blocks,
                s.free,
                s.available,
                s.files,
                0,
                s.block_size,
                NAME_LEN_MAX as u32,
                s.block_size,
            ),
            Err(e) => reply.error(errno(e)),
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.counters.kernel_requests.add(1);
        let answer = node(ino).and_then(|n| self.tree.xattr(n, name.as_bytes()));
        Self::xattr_reply(answer, size, reply);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.counters.kernel_requests.add(1);
        let answer = node(ino).and_then(|n| self.tree.xattr_names(n));
        Self::xattr_reply(answer, size, reply);
    }
}

fn node(id: INodeNo) -> Result<Node, FsError> {
    Node::from_id(id.0).ok_or(FsError::Stale)
}

fn ttl(node: Node) -> Duration {
    match node {
        Node::Root | Node::Layers | Node::Devices | Node::Probe => NOW,
        Node::File { .. } | Node::Device { .. } => FOREVER,
    }
}

fn errno(error: FsError) -> Errno {
    match error {
        FsError::Stale => Errno::ESTALE,
        FsError::NotADirectory => Errno::ENOTDIR,
        FsError::IsADirectory => Errno::EISDIR,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Invalid => Errno::EINVAL,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::Io => Errno::EIO,
    }
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Directory => FileType::Directory,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Fifo => FileType::NamedPipe,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    let mtime = system_time(attr.mtime);
    FileAttr {
        ino: INodeNo(attr.node.id()),
        size: attr.size,
        blocks: attr.blocks,
        atime: mtime,
        mtime,
        ctime: mtime,
        crtime: mtime,
        kind: file_type(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// The entry of a name that does not exist.
fn nothing() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        ..file_attr(&Attr::own_directory(Node::Root, 0))
    }
}

/// Times that Rust's clock type cannot hold do not occur on Linux (both are 64-bit seconds); they would become 1970.
fn system_time(mtime: Mtime) -> SystemTime {
    let seconds = Duration::from_secs(mtime.secs.unsigned_abs());
    let base = match mtime.secs < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(seconds),
        false => SystemTime::UNIX_EPOCH.checked_add(seconds),
    };
    base.and_then(|t| t.checked_add(Duration::from_nanos(mtime.nanos.into())))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
