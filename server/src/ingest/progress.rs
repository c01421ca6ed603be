//! What a running conversion has done so far, and whether it should go on.
//!
//! Shared between the converting threads and whoever asks for the state: clones are the same one. Numbers only ever grow.
//! Not here: metrics (the queue reports a finished conversion once).

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

#[derive(Clone, Debug)]
pub struct Progress(Arc<Counts>);

#[derive(Debug)]
pub struct Counts {
    /// Compressed bytes consumed.
    pub compressed: AtomicU64,
    /// Bytes of the tar.
    pub tar: AtomicU64,
    /// Raw bytes of chunks that were new to the store.
    pub new_chunks: AtomicU64,
    /// Raw bytes of chunks that were there already.
    pub reused_chunks: AtomicU64,
    /// What the new ones take in the packs, without the records' heads.
    pub new_frames: AtomicU64,
    cpu_nanos: AtomicU64,
    cancelled: AtomicBool,
    deadline: Instant,
}

impl Deref for Progress {
    type Target = Counts;

    fn deref(&self) -> &Counts {
        &self.0
    }
}

impl Progress {
    pub fn new(time_max: Duration) -> Self {
        let now = Instant::now();
        Self(Arc::new(Counts {
            compressed: AtomicU64::new(0),
            tar: AtomicU64::new(0),
            new_chunks: AtomicU64::new(0),
            reused_chunks: AtomicU64::new(0),
            new_frames: AtomicU64::new(0),
            cpu_nanos: AtomicU64::new(0),
            cancelled: AtomicBool::new(false),
            deadline: now.checked_add(time_max).unwrap_or(now),
        }))
    }

    /// Whether nobody else has it.
    pub fn is_last(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }
}

impl Counts {
    /// Makes the conversion end soon, as failed.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub fn is_late(&self) -> bool {
        Instant::now() > self.deadline
    }

    /// CPU time of all threads of the conversion that have ended.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_nanos.load(Ordering::Relaxed))
    }

    /// Adds the CPU time that `work` takes on this thread.
    pub fn count_cpu<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = thread_cpu();
        let out = work();
        let spent = thread_cpu().saturating_sub(before);
        self.cpu_nanos.fetch_add(spent.as_nanos() as u64, Ordering::Relaxed);
        out
    }
}

fn thread_cpu() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the duration of the call; the clock exists on every Linux.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) } != 0;
    if failed {
        return Duration::ZERO;
    }
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}
