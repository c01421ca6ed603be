//! `[telemetry]`: where traces are sent.
//!
//! In: a table of `shim.toml`. Out: [`TelemetryConfig`]. Invariant: without an endpoint nothing is sent anywhere. No secret is in
//! it: headers for the collector come from `OTEL_EXPORTER_OTLP_HEADERS`.
//! Not here: metrics (`[metrics]`), logs (`[log]`).

use std::collections::BTreeMap;

use headstart_telemetry::check_endpoint;
use serde::Deserialize;

/// Where traces are sent.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// An OpenTelemetry collector that speaks OTLP over HTTP with protobuf, without the `/v1/...`:
    /// `http://collector:4318`.
    pub otlp_endpoint: Option<String>,
    pub service_name: String,
    /// Further attributes of the resource, such as `deployment.environment.name`. The node is `host.name`.
    pub resource: BTreeMap<String, String>,
    /// Share of the traces that is sent, from 0 to 1.
    pub trace_ratio: f64,
    /// Whether a `traceparent` of whoever calls makes our spans part of its trace, sampled as it says; otherwise it is a
    /// link. Only root can call, so this is the default.
    pub trust_traceparent: bool,
    /// Whether servers are told the trace. Registries never are.
    pub propagate_to_servers: bool,
    /// One export takes at most this long.
    pub export_timeout_ms: u64,
    /// When the shim stops, what was not sent yet gets this long; a successor waits for it.
    pub flush_timeout_ms: u64,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            service_name: "headstart-shim".into(),
            resource: BTreeMap::new(),
            trace_ratio: 0.1,
            trust_traceparent: true,
            propagate_to_servers: true,
            export_timeout_ms: 5_000,
            flush_timeout_ms: 1_000,
        }
    }
}

impl TelemetryConfig {
    /// What types cannot say: the key, and what it must be.
    pub(crate) fn check(&self) -> Result<(), (&'static str, &'static str)> {
        if let Some(endpoint) = &self.otlp_endpoint {
            check_endpoint(endpoint).map_err(|must| ("telemetry.otlp_endpoint", must))?;
        }
        if !(0.0..=1.0).contains(&self.trace_ratio) {
            return Err(("telemetry.trace_ratio", "must be from 0 to 1"));
        }
        if self.export_timeout_ms == 0 {
            return Err(("telemetry.export_timeout_ms", "must be at least 1"));
        }
        Ok(())
    }
}
