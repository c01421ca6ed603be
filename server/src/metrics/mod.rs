//! Metrics: counters, gauges and histograms, and their text form for `/metrics`.
//!
//! In: plain values from every room. Out: Prometheus text, and whatever further readers are given.
//! Invariant: every name is a row of [`names`], with its unit; label values come from closed sets ([`label`]), so the
//! number of series is bounded.
//! Not here: logs, traces ([`crate::telemetry`]), and any decision.

mod docs;
mod instruments;
pub mod label;
pub mod names;
mod process;
mod record;
mod table;

use std::{fmt, sync::Arc};

use opentelemetry::{KeyValue, metrics::MeterProvider as _};
use opentelemetry_sdk::metrics::{MeterProviderBuilder, SdkMeterProvider};
use prometheus::{Encoder as _, Registry, TextEncoder};

use instruments::Instruments;
pub use label::route;
use names::{Count, Gauge, Level, Seconds, Timing};

/// Every metric; clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    instruments: Instruments,
    provider: SdkMeterProvider,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    pub fn new() -> Self {
        Self::with(SdkMeterProvider::builder())
    }

    /// With what else reads them.
    pub fn with(mut provider: MeterProviderBuilder) -> Self {
        let registry = Registry::new();
        // Our names already carry unit and suffix; the exporter is not to add its own.
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_units()
            .without_counter_suffixes()
            .without_target_info()
            .scope_info_enabled(false)
            .build();
        match exporter {
            Ok(exporter) => provider = provider.with_reader(exporter),
            Err(error) => tracing::warn!(%error, "metrics are off"),
        }
        let provider = provider.build();
        let instruments = Instruments::new(&provider.meter("headstart"));
        Self(Arc::new(Inner {
            registry,
            instruments,
            provider,
        }))
    }

    /// Counts. `values` are those of the metric's labels, in the order of its row.
    pub fn add(&self, what: Count, n: u64, values: &[&str]) {
        let counter = &self.0.instruments.counts[what as usize];
        instruments::with_labels(what.entry(), values, |labels| counter.add(n, labels));
    }

    pub fn add_seconds(&self, what: Seconds, seconds: f64, values: &[&str]) {
        let counter = &self.0.instruments.seconds[what as usize];
        instruments::with_labels(what.entry(), values, |labels| counter.add(seconds, labels));
    }

    /// Counts one more until what is returned is dropped.
    pub fn hold(&self, what: Level, values: &[&str]) -> Held {
        let labels = instruments::with_labels(what.entry(), values, <[KeyValue]>::to_vec);
        self.0.instruments.levels[what as usize].add(1, &labels);
        Held {
            metrics: self.clone(),
            what,
            labels,
        }
    }

    pub fn set(&self, what: Gauge, value: u64, values: &[&str]) {
        let gauge = &self.0.instruments.gauges[what as usize];
        instruments::with_labels(what.entry(), values, |labels| gauge.record(value, labels));
    }

    pub fn time(&self, what: Timing, seconds: f64, values: &[&str]) {
        let histogram = &self.0.instruments.timings[what as usize];
        instruments::with_labels(what.entry(), values, |labels| histogram.record(seconds, labels));
    }

    /// Everything, in the Prometheus text format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.0.registry.gather(), &mut out) {
            tracing::warn!(%error, "metrics cannot be encoded");
        }
        String::from_utf8_lossy(&out).into_owned()
    }

    /// The end: further readers get what they have not got yet, and nothing after that. Blocks for as long as they allow
    /// themselves.
    pub fn shutdown(&self) {
        if let Err(error) = self.0.provider.shutdown() {
            tracing::debug!(%error, "metrics were not flushed");
        }
    }
}

/// One more of something, for as long as this lives.
#[derive(Debug)]
pub struct Held {
    metrics: Metrics,
    what: Level,
    labels: Vec<KeyValue>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.metrics.0.instruments.levels[self.what as usize].add(-1, &self.labels);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::metrics::table::Values;

    #[test]
    fn the_text_has_the_documented_names_and_nothing_added_to_them() {
        let metrics = Metrics::new();
        metrics.served(route::DATA, 7);
        metrics.upstream_request("docker.io", "GET", Some(206));
        metrics.index_rebuilt("opening");
        let text = metrics.render();
        assert!(
            text.contains("headstart_served_bytes_total{route=\"data\"} 7"),
            "{text}"
        );
        assert!(
            text.contains("headstart_upstream_requests_total{method=\"GET\",status=\"2xx\",upstream=\"docker.io\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("headstart_index_rebuilds_total{reason=\"opening\"} 1"),
            "{text}"
        );
    }

    #[test]
    fn counters_are_there_before_they_count() {
        let text = Metrics::new().render();
        for line in [
            "headstart_corruption_total{what=\"upstream_blob\"} 0",
            "headstart_shed_total{reason=\"queue_full\"} 0",
            "headstart_evictions_total{kind=\"layer\",reason=\"age\"} 0",
            "headstart_requests_waiting 0",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        // Whose labels depend on the configuration, or are many, begin with what happens.
        assert!(!text.contains("headstart_requests_total{"), "{text}");
    }

    #[test]
    fn every_metric_is_rendered_under_its_name_and_type_and_no_other_is() {
        let metrics = Metrics::new();
        let values = |entry: &table::Entry| -> Vec<&'static str> {
            let first = |label: &table::Label| match label.values {
                Values::Closed(values) => values[0],
                Values::Upstreams => "u",
            };
            entry.labels.iter().map(first).collect()
        };
        let instruments = &metrics.0.instruments;
        for (entry, one) in Count::TABLE.iter().zip(&instruments.counts) {
            instruments::with_labels(entry, &values(entry), |l| one.add(1, l));
        }
        for (entry, one) in Seconds::TABLE.iter().zip(&instruments.seconds) {
            instruments::with_labels(entry, &values(entry), |l| one.add(1.0, l));
        }
        for (entry, one) in Level::TABLE.iter().zip(&instruments.levels) {
            instruments::with_labels(entry, &values(entry), |l| one.add(1, l));
        }
        for (entry, one) in Gauge::TABLE.iter().zip(&instruments.gauges) {
            instruments::with_labels(entry, &values(entry), |l| one.record(1, l));
        }
        for (entry, one) in Timing::TABLE.iter().zip(&instruments.timings) {
            instruments::with_labels(entry, &values(entry), |l| one.record(1.0, l));
        }
        let text = metrics.render();
        let rendered: HashSet<_> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")).collect();
        let documented: HashSet<_> = names::all()
            .map(|e| format!("{} {}", e.name, e.kind.as_str()))
            .collect();
        assert_eq!(rendered, documented.iter().map(String::as_str).collect());
    }

    #[test]
    fn what_is_held_is_counted_until_it_is_dropped() {
        let metrics = Metrics::new();
        let held = metrics.hold(Level::InProgress, &[route::BLOBS]);
        let line = |n| format!("headstart_requests_in_progress{{route=\"blobs\"}} {n}\n");
        assert!(metrics.render().contains(&line(1)));
        drop(held);
        assert!(metrics.render().contains(&line(0)));
    }
}
