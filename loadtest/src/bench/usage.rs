//! CPU time and memory of a server: its process and its children (nginx has workers).
//!
//! In: a process id. Out: what the kernel has accounted so far.
//! Invariant: a process that has ended counts as nothing. Not here: what it is divided by.

use std::{fs, time::Duration};

/// The process and its children, not theirs.
pub fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_ascii_whitespace().filter_map(|p| p.parse().ok());
    std::iter::once(pid).chain(children).collect()
}

/// User and system time of all of `pids`.
pub fn cpu(pids: &[u32]) -> Duration {
    let ticks: u64 = pids.iter().filter_map(|pid| ticks(*pid)).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

fn ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything; utime and stime are the 12th and 13th field after it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

/// Everything that is resident now, mapped files too.
pub fn rss(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| status(*pid, "VmRSS")).sum()
}

/// Anonymous and shared memory that is resident now; mapped files are the page cache's and not counted.
pub fn memory(pids: &[u32]) -> u64 {
    pids.iter().filter_map(|pid| resident(*pid)).sum()
}

fn resident(pid: u32) -> Option<u64> {
    Some(status(pid, "RssAnon")? + status(pid, "RssShmem").unwrap_or(0))
}

/// A line of its status that has KiB, as bytes.
fn status(pid: u32, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_ascii_whitespace().next()?.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_time_and_memory() {
        let me = family(std::process::id());
        let mut x = 0u64;
        while cpu(&me) < Duration::from_millis(20) {
            for i in 0..1_000_000u64 {
                x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(i));
            }
        }
        assert!(memory(&me) > 64 << 10, "{x}");
        assert!(rss(&me) > memory(&me) / 2, "{x}");
    }
}
