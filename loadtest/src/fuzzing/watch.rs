//! One call of an entry point, watched: panics, memory, CPU time, and calls that never come back.
//!
//! In: an entry point and an input. Out: whether the input was accepted, or what went wrong.
//! Invariant: the bounds catch what has no bound (a hang, memory that a number in the input asks for), not what is slow.
//! Not here: what happens to an input that fails (`driver.rs`).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

/// Memory of one call: buffers of the decoders and encoders, ...
const HEAP_FLOOR: usize = 48 << 20;
/// ... and so many bytes for each of the input: a two-byte varint may become a hundred bytes of an inode, three times.
const HEAP_PER_BYTE: usize = 512;
/// CPU time of one call. The slowest takes some hundredths of it, unoptimised.
const CPU_MAX: Duration = Duration::from_secs(10);
/// A call that takes this long on the clock never comes back.
const HANG: Duration = Duration::from_secs(180);

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// The allocator of a program that fuzzes (`#[global_allocator]`): counts what each thread has, as entry points start no
/// threads.
#[derive(Debug)]
pub struct Counting;

fn count(change: isize) {
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
}

// SAFETY: passes every call on unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { System.realloc(at, layout, size) }
    }
}

fn thread_cpu() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the duration of the call.
    assert_eq!(
        unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now) },
        0
    );
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Without the allocator, memory would have no bound, and nobody would see it.
fn counted() {
    let before = LIVE.get();
    let held = std::hint::black_box(Box::new(0_u8));
    assert!(LIVE.get() > before, "the program's allocator is not `Counting`");
    drop(held);
}

/// Calls `one`. `Err` says in what way it failed.
pub fn call(one: fn(&[u8]) -> bool, input: &[u8]) -> Result<bool, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
    counted();
    QUIET.set(true);
    let before = LIVE.get();
    PEAK.set(before);
    let cpu = thread_cpu();
    let outcome = catch_unwind(AssertUnwindSafe(|| one(input)));
    let (cpu, peak) = (thread_cpu() - cpu, PEAK.get() - before);
    QUIET.set(false);
    let accepted = outcome.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        format!("panicked: {}", text.unwrap_or("?"))
    })?;
    if cpu > CPU_MAX {
        return Err(format!("took {cpu:?} of CPU time"));
    }
    if peak > (HEAP_FLOOR + HEAP_PER_BYTE * input.len()) as isize {
        return Err(format!("took {peak} bytes for {} bytes of input", input.len()));
    }
    Ok(accepted)
}

/// Ends the process when a call does not come back, after its input was written to `path`.
#[derive(Debug)]
pub struct Watchdog {
    current: Arc<Mutex<Vec<u8>>>,
    alive: Option<SyncSender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watchdog {
    pub fn over(path: PathBuf) -> Self {
        let current = Arc::new(Mutex::new(Vec::new()));
        let (alive, seen) = sync_channel(64);
        let input = Arc::clone(&current);
        let thread = std::thread::spawn(move || {
            loop {
                match seen.recv_timeout(HANG) {
                    Ok(()) => {}
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {
                        let input = input.lock().unwrap_or_else(PoisonError::into_inner);
                        std::fs::write(&path, &*input).expect("write the input");
                        eprintln!("a call does not come back; its input: {}", path.display());
                        std::process::abort();
                    }
                }
            }
        });
        Self {
            current,
            alive: Some(alive),
            thread: Some(thread),
        }
    }

    /// The next call will have this input.
    pub fn next(&self, input: &[u8]) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clear();
        current.extend_from_slice(input);
        if let Some(alive) = &self.alive {
            let _ = alive.send(());
        }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
