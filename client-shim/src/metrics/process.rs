//! What this process uses, as the kernel has it.
//!
//! In: `/proc/self`. Out: [`Process`]. Invariant: a file that cannot be read counts as zero; nothing fails.
//! Not here: limits.

/// A moment's use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    pub resident_bytes: u64,
    pub cpu_seconds: f64,
    pub open_descriptors: u64,
    pub threads: u64,
    /// Of the mount namespace, below anything.
    pub mounts: u64,
}

impl Process {
    pub fn now() -> Self {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        let status = read("status");
        let field = |key: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(key));
            line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok())
                .unwrap_or(0)
        };
        let stat = read("stat");
        // User and system time, 14th and 15th; the second field is a name in parentheses that may hold anything.
        let after = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let ticks: u64 = after
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|n| n.parse::<u64>().ok())
            .sum();
        Self {
            resident_bytes: field("VmRSS:") * 1024,
            cpu_seconds: ticks as f64 / rustix::param::clock_ticks_per_second() as f64,
            open_descriptors: std::fs::read_dir("/proc/self/fd").map_or(0, |d| d.count() as u64),
            threads: field("Threads:"),
            mounts: read("mountinfo").lines().count() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_something_of_everything() {
        let now = Process::now();
        assert!(now.resident_bytes > 100_000 && now.open_descriptors > 2 && now.threads > 0 && now.mounts > 0);
    }
}
