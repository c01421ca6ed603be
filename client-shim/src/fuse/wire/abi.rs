//! Numbers of the FUSE kernel protocol (Linux, `include/uapi/linux/fuse.h`), as far as a read-only filesystem meets them.
//!
//! In: nothing. Out: constants. Invariant: the kernel never changes one. Everything is in the machine's byte order.
//! Not here: the shapes of messages (`request.rs`, `reply.rs`, `init.rs`).

/// Version of the protocol spoken: 7, and what the kernel of Linux 6.9 knows (fields beyond are never looked at).
pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 40;

/// `struct fuse_in_header` and `struct fuse_out_header`.
pub const IN_HEADER_LEN: usize = 40;
pub const OUT_HEADER_LEN: usize = 16;
/// Smallest buffer the kernel accepts for requests (`FUSE_MIN_READ_BUFFER`). Writes would need more; there are none.
pub const REQUEST_LEN_MAX: usize = 8192;

/// What the kernel asks (`enum fuse_opcode`).
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const READLINK: u32 = 5;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const READDIRPLUS: u32 = 44;
}

/// What a filesystem tells without being asked (`enum fuse_notify_code`).
pub mod notify {
    pub const INVAL_INODE: i32 = 2;
    pub const INVAL_ENTRY: i32 = 3;
    pub const RESEND: i32 = 7;
}

/// Abilities, agreed upon in the handshake (`FUSE_*` flags of INIT).
pub mod flag {
    pub const ASYNC_READ: u64 = 1;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const NO_OPEN_SUPPORT: u64 = 1 << 17;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    /// There are flags above bit 31.
    pub const INIT_EXT: u64 = 1 << 30;
    /// Files can be read by the kernel itself, from a file we name (Linux 6.9).
    pub const PASSTHROUGH: u64 = 1 << 37;
    /// Requests that were read and not answered can be had again (Linux 6.9).
    pub const HAS_RESEND: u64 = 1 << 39;
    /// Mounts of it may map owners, as user namespaces want (Linux 6.12).
    pub const ALLOW_IDMAP: u64 = 1 << 40;
}

/// How an opened file behaves (`FOPEN_*`).
pub mod fopen {
    pub const DIRECT_IO: u32 = 1;
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
    pub const PASSTHROUGH: u32 = 1 << 7;
}
