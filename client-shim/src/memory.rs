//! Memory given back to the kernel.
//!
//! In: word that much was, or soon will be, freed in small pieces. Out: later, from time to time, the allocator's free pages go
//! back. Invariant: nothing is done unless something was said since. Not here: who holds what.
//!
//! Trees of layers are a million small allocations; glibc keeps what was freed between others for good, unless it is told
//! (malloc_trim(3)). What is free at the end of an arena it gives back from the first arena alone, and threads get others:
//! there some 10 MB stayed of trees that had been read. Other allocators do it by themselves.

use std::sync::atomic::{AtomicU8, Ordering};

/// An owner may let go a little later than the next round.
const ROUNDS: u8 = 3;

/// Rounds to come.
static DUE: AtomicU8 = AtomicU8::new(0);

/// Has all threads allocate where [`trim`] finds everything. Before there are threads.
pub fn settle() {
    use_one_arena();
}

/// Something large will be let go by its owner, now or within moments.
pub fn will_be_freed() {
    DUE.store(ROUNDS, Ordering::Relaxed);
}

/// Gives back what is free, if anything was freed lately. Takes milliseconds: not for an async thread.
pub fn trim() {
    let one_less = |due: u8| due.checked_sub(1);
    if DUE.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
        give_back();
    }
}

#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: takes no pointer, and may be called by any thread at any time (malloc_trim(3): MT-Safe).
    unsafe { libc::malloc_trim(0) };
}

/// A handful of threads that allocate little and keep small pieces to themselves do not wait for each other there.
#[cfg(target_env = "gnu")]
fn use_one_arena() {
    // SAFETY: takes no pointer; concerns arenas that are made from now on (mallopt(3)).
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(not(target_env = "gnu"))]
fn use_one_arena() {}
