//! How this node survives restarts.
//!
//! In: the `[survival]` table of shim.toml. Out: [`SurvivalConfig`]. Invariant: the defaults survive.

use serde::Deserialize;

/// Who keeps the mount's descriptor while no shim runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeepWith {
    /// systemd if it started us and keeps descriptors while we are stopped, too (254 and later, with our unit), else a holder
    /// process.
    #[default]
    Auto,
    Systemd,
    Holder,
    /// Nobody: containers get I/O errors from then on.
    Nobody,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SurvivalConfig {
    pub keep_with: KeepWith,
    /// Ask the kernel for requests that a predecessor did not answer, where it can (Linux 6.9). Otherwise, and with `false`,
    /// they are taken from a table in memory.
    pub resend: bool,
}

impl Default for SurvivalConfig {
    fn default() -> Self {
        Self {
            keep_with: KeepWith::default(),
            resend: true,
        }
    }
}
