//! `[telemetry]`: where traces and metrics are sent.
//!
//! In: a table of `server.toml`. Out: [`TelemetryConfig`].
//! Invariant: without an endpoint nothing is sent anywhere; `/metrics` is always there. No secret is in it: headers for
//! the collector come from `OTEL_EXPORTER_OTLP_HEADERS`.
//! Not here: logs ([`super::LogConfig`]).

use std::collections::BTreeMap;

use headstart_telemetry::check_endpoint;
use serde::Deserialize;

/// Where traces and metrics are sent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// An OpenTelemetry collector that speaks OTLP over HTTP with protobuf, without the `/v1/...`:
    /// `http://collector:4318`.
    pub otlp_endpoint: Option<String>,
    pub service_name: String,
    /// Further attributes of the resource, such as `deployment.environment.name`.
    pub resource: BTreeMap<String, String>,
    /// Share of the traces that is sent, from 0 to 1.
    pub trace_ratio: f64,
    /// Whether a client's `traceparent` makes our spans part of its trace, sampled as it says; otherwise it is a link.
    pub trust_traceparent: bool,
    /// Whether upstreams are told the trace. They are strangers, mostly.
    pub propagate_to_upstreams: bool,
    pub metrics_interval_ms: u64,
    /// One export takes at most this long.
    pub export_timeout_ms: u64,
    /// When the server stops, what was not sent yet gets this long.
    pub flush_timeout_ms: u64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            service_name: "headstart-server".into(),
            resource: BTreeMap::new(),
            trace_ratio: 0.1,
            trust_traceparent: false,
            propagate_to_upstreams: false,
            metrics_interval_ms: 30_000,
            export_timeout_ms: 5_000,
            flush_timeout_ms: 3_000,
        }
    }
}

impl TelemetryConfig {
    /// What types cannot say.
    pub(super) fn check(&self) -> Result<(), String> {
        if let Some(endpoint) = &self.otlp_endpoint {
            check_endpoint(endpoint).map_err(|must| format!("otlp_endpoint {must}"))?;
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return Err("trace_ratio must be from 0 to 1".into());
        }
        if self.metrics_interval_ms < 100 || self.export_timeout_ms == 0 {
            return Err("metrics_interval_ms must be at least 100, export_timeout_ms at least 1".into());
        }
        Ok(())
    }
}
