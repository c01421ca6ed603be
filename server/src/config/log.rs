//! `[log]`: what is written to standard error.
//!
//! In: a table of `server.toml`. Out: [`LogConfig`].
//! Invariant: logs go to standard error, never to a file of ours.
//! Not here: traces and metrics ([`super::TelemetryConfig`]).

use serde::Deserialize;
use tracing_subscriber::EnvFilter;

/// What is written to standard error.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    pub format: LogFormat,
    /// In the syntax of `RUST_LOG`, which wins when it is set.
    pub filter: String,
    /// Which requests get a line of their own, at level `info` and target `headstart_server::access`.
    pub access: AccessLog,
    /// Lines of level `info` and above that one place in the code writes in a second; how many more there were is logged
    /// every ten seconds. With `access = "all"`, lines of requests are not bounded. 0: nothing is.
    pub lines_per_sec_max: u32,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Human,
            filter: "info".into(),
            access: AccessLog::Errors,
            lines_per_sec_max: 100,
        }
    }
}

impl LogConfig {
    /// What types cannot say.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        match EnvFilter::builder().parse(&self.filter) {
            Ok(_) => Ok(()),
            Err(_) => Err("log.filter is no filter, such as \"info\" or \"info,headstart_server::read=debug\""),
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
