//! Every metric: name, unit, labels, meaning, and where the number comes from.
//!
//! In: [`Seen`]. Out: samples. Invariant: `METRICS.md` shows exactly these rows (a test writes it); names carry their
//! unit. To add a metric, add a row and run `HEADSTART_WRITE=1 cargo test --workspace --lib metrics`.
//! Not here: the format ([`super::text`]).

use super::Seen;
use super::text::Samples;
use crate::counters::Counters;
use crate::observe::calls::Call;
use crate::snapshotter::decline::DeclineReason;
use crate::snapshotter::record::Kind;

/// As Prometheus calls them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Counter,
    Gauge,
    Histogram,
}

impl Type {
    pub fn as_str(self) -> &'static str {
        match self {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram => "histogram",
        }
    }
}

/// A metric.
#[derive(Debug)]
pub struct Row {
    pub name: &'static str,
    pub kind: Type,
    pub unit: &'static str,
    /// The only label, if it has one, and its values.
    pub label: Option<(&'static str, &'static [&'static str])>,
    pub help: &'static str,
    pub read: fn(&Seen, &mut Samples<'_>),
}

const fn row(
    name: &'static str,
    kind: Type,
    unit: &'static str,
    help: &'static str,
    read: fn(&Seen, &mut Samples<'_>),
) -> Row {
    let label = None;
    Row {
        name,
        kind,
        unit,
        label,
        help,
        read,
    }
}

impl Row {
    const fn by(mut self, key: &'static str, values: &'static [&'static str]) -> Row {
        self.label = Some((key, values));
        self
    }
}

const CALLS: &[&str] = &[
    "prepare", "view", "mounts", "commit", "remove", "stat", "update", "list", "usage", "cleanup",
];
const REASONS: &[&str] = &[
    "disabled",
    "no_mount",
    "no_server",
    "unknown_image",
    "not_ready",
    "refused",
    "failed",
    "mismatch",
    "malformed",
    "present_failed",
    "implied_directory",
    "commit_failed",
];
const SNAPSHOTS: &[&str] = &["lazy", "unpacked", "active", "view"];
const READS: &[&str] = &["cached", "fetched", "failed"];
const SOURCES: &[&str] = &["server"];
const PRESENTATIONS: &[&str] = &["erofs", "fuse"];

use Type::{Counter, Gauge, Histogram};

/// All of them, in the order of the text.
#[rustfmt::skip]
pub const ROWS: &[Row] = &[
    row("headstart_shim_build_info", Gauge, "", "1; the version is a label that the binary has fixed", |_, out| out.labelled("version", env!("CARGO_PKG_VERSION"), 1))
        .by("version", &[env!("CARGO_PKG_VERSION")]),
    row("headstart_shim_starts_total", Counter, "starts", "Starts on this root directory, over all processes", |s, out| out.plain(s.starts)),
    row("headstart_shim_calls_seconds", Histogram, "seconds", "Calls of containerd, and how long they took", |s, out| for call in Call::ALL { out.histogram(Some(("call", call.as_str())), s.calls.seconds(call)) })
        .by("call", CALLS),
    row("headstart_shim_calls_failed_total", Counter, "calls", "Calls that failed, other than with an answer that containerd works with", |s, out| for call in Call::ALL { out.labelled("call", call.as_str(), s.calls.failures(call)) })
        .by("call", CALLS),
    row("headstart_shim_layers_lazy_total", Counter, "layers", "Layers of pulls that were mounted lazily", |s, out| out.plain(s.pulls.lazy)),
    row("headstart_shim_layers_declined_total", Counter, "layers", "Layers of pulls that containerd fetched itself, by the reason", |s, out| for (i, reason) in DeclineReason::ALL.iter().enumerate() { out.labelled("reason", reason.as_str(), s.pulls.declined[i]) })
        .by("reason", REASONS),
    row("headstart_shim_snapshots", Gauge, "snapshots", "Snapshots there are", snapshots)
        .by("kind", SNAPSHOTS),
    row("headstart_shim_presentation", Gauge, "", "1 for how layers are shown; none is 1 on a node that can show none", |s, out| for p in PRESENTATIONS { out.labelled("presentation", p, u64::from(s.lazy.as_ref().is_some_and(|l| l.presentation == *p))) })
        .by("presentation", PRESENTATIONS),
    row("headstart_shim_layers", Gauge, "layers", "Lazy layers shown", |s, out| out.plain(lazy(s).count() as u64)),
    row("headstart_shim_layers_complete", Gauge, "layers", "Those that are here whole", |s, out| out.plain(lazy(s).filter(|l| l.chunks_present >= l.chunks).count() as u64)),
    row("headstart_shim_chunks", Gauge, "chunks", "Chunks of all lazy layers", |s, out| out.plain(lazy(s).map(|l| u64::from(l.chunks)).sum::<u64>())),
    row("headstart_shim_chunks_present", Gauge, "chunks", "Those that are here, fetched and verified", |s, out| out.plain(lazy(s).map(|l| u64::from(l.chunks_present)).sum::<u64>())),
    row("headstart_shim_cache_bytes", Gauge, "bytes", "Disk that lazy layers occupy", |s, out| out.plain(lazy(s).map(|l| l.disk_bytes).sum::<u64>())),
    row("headstart_shim_fetch_requests_total", Counter, "requests", "Requests for chunks sent to servers", |s, out| out.plain(counter(s, |c| c.requests.get()))),
    row("headstart_shim_fetched_bytes_total", Counter, "bytes", "Bytes of chunks received, compressed, by where they came from", |s, out| out.labelled("source", "server", counter(s, |c| c.fetched_bytes.get())))
        .by("source", SOURCES),
    row("headstart_shim_fetch_failures_total", Counter, "runs", "Runs of chunks that ended without all of them", |s, out| out.plain(counter(s, |c| c.failed_runs.get()))),
    row("headstart_shim_corrupt_chunks_total", Counter, "chunks", "Chunks that were not what their digest says; they are asked for again elsewhere", |s, out| out.plain(counter(s, |c| c.corrupt_chunks.get()))),
    row("headstart_shim_reads_total", Counter, "reads", "Reads of the kernel, by whether they had to wait for a fetch", reads)
        .by("outcome", READS),
    row("headstart_shim_miss_seconds", Histogram, "seconds", "How long reads waited for what was not here", |s, out| if let Some(l) = &s.lazy { out.histogram(None, &l.counters.miss_seconds) }),
    row("process_cpu_seconds_total", Counter, "seconds", "CPU time of this process", |s, out| out.float(s.process.cpu_seconds)),
    row("process_resident_memory_bytes", Gauge, "bytes", "Memory of this process", |s, out| out.plain(s.process.resident_bytes)),
    row("process_open_fds", Gauge, "descriptors", "Open descriptors of this process", |s, out| out.plain(s.process.open_descriptors)),
    row("process_threads", Gauge, "threads", "Threads of this process", |s, out| out.plain(s.process.threads)),
    row("headstart_shim_mounts", Gauge, "mounts", "Mounts in the mount namespace of this process, whoever made them", |s, out| out.plain(s.process.mounts)),
];

fn lazy(seen: &Seen) -> impl Iterator<Item = &crate::layers::LayerProgress> {
    seen.lazy.iter().flat_map(|l| &l.layers)
}

fn counter(seen: &Seen, of: impl Fn(&Counters) -> u64) -> u64 {
    seen.lazy.as_ref().map_or(0, |l| of(&l.counters))
}

fn snapshots(seen: &Seen, out: &mut Samples<'_>) {
    let count = |kind, is_lazy| {
        let of_kind = seen
            .snapshots
            .iter()
            .filter(|r| r.kind == kind && r.lazy.is_some() == is_lazy);
        of_kind.count() as u64
    };
    let counts = [
        count(Kind::Committed, true),
        count(Kind::Committed, false),
        count(Kind::Active, false),
        count(Kind::View, false),
    ];
    for (name, count) in SNAPSHOTS.iter().zip(counts) {
        out.labelled("kind", name, count);
    }
}

fn reads(seen: &Seen, out: &mut Samples<'_>) {
    let counts = [
        counter(seen, |c| c.read_hits.get()),
        counter(seen, |c| c.read_misses.get()),
        counter(seen, |c| c.read_errors.get()),
    ];
    for (name, count) in READS.iter().zip(counts) {
        out.labelled("outcome", name, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_sets_are_those_of_the_code() {
        assert_eq!(Call::ALL.map(Call::as_str), CALLS);
        assert_eq!(DeclineReason::ALL.map(DeclineReason::as_str), REASONS);
    }
}
