//! What answering cost, beside time: requests over FUSE, and the daemon's CPU and memory.
//!
//! In: the devices of FUSE mounts, the daemon's pid. Out: counts. Invariant: the kernel counts (tracefs, in an instance of our own that
//! goes with the watch), so that every daemon is counted alike; where it cannot, or lost some, there is no count.
//! Not here: what was asked.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::bench::usage;

/// Room for the events of one row on each CPU: who has a FUSE mount a layer is asked some 200,000 times.
const BUFFER_KIB: u32 = 64 << 10;

/// Lines of a CPU's statistics that tell of events without room.
const LOST: [&str; 3] = ["overrun", "commit overrun", "dropped events"];

#[derive(Debug)]
pub struct Watch {
    events: Option<Events>,
    pids: Vec<u32>,
    cpu: Duration,
}

/// What a watch saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// By name of the request; `None` where nobody could count.
    pub requests: Option<BTreeMap<String, u64>>,
    pub cpu: Duration,
    /// In the end.
    pub rss_bytes: u64,
}

impl Watch {
    /// `minors`: of the FUSE mounts' devices. `pid`: who serves them.
    pub fn begin(minors: &[u32], pid: Option<u32>) -> Self {
        let pids: Vec<u32> = pid.into_iter().collect();
        Self {
            events: (!minors.is_empty()).then(|| Events::begin(minors)).flatten(),
            cpu: usage::cpu(&pids),
            pids,
        }
    }

    pub fn end(self) -> Seen {
        Seen {
            requests: self.events.and_then(|e| e.counts()),
            cpu: usage::cpu(&self.pids).saturating_sub(self.cpu),
            rss_bytes: usage::rss(&self.pids),
        }
    }
}

/// The machine's load: what else it was doing.
pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

#[derive(Debug)]
struct Events {
    tracefs: PathBuf,
    instance: PathBuf,
}

impl Events {
    fn begin(minors: &[u32]) -> Option<Self> {
        // A mount of our own: it may be nowhere, and where it is differs.
        let tracefs = std::env::temp_dir().join(format!("headstart-trace-{}", std::process::id()));
        fs::create_dir_all(&tracefs).ok()?;
        if mount("tracefs", &tracefs, "tracefs", MountFlags::empty(), None).is_err() {
            let _ = fs::remove_dir(&tracefs);
            return None;
        }
        let instance = tracefs.join(format!("instances/headstart-{}", std::process::id()));
        let events = Self { tracefs, instance };
        fs::create_dir_all(&events.instance).ok()?;
        let set = |name: &str, value: &str| fs::write(events.instance.join(name), value);
        set("buffer_size_kb", &BUFFER_KIB.to_string()).ok()?;
        // The kernel names a connection by its device number, which for FUSE is a minor alone.
        let filter: Vec<String> = minors.iter().map(|minor| format!("connection == {minor}")).collect();
        set("events/fuse/fuse_request_send/filter", &filter.join(" || ")).ok()?;
        set("events/fuse/fuse_request_send/enable", "1").ok()?;
        Some(events)
    }

    fn counts(&self) -> Option<BTreeMap<String, u64>> {
        let _ = fs::write(self.instance.join("events/fuse/fuse_request_send/enable"), "0");
        for cpu in fs::read_dir(self.instance.join("per_cpu")).ok()?.flatten() {
            let stats = fs::read_to_string(cpu.path().join("stats")).ok()?;
            let mut lost = stats.lines().filter_map(|line| line.split_once(": "));
            if lost.any(|(name, count)| LOST.contains(&name) && count.trim() != "0") {
                return None;
            }
        }
        let text = fs::read_to_string(self.instance.join("trace")).ok()?;
        let mut counts = BTreeMap::new();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            // `... opcode 15 (FUSE_READ) len 80`
            if let Some((_, rest)) = line.split_once("(FUSE_")
                && let Some((name, _)) = rest.split_once(')')
            {
                *counts.entry(name.to_lowercase()).or_default() += 1;
            }
        }
        Some(counts)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.instance);
        let undone = |at: &Path| unmount(at, UnmountFlags::DETACH).is_ok();
        if undone(&self.tracefs) {
            let _ = fs::remove_dir(&self.tracefs);
        }
    }
}
