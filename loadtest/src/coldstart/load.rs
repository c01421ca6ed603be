//! How busy the machine is, and what it is.
//!
//! In: /proc. Out: numbers for a report; a file that is not there reads as nothing.
//! Not here: waiting until it is quiet: the report says how it was.

use std::fs;

use serde::Serialize;

/// The machine, once a report.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Machine {
    pub cpus: usize,
    pub memory_bytes: u64,
    pub kernel: String,
    pub is_debug_build: bool,
}

impl Machine {
    pub fn this() -> Machine {
        let kib = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
            let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.trim();
            line.split(' ').next()?.parse::<u64>().ok()
        });
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Machine {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: kib.unwrap_or(0) << 10,
            kernel: kernel.trim().to_owned(),
            is_debug_build: cfg!(debug_assertions),
        }
    }
}

/// A reading of the clocks of all CPUs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clocks {
    busy: u64,
    all: u64,
}

impl Clocks {
    pub fn now() -> Clocks {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = text.lines().next().unwrap_or_default();
        let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|t| t.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; guests are in user already.
        let all = ticks.iter().take(8).sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        Clocks { busy: all - idle, all }
    }

    /// Share of the CPUs' time that was used since, by anybody: 0 to 1.
    pub fn busy_since(&self, earlier: &Clocks) -> f64 {
        let all = self.all.saturating_sub(earlier.all);
        self.busy.saturating_sub(earlier.busy) as f64 / all.max(1) as f64
    }
}

/// The load average of the last minute.
pub fn average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}
