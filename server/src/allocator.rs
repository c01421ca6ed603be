//! What the allocator may keep of memory that was freed.
//!
//! In: nothing. Out: pages that nobody uses go back to the system. Invariant: what a process has resident is near what it uses,
//! however large that was before.
//! glibc gives each few threads a heap of their own, and once something large was freed it lets each of them keep up to 64 MiB;
//! threads of conversions come and go, so several hostile layers left a multiple of what was in use at any time.
//! Elsewhere (musl) there is nothing to say.
//! Not here: who may use how much (`ingest/memory.rs`).

/// What one heap keeps at its end, and from which size on a buffer is the system's own. Larger than any buffer on the way of a
/// byte, which would else be mapped and unmapped for each.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 4 << 20;

/// To be called before any thread is started.
pub fn set_up() {
    #[cfg(target_env = "gnu")]
    for what in [libc::M_TRIM_THRESHOLD, libc::M_MMAP_THRESHOLD] {
        // SAFETY: plain numbers; nobody else allocates yet.
        let _ = unsafe { libc::mallopt(what, KEPT_BYTES) };
    }
}

/// Pages within the heaps, too. Takes some milliseconds.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it touches nothing but what is free.
    let _ = unsafe { libc::malloc_trim(0) };
}
