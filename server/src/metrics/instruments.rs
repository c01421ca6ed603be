//! The instruments behind the tables.
//!
//! In: a meter. Out: one instrument a row, indexed like the table.
//! Invariant: a label value outside its closed set is recorded as `other` (and is an error in tests), so what a client
//! sends never becomes a series.
//! Not here: names ([`super::names`]).

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge as OtelGauge, Histogram, Meter, UpDownCounter},
};

use super::{
    names::{Count, Gauge, Level, Process, ProcessTotal, Seconds, Timing},
    process,
    table::{Entry, Label, Values},
};

/// Upper bounds of the histograms, in seconds: a cached manifest takes a millisecond, a large blob on a slow line minutes.
const SECONDS: [f64; 14] = [
    0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
];

/// Labels of one metric, at most.
const LABELS_MAX: usize = 3;

/// Series of one counter that are shown before anything has happened.
const ZEROS_MAX: usize = 32;

pub struct Instruments {
    pub counts: Vec<Counter<u64>>,
    pub seconds: Vec<Counter<f64>>,
    pub levels: Vec<UpDownCounter<i64>>,
    pub gauges: Vec<OtelGauge<u64>>,
    pub timings: Vec<Histogram<f64>>,
}

impl Instruments {
    pub fn new(meter: &Meter) -> Self {
        for (one, read) in [
            (Process::Memory, process::resident_bytes as fn() -> Option<f64>),
            (Process::Files, process::open_files),
            (Process::Threads, process::threads),
            (Process::Start, process::start_seconds),
        ] {
            let entry = one.entry();
            let observe = meter.f64_observable_gauge(entry.name).with_unit(entry.unit);
            observe
                .with_description(entry.help)
                .with_callback(move |observer| {
                    if let Some(value) = read() {
                        observer.observe(value, &[]);
                    }
                })
                .build();
        }
        let cpu = ProcessTotal::Cpu.entry();
        meter
            .f64_observable_counter(cpu.name)
            .with_description(cpu.help)
            .with_unit(cpu.unit)
            .with_callback(|observer| {
                if let Some(seconds) = process::cpu_seconds() {
                    observer.observe(seconds, &[]);
                }
            })
            .build();
        let each = |table: &'static [Entry]| table.iter().map(|e| (e.name, e.help, e.unit));
        let instruments = Self {
            counts: each(Count::TABLE)
                .map(|(n, h, u)| meter.u64_counter(n).with_description(h).with_unit(u).build())
                .collect(),
            seconds: each(Seconds::TABLE)
                .map(|(n, h, u)| meter.f64_counter(n).with_description(h).with_unit(u).build())
                .collect(),
            levels: each(Level::TABLE)
                .map(|(n, h, u)| meter.i64_up_down_counter(n).with_description(h).with_unit(u).build())
                .collect(),
            gauges: each(Gauge::TABLE)
                .map(|(n, h, u)| meter.u64_gauge(n).with_description(h).with_unit(u).build())
                .collect(),
            timings: each(Timing::TABLE)
                .map(|(n, h, u)| {
                    let histogram = meter.f64_histogram(n).with_description(h).with_unit(u);
                    histogram.with_boundaries(SECONDS.to_vec()).build()
                })
                .collect(),
        };
        instruments.begin_at_zero();
        instruments
    }

    /// Counters are there before they first count: whoever watches for a rise would otherwise not see the first.
    fn begin_at_zero(&self) {
        for (counter, entry) in self.counts.iter().zip(Count::TABLE) {
            known_series(entry).iter().for_each(|labels| counter.add(0, labels));
        }
        for (counter, entry) in self.seconds.iter().zip(Seconds::TABLE) {
            known_series(entry).iter().for_each(|labels| counter.add(0.0, labels));
        }
        for (level, entry) in self.levels.iter().zip(Level::TABLE) {
            known_series(entry).iter().for_each(|labels| level.add(0, labels));
        }
    }
}

/// Every combination of a metric's labels whose values are all known beforehand, [`ZEROS_MAX`] at most; none if there are more.
fn known_series(entry: &'static Entry) -> Vec<Vec<KeyValue>> {
    let mut series = vec![Vec::new()];
    for label in entry.labels {
        let Values::Closed(values) = label.values else {
            return Vec::new();
        };
        let longer = |start: &Vec<KeyValue>| {
            let start = start.clone();
            values.iter().map(move |value| {
                let mut series = start.clone();
                series.push(KeyValue::new(label.key, *value));
                series
            })
        };
        series = series.iter().flat_map(longer).collect();
    }
    match series.len() > ZEROS_MAX {
        true => Vec::new(),
        false => series,
    }
}

/// The labels of one recording, without an allocation for closed sets.
pub fn with_labels<T>(entry: &'static Entry, values: &[&str], record: impl FnOnce(&[KeyValue]) -> T) -> T {
    debug_assert_eq!(entry.labels.len(), values.len(), "labels of {}", entry.name);
    debug_assert!(values.len() <= LABELS_MAX, "labels of {}", entry.name);
    let mut pairs = entry
        .labels
        .iter()
        .zip(values)
        .map(|(label, value)| pair(entry, label, value));
    match (pairs.next(), pairs.next(), pairs.next()) {
        (Some(a), Some(b), Some(c)) => record(&[a, b, c]),
        (Some(a), Some(b), None) => record(&[a, b]),
        (Some(a), None, _) => record(&[a]),
        (None, ..) => record(&[]),
    }
}

fn pair(entry: &Entry, label: &'static Label, value: &str) -> KeyValue {
    match label.values {
        Values::Upstreams => KeyValue::new(label.key, value.to_owned()),
        Values::Closed(values) => {
            let known = values.iter().find(|known| **known == value).copied();
            debug_assert!(
                known.is_some(),
                "{value:?} is no documented {} of {}",
                label.key,
                entry.name
            );
            KeyValue::new(label.key, known.unwrap_or("other"))
        }
    }
}
