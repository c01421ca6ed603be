//! What this process has cost so far: CPU time and memory.
//!
//! In: nothing. Out: the kernel's account. Invariant: a figure that the kernel does not give is 0 or `None`, not an error.
//! Not here: what is done meanwhile. `ru_maxrss` is not used: it also counts what the process was before it was this program.

use std::time::Duration;

/// User and system time of all threads, ended ones too.
pub fn cpu() -> Duration {
    // SAFETY: all zeros is a valid rusage, and the pointer is valid for the call.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    if unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) } != 0 {
        return Duration::ZERO;
    }
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, (t.tv_usec as u32).saturating_mul(1000));
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Most memory that was resident at a time, since the start or since [`forget_peak`].
pub fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}

/// Begins a new peak from what is resident now.
pub fn forget_peak() {
    // Where that is forbidden, the peak is that of the process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_and_memory_show() {
        let before = cpu();
        let mut x = 0u64;
        while cpu() < before + Duration::from_millis(20) {
            for i in 0..100_000u64 {
                x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(i));
            }
        }
        forget_peak();
        let small = peak_rss().unwrap();
        let big = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_rss().unwrap() >= small + (48 << 20), "{x} {}", big.len());
    }
}
