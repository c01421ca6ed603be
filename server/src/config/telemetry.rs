//! `[telemetry]`: where traces and metrics are sent.
//!
//! In: a table of `server.toml`. Out: [`TelemetryConfig`].
//! Invariant: without the table nothing is sent anywhere; `/metrics` is always there.
//! Not here: logs ([`super::LogConfig`]).

use serde::Deserialize;

/// Where traces and metrics are sent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {}
