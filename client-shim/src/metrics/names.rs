//! Every metric: name, unit, labels, meaning, and where the number comes from.
//!
//! In: [`Seen`]. Out: samples. Invariant: `METRICS.md` shows exactly these rows (a test writes it); names carry their
//! unit. To add a metric, add a row and run `HEADSTART_WRITE=1 cargo test --workspace --lib metrics`.
//! Not here: the format ([`super::text`]).

use std::collections::HashSet;

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
const SOURCES: &[&str] = &["server", "original"];
const READ_BYTES: &[&str] = &["cached", "fetched"];
const REBUILDS: &[&str] = &["whole", "failed"];
const PREFETCHES: &[&str] = &["done", "stopped", "failed"];
const TRACES: &[&str] = &["posted", "failed", "unsure"];
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
    row("headstart_shim_layers", Gauge, "layers", "Lazy layers that are here: shown, or about to be, while their trees are made", |s, out| out.plain(lazy(s).count() as u64)),
    row("headstart_shim_layers_shown", Gauge, "layers", "Those, by how each is shown: on a node with EROFS the FUSE tree shows what has no image, or none that could be mounted (the log says why: layer-shown-by-fuse)", |s, out| for p in PRESENTATIONS { out.labelled("presentation", p, lazy(s).filter(|l| l.how.as_ref().is_some_and(|how| how.by == *p)).count() as u64) })
        .by("presentation", PRESENTATIONS),
    row("headstart_shim_layers_unavailable", Gauge, "layers", "Layers of snapshots that are not shown: this node's disk did not give them back, or it shows none. No container starts on them until a server has them again", |s, out| out.plain(unavailable(s))),
    row("headstart_shim_layers_complete", Gauge, "layers", "Those that are here whole", |s, out| out.plain(lazy(s).filter(|l| l.chunks_present >= l.chunks).count() as u64)),
    row("headstart_shim_chunks", Gauge, "chunks", "Chunks of all lazy layers", |s, out| out.plain(lazy(s).map(|l| u64::from(l.chunks)).sum::<u64>())),
    row("headstart_shim_chunks_present", Gauge, "chunks", "Those that are here, fetched and verified", |s, out| out.plain(lazy(s).map(|l| u64::from(l.chunks_present)).sum::<u64>())),
    row("headstart_shim_cache_bytes", Gauge, "bytes", "Disk that lazy layers occupy", |s, out| out.plain(lazy(s).map(|l| l.disk_bytes).sum::<u64>())),
    row("headstart_shim_lent_bytes", Gauge, "bytes", "Those of them that the kernel reads by itself and that cannot be given back; at most 60 % of `lazy.cache_bytes_max`", |s, out| out.plain(s.lazy.as_ref().map_or(0, |l| l.lent_bytes))),
    row("headstart_shim_fetch_requests_total", Counter, "requests", "Requests for chunks sent to servers", |s, out| out.plain(counter(s, |c| c.requests.get()))),
    row("headstart_shim_fetched_bytes_total", Counter, "bytes", "Bytes received for chunks, compressed: of chunks from servers, of whole blobs from the original's registry", fetched)
        .by("source", SOURCES),
    row("headstart_shim_fill_bytes_total", Counter, "bytes", "Those from servers that nobody waited for: the background fill's", |s, out| out.plain(counter(s, |c| c.fill_bytes.get()))),
    row("headstart_shim_near_bytes_total", Counter, "bytes", "Bytes of chunks, decompressed, that were taken from another layer of this node instead of fetched", |s, out| out.plain(counter(s, |c| c.near_bytes.get()))),
    row("headstart_shim_near_chunks_total", Counter, "chunks", "Those chunks", |s, out| out.plain(counter(s, |c| c.near_chunks.get()))),
    row("headstart_shim_original_rebuilds_total", Counter, "rebuilds", "Times a layer's original was fetched from its registry because no server had its chunks, by whether nothing was missing then", rebuilds)
        .by("outcome", REBUILDS),
    row("headstart_shim_fetch_failures_total", Counter, "runs", "Runs of chunks that ended without all of them", |s, out| out.plain(counter(s, |c| c.failed_runs.get()))),
    row("headstart_shim_corrupt_chunks_total", Counter, "chunks", "Chunks that were not what their digest says; they are asked for again elsewhere", |s, out| out.plain(counter(s, |c| c.corrupt_chunks.get()))),
    row("headstart_shim_rotten_chunks_total", Counter, "chunks", "Chunks that this node's disk did not keep as they were; they are fetched again. An alarm: the disk", |s, out| out.plain(counter(s, |c| c.rotten_chunks.get()))),
    row("headstart_shim_damaged_trees_total", Counter, "trees", "Layers' trees that this node's disk did not keep as they were, or another version wrote; they are made again from the TOC. If it grows by itself, an alarm: the disk", |s, out| out.plain(counter(s, |c| c.damaged_trees.get()))),
    row("headstart_shim_layers_verified_total", Counter, "layers", "Layers whose bytes, all here, gave the DiffID that their image names", |s, out| out.plain(counter(s, |c| c.layers_verified.get()))),
    row("headstart_shim_layers_quarantined", Gauge, "layers", "Layers whose bytes gave another though each chunk was right: the server's TOC lies. An alarm, also after a restart", |s, out| out.plain(lazy(s).filter(|l| l.quarantined).count() as u64)),
    row("headstart_shim_layers_quarantined_total", Counter, "layers", "Layers that were found so", |s, out| out.plain(counter(s, |c| c.layers_quarantined.get()))),
    row("headstart_shim_evicted_bytes_total", Counter, "bytes", "Bytes given back to the disk, for the cap or the floor", |s, out| out.plain(counter(s, |c| c.evicted_bytes.get()))),
    row("headstart_shim_unkept_chunks_total", Counter, "chunks", "Chunks that went to their reader without being kept, for want of room", |s, out| out.plain(counter(s, |c| c.unkept_chunks.get()))),
    row("headstart_shim_prefetches_total", Counter, "images", "Images whose start was prefetched by its profile, by how that ended", prefetches)
        .by("outcome", PREFETCHES),
    row("headstart_shim_prefetch_bytes_total", Counter, "bytes", "Bytes of chunks that prefetches received, compressed; also among the fetched", |s, out| out.plain(counter(s, |c| c.prefetch_bytes.get()))),
    row("headstart_shim_prefetch_late_bytes_total", Counter, "bytes", "Of these, of chunks that a reader's own fetch had brought before", |s, out| out.plain(counter(s, |c| c.prefetch_late_bytes.get()))),
    row("headstart_shim_explored_bytes_total", Counter, "bytes", "Bytes of chunks asked for because they lie near reads of a start of which nothing is known, compressed; also among the fetched", |s, out| out.plain(counter(s, |c| c.explored_bytes.get()))),
    row("headstart_shim_traces_total", Counter, "starts", "Starts that servers were told of; failed: no server took it; unsure: not all reads were seen, or none was there", traces)
        .by("outcome", TRACES),
    row("headstart_shim_reads_total", Counter, "reads", "Reads of the kernel, by whether they had to wait for a fetch", reads)
        .by("outcome", READS),
    row("headstart_shim_reads_aside_total", Counter, "reads", "Reads of what is in the cache that waited for this node's disk while others were answered", |s, out| out.plain(counter(s, |c| c.reads_aside.get()))),
    row("headstart_shim_read_bytes_total", Counter, "bytes", "Bytes of those reads, by whether they were all in the cache", |s, out| { out.labelled("outcome", "cached", counter(s, |c| c.hit_bytes.get())); out.labelled("outcome", "fetched", counter(s, |c| c.miss_bytes.get())); })
        .by("outcome", READ_BYTES),
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

fn unavailable(seen: &Seen) -> u64 {
    let shown: HashSet<_> = lazy(seen).map(|l| l.digest).collect();
    let wanted = seen.snapshots.iter().filter_map(|r| Some(r.lazy.as_ref()?.layer));
    let missing: HashSet<_> = wanted.filter(|layer| !shown.contains(layer)).collect();
    missing.len() as u64
}

fn counter(seen: &Seen, of: impl Fn(&Counters) -> u64) -> u64 {
    seen.lazy.as_ref().map_or(0, |l| of(&l.counters))
}

fn fetched(seen: &Seen, out: &mut Samples<'_>) {
    out.labelled("source", "server", counter(seen, |c| c.fetched_bytes.get()));
    out.labelled("source", "original", counter(seen, |c| c.original_bytes.get()));
}

fn rebuilds(seen: &Seen, out: &mut Samples<'_>) {
    let failed = counter(seen, |c| c.original_failures.get());
    let all = counter(seen, |c| c.original_rebuilds.get());
    out.labelled("outcome", "whole", all.saturating_sub(failed));
    out.labelled("outcome", "failed", failed);
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

fn prefetches(seen: &Seen, out: &mut Samples<'_>) {
    let counts = [
        counter(seen, |c| c.prefetches_done.get()),
        counter(seen, |c| c.prefetches_stopped.get()),
        counter(seen, |c| c.prefetches_failed.get()),
    ];
    for (name, count) in PREFETCHES.iter().zip(counts) {
        out.labelled("outcome", name, count);
    }
}

fn traces(seen: &Seen, out: &mut Samples<'_>) {
    let counts = [
        counter(seen, |c| c.traces_posted.get()),
        counter(seen, |c| c.traces_failed.get()),
        counter(seen, |c| c.traces_unsure.get()),
    ];
    for (name, count) in TRACES.iter().zip(counts) {
        out.labelled("outcome", name, count);
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

    /// Each number comes out under its own name.
    #[test]
    fn counters_are_not_mixed_up() {
        let counters = Counters::default();
        let expected = [
            (&counters.fetched_bytes, "fetched_bytes_total{source=\"server\"}"),
            (&counters.original_bytes, "fetched_bytes_total{source=\"original\"}"),
            (&counters.fill_bytes, "fill_bytes_total"),
            (&counters.near_bytes, "near_bytes_total"),
            (&counters.near_chunks, "near_chunks_total"),
            (
                &counters.original_failures,
                "original_rebuilds_total{outcome=\"failed\"}",
            ),
            (&counters.rotten_chunks, "rotten_chunks_total"),
            (&counters.damaged_trees, "damaged_trees_total"),
            (&counters.layers_verified, "layers_verified_total"),
            (&counters.layers_quarantined, "layers_quarantined_total"),
            (&counters.evicted_bytes, "evicted_bytes_total"),
            (&counters.unkept_chunks, "unkept_chunks_total"),
            (&counters.reads_aside, "reads_aside_total"),
            (&counters.hit_bytes, "read_bytes_total{outcome=\"cached\"}"),
            (&counters.miss_bytes, "read_bytes_total{outcome=\"fetched\"}"),
        ];
        for (i, (counter, _)) in expected.iter().enumerate() {
            counter.add(100 + i as u64);
        }
        counters.original_rebuilds.add(1000);
        let failed = counters.original_failures.get();
        let mut lines: Vec<String> = expected
            .iter()
            .map(|(counter, name)| format!("headstart_shim_{name} {}", counter.get()))
            .collect();
        lines.push(format!(
            "headstart_shim_original_rebuilds_total{{outcome=\"whole\"}} {}",
            1000 - failed
        ));
        lines.push("headstart_shim_lent_bytes 99".into());
        let text = crate::metrics::text(&Seen {
            lazy: Some(crate::layers::NodeStatus {
                presentation: "erofs",
                counters: std::sync::Arc::new(counters),
                layers: Vec::new(),
                lent_bytes: 99,
                prefetches: Vec::new(),
            }),
            snapshots: Vec::new(),
            pulls: Default::default(),
            calls: Default::default(),
            process: crate::metrics::process::Process::now(),
            starts: 1,
        });
        for line in lines {
            assert!(text.lines().any(|l| l == line), "{line}");
        }
    }
}
