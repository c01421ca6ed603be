//! The handshake of a mount.
//!
//! In: the kernel's INIT. Out: our answer, and what the kernel is able to do, which is remembered with the descriptor: a
//! successor never shakes hands. Invariant: only what the kernel offers is asked for.
//! Not here: what follows from its abilities (`fuse/kernel.rs`).

use super::abi::{MAJOR, MINOR, flag};
use super::in_flight::SLOTS;
use super::request::u32_at;

/// Each makes the kernel ask less, or wait less. Those a kernel lacks are left out.
const WANTED: u64 = flag::ASYNC_READ
    | flag::EXPORT_SUPPORT
    | flag::DO_READDIRPLUS
    | flag::ASYNC_DIO
    | flag::PARALLEL_DIROPS
    | flag::MAX_PAGES
    | flag::CACHE_SYMLINKS
    | flag::ALLOW_IDMAP
    | flag::INIT_EXT;
/// Requests of read-ahead the kernel may have under way, which for it is nearly every read of a file. Whoever wants one more
/// waits for one of them to end, also if what it reads is here: so this is more than the threads of any container that may
/// wait for a server. It costs the kernel nothing, whose readers have their pages whether they wait before the request or in it.
/// It is half of the table, so that these do not fill it: our thread would wait for a place then, and everybody for it.
const BACKGROUND_MAX: u16 = (SLOTS / 2) as u16;
const _: () = assert!(SLOTS / 2 <= u16::MAX as usize, "the protocol has 16 bits for it");
/// From here on the kernel calls the filesystem congested, and reads ahead only what somebody waits for (its own default is
/// three quarters).
const CONGESTED: u16 = BACKGROUND_MAX / 4 * 3;
/// Nobody writes; the smallest the kernel knows, so that its requests fit a small buffer.
const WRITE_MAX: u32 = 4096;
/// One read is at most this many pages: 1 MiB.
const PAGES_MAX: u16 = 256;

/// The kernel's offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    pub major: u32,
    pub max_readahead: u32,
    /// Bits of [`flag`].
    pub flags: u64,
}

impl Offer {
    /// `struct fuse_init_in`: major, minor, max_readahead, flags, flags2, ...
    pub fn parse(body: &[u8]) -> Option<Self> {
        let flags = u64::from(u32_at(body, 12)?);
        // Kernels before 5.17 send no flags2.
        let more = match flags & flag::INIT_EXT {
            0 => 0,
            _ => u64::from(u32_at(body, 16)?),
        };
        Some(Self {
            major: u32_at(body, 0)?,
            max_readahead: u32_at(body, 8)?,
            flags: flags | more << 32,
        })
    }

    /// `struct fuse_init_out`.
    pub fn answer(&self) -> [u8; 64] {
        let flags = self.flags & WANTED;
        let mut out = [0; 64];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAJOR.to_ne_bytes());
        put(4, &MINOR.to_ne_bytes());
        put(8, &self.max_readahead.to_ne_bytes());
        put(12, &(flags as u32).to_ne_bytes());
        put(16, &BACKGROUND_MAX.to_ne_bytes());
        put(18, &CONGESTED.to_ne_bytes());
        put(20, &WRITE_MAX.to_ne_bytes());
        // Times are in nanoseconds.
        put(24, &1u32.to_ne_bytes());
        put(28, &PAGES_MAX.to_ne_bytes());
        put(32, &((flags >> 32) as u32).to_ne_bytes());
        out
    }
}
