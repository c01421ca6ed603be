//! What happened when during one start, seen from outside.
//!
//! In: the relays' meters, containerd's own events, when the shim saw the first read.
//! Out: a [`Timeline`]: moments, and bytes over time by source, in
//! milliseconds from the beginning.
//! Invariant: watching costs a thread that reads counters every few milliseconds and a process that waits for events; a
//! series keeps only readings that changed, and no more than [`POINTS_MAX`].
//! Not here: drawing ([`super::page`]).

use std::{
    io::{BufRead, BufReader},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::{
    playground::{Result, node::Node, process::Process},
    relay::Meter,
};

const EVERY: Duration = Duration::from_millis(4);
/// A start is seconds; a minute of changes at every reading.
const POINTS_MAX: usize = 15_000;
const EVENTS_MAX: usize = 1_000;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Timeline {
    pub moments: Vec<Moment>,
    pub series: Vec<Series>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Moment {
    pub name: &'static str,
    pub ms: f64,
}

/// Bytes that had come from a source by then.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    pub source: &'static str,
    pub points: Vec<(f64, u64)>,
}

type Samples = Vec<(&'static str, Vec<(Instant, u64)>)>;

/// Watches until it is finished or dropped.
#[derive(Debug)]
pub struct Watch {
    is_over: Arc<AtomicBool>,
    sampler: Option<JoinHandle<Samples>>,
    events: Arc<Mutex<Vec<(Instant, String)>>>,
    /// `ctr events`; ends with the watch.
    _listener: Option<Process>,
}

impl Watch {
    /// `meters`: what is counted, by name of the source.
    pub fn begin(node: &Node, meters: Vec<(&'static str, Meter)>) -> Result<Watch> {
        let mut ctr = node.containerd.ctr();
        ctr.arg("events");
        let mut listener = Process::spawn(&format!("{}-events", node.name()), ctr, node.work(), true)?;
        let events: Arc<Mutex<Vec<(Instant, String)>>> = Arc::default();
        if let Some(stdout) = listener.take_stdout() {
            let events = events.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(std::result::Result::ok) {
                    let mut all = events.lock().unwrap_or_else(PoisonError::into_inner);
                    if all.len() < EVENTS_MAX {
                        all.push((Instant::now(), line));
                    }
                }
            });
        }
        let is_over = Arc::new(AtomicBool::new(false));
        let over = is_over.clone();
        let sampler = std::thread::spawn(move || sample(&meters, &over));
        Ok(Watch {
            is_over,
            sampler: Some(sampler),
            events,
            _listener: Some(listener),
        })
    }

    /// Times are counted from `begun`; the rest is known to whoever measured.
    pub fn finish(
        mut self,
        begun: Instant,
        pulled: Duration,
        ready: Duration,
        first_read: Option<Instant>,
    ) -> Timeline {
        self.is_over.store(true, Ordering::SeqCst);
        let samples = self.sampler.take().and_then(|s| s.join().ok()).unwrap_or_default();
        let ms = |at: Instant| at.saturating_duration_since(begun).as_secs_f64() * 1000.0;
        let first_after = |from: Instant, topic: &str| {
            let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
            events
                .iter()
                .find(|(at, line)| *at >= from && line.contains(topic))
                .map(|(at, _)| *at)
        };
        let pulled_at = begun + pulled;
        let mut moments = vec![Moment {
            name: "pulled",
            ms: ms(pulled_at),
        }];
        // The root file system's snapshot, then its mount in the container's bundle, then the process.
        for (name, topic) in [
            ("snapshot", " /snapshot/prepare "),
            ("mounted", " /tasks/create "),
            ("process", " /tasks/start "),
        ] {
            moments.extend(first_after(pulled_at, topic).map(|at| Moment { name, ms: ms(at) }));
        }
        let ready_ms = (pulled + ready).as_secs_f64() * 1000.0;
        let after_pull = samples
            .iter()
            .filter(|(source, _)| *source == CHUNKS)
            .flat_map(|(_, points)| points)
            .map(|(at, _)| *at)
            .filter(|at| *at >= pulled_at)
            .min();
        moments.extend(after_pull.map(|at| Moment {
            name: "bytes after the pull",
            ms: ms(at),
        }));
        moments.extend(first_read.filter(|at| *at >= begun).map(|at| Moment {
            name: "first read",
            ms: ms(at),
        }));
        moments.push(Moment {
            name: "ready",
            ms: ready_ms,
        });
        // What came late, for whoever goes on, is not part of the start.
        moments.retain(|m| m.ms <= ready_ms);
        moments.sort_by(|a, b| a.ms.total_cmp(&b.ms));
        let series = samples.into_iter().map(|(source, points)| {
            let base = points
                .iter()
                .take_while(|(at, _)| *at <= begun)
                .last()
                .map_or(0, |(_, n)| *n);
            let points = points
                .iter()
                .filter(|(at, _)| *at > begun)
                .map(|(at, n)| (ms(*at), n - base));
            Series {
                source,
                points: points.take_while(|(at, _)| *at <= ready_ms).collect(),
            }
        });
        Timeline {
            moments,
            series: series.filter(|s| !s.points.is_empty()).collect(),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
    }
}

/// The sources by name: what a shim asks a proxy for, and what containerd asks of registries.
pub const CHUNKS: &str = "TOCs and chunks, from the proxy";
pub const MIRROR: &str = "manifests and blobs, from the proxy";
pub const UPSTREAM: &str = "to the proxy, from the upstream";
pub const DIRECT: &str = "to the node, from the registry";

fn sample(meters: &[(&'static str, Meter)], is_over: &AtomicBool) -> Samples {
    let mut samples: Samples = meters
        .iter()
        .map(|(source, meter)| (*source, vec![(Instant::now(), meter.traffic().down_bytes)]))
        .collect();
    while !is_over.load(Ordering::SeqCst) {
        std::thread::sleep(EVERY);
        for ((_, meter), (_, points)) in meters.iter().zip(&mut samples) {
            let bytes = meter.traffic().down_bytes;
            if points.len() < POINTS_MAX && points.last().is_some_and(|(_, last)| *last != bytes) {
                points.push((Instant::now(), bytes));
            }
        }
    }
    samples
}
