//! Counters, and their text form for `/metrics`.
//!
//! In: plain values from every room. Out: Prometheus text.
//! Invariant: every name is a constant of this file, with its unit; label values come from closed sets (upstream names
//! of the configuration, our routes, status classes), so the number of series is bounded.
//! Not here: logs, and any decision.

use std::{fmt, sync::Arc};

use opentelemetry::{
    KeyValue,
    metrics::{Counter, Meter, MeterProvider as _},
};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Encoder as _, Registry, TextEncoder};

pub const UPSTREAM_BYTES: &str = "headstart_upstream_bytes_total";
pub const UPSTREAM_REQUESTS: &str = "headstart_upstream_requests_total";
pub const SERVED_BYTES: &str = "headstart_served_bytes_total";
pub const REQUESTS: &str = "headstart_requests_total";
pub const INGEST_LAYERS: &str = "headstart_ingest_layers_total";
pub const INGEST_SECONDS: &str = "headstart_ingest_seconds_total";
pub const INGEST_CPU_SECONDS: &str = "headstart_ingest_cpu_seconds_total";
pub const INGEST_BYTES: &str = "headstart_ingest_bytes_total";
pub const CORRUPTION: &str = "headstart_corruption_total";
pub const INDEX_REBUILDS: &str = "headstart_index_rebuilds_total";

/// Values of the `route` label.
pub mod route {
    pub const BASE: &str = "base";
    pub const BLOBS: &str = "blobs";
    pub const MANIFESTS: &str = "manifests";
    pub const TOC: &str = "toc";
    pub const DATA: &str = "data";
    pub const CHUNKS: &str = "chunks";
    pub const OTHER: &str = "other";
}

/// Every counter; clones share them.
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    registry: Registry,
    upstream_bytes: Counter<u64>,
    upstream_requests: Counter<u64>,
    served_bytes: Counter<u64>,
    requests: Counter<u64>,
    ingest_layers: Counter<u64>,
    ingest_seconds: Counter<f64>,
    ingest_cpu_seconds: Counter<f64>,
    ingest_bytes: Counter<u64>,
    corruption: Counter<u64>,
    index_rebuilds: Counter<u64>,
    _provider: SdkMeterProvider,
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
        let registry = Registry::new();
        let mut provider = SdkMeterProvider::builder();
        // The names above already carry unit and suffix; the exporter is not to add its own.
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
        let meter = provider.meter("headstart");
        let count = |name: &'static str, what: &'static str| counter(&meter, name, what);
        let seconds = |name: &'static str, what: &'static str| meter.f64_counter(name).with_description(what).build();
        Self(Arc::new(Inner {
            registry,
            upstream_bytes: count(UPSTREAM_BYTES, "Body bytes received from upstreams"),
            upstream_requests: count(UPSTREAM_REQUESTS, "Requests sent to upstreams"),
            served_bytes: count(SERVED_BYTES, "Body bytes handed to clients"),
            requests: count(REQUESTS, "Requests answered"),
            ingest_layers: count(INGEST_LAYERS, "Conversions ended, by outcome"),
            ingest_seconds: seconds(INGEST_SECONDS, "Wall time spent in conversions"),
            ingest_cpu_seconds: seconds(INGEST_CPU_SECONDS, "CPU time spent in conversions"),
            ingest_bytes: count(INGEST_BYTES, "Bytes through conversions, by kind"),
            corruption: count(CORRUPTION, "Bytes that did not match their digest, treated as a miss"),
            index_rebuilds: count(INDEX_REBUILDS, "Times the index was rebuilt from packs"),
            _provider: provider,
        }))
    }

    /// Body bytes that arrived from an upstream.
    pub fn upstream_bytes(&self, upstream: &str, bytes: u64) {
        self.0
            .upstream_bytes
            .add(bytes, &[KeyValue::new("upstream", upstream.to_owned())]);
    }

    /// A request to an upstream ended with this status, or with none.
    pub fn upstream_request(&self, upstream: &str, method: &'static str, status: Option<u16>) {
        self.0.upstream_requests.add(
            1,
            &[
                KeyValue::new("upstream", upstream.to_owned()),
                KeyValue::new("method", method),
                KeyValue::new("status", status.map_or("none", status_class)),
            ],
        );
    }

    /// Body bytes handed to a client.
    pub fn served(&self, route: &'static str, bytes: u64) {
        self.0.served_bytes.add(bytes, &[KeyValue::new("route", route)]);
    }

    /// A request was answered.
    pub fn request(&self, route: &'static str, status: u16) {
        self.0.requests.add(
            1,
            &[
                KeyValue::new("route", route),
                KeyValue::new("status", status_class(status)),
            ],
        );
    }

    /// A conversion ended: `ready`, `refused`, `failed`.
    pub fn ingest_layer(&self, outcome: &'static str) {
        self.0.ingest_layers.add(1, &[KeyValue::new("outcome", outcome)]);
    }

    /// Time of one conversion.
    pub fn ingest_seconds(&self, wall: f64, cpu: f64) {
        self.0.ingest_seconds.add(wall, &[]);
        self.0.ingest_cpu_seconds.add(cpu, &[]);
    }

    /// `compressed`, `tar`, `new_chunks`, `reused_chunks`.
    pub fn ingest_bytes(&self, kind: &'static str, bytes: u64) {
        self.0.ingest_bytes.add(bytes, &[KeyValue::new("kind", kind)]);
    }

    /// Something did not match its digest: `upstream_blob`, `upstream_manifest`, `original`, `chunk`, `toc`, ...
    pub fn corruption(&self, what: &'static str) {
        self.0.corruption.add(1, &[KeyValue::new("what", what)]);
    }

    pub fn index_rebuilt(&self) {
        self.0.index_rebuilds.add(1, &[]);
    }

    /// Everything, in the Prometheus text format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.0.registry.gather(), &mut out) {
            tracing::warn!(%error, "metrics cannot be encoded");
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}

fn counter(meter: &Meter, name: &'static str, what: &'static str) -> Counter<u64> {
    meter.u64_counter(name).with_description(what).build()
}

fn status_class(status: u16) -> &'static str {
    match status {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_documented_names_and_nothing_added_to_them() {
        let metrics = Metrics::new();
        metrics.served(route::DATA, 7);
        metrics.upstream_request("docker.io", "GET", Some(206));
        metrics.index_rebuilt();
        let text = metrics.render();
        assert!(
            text.contains("headstart_served_bytes_total{route=\"data\"} 7"),
            "{text}"
        );
        assert!(
            text.contains("headstart_upstream_requests_total{method=\"GET\",status=\"2xx\",upstream=\"docker.io\"} 1"),
            "{text}"
        );
        assert!(text.contains("headstart_index_rebuilds_total 1"), "{text}");
    }
}
