//! `[log]`: what is written to standard error.
//!
//! In: a table of `server.toml`. Out: [`LogConfig`].
//! Invariant: logs go to standard error, never to a file of ours.
//! Not here: traces and metrics ([`super::TelemetryConfig`]).

use serde::Deserialize;

/// What is written to standard error.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    pub format: LogFormat,
    /// In the syntax of `RUST_LOG`, which wins when it is set.
    pub filter: String,
    /// Which requests get a line of their own, at level `info` and target `headstart_server::access`.
    pub access: AccessLog,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Human,
            filter: "info".into(),
            access: AccessLog::Errors,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Human,
    Json,
}

/// Which requests get a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    Off,
    /// Those that ended with a status of 400 or more, or before their answer was out.
    Errors,
    /// Every one; a few microseconds each.
    All,
}
