//! When and how a layer's original blob is fetched in place of chunks.
//!
//! In: the `[fetch.original]` table of shim.toml. Out: [`OriginalConfig`]. Invariant: every value has a default that works.
//! Not here: which hosts there are (`hosts_file.rs` reads containerd's own files).

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// The last resort, when no Headstart server has what a reader waits for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OriginalConfig {
    /// `false`: bytes that no server has are an I/O error.
    pub enabled: bool,
    /// containerd's directory of `hosts.toml` files: its `config_path`.
    pub hosts_dir: PathBuf,
    /// A docker `config.json` with credentials for registries that want some; anonymous without.
    pub credentials_file: Option<PathBuf>,
    /// How long servers may all fail a reader before the registry is asked. A server that is restarted should be back by
    /// then: a registry that every node asks at once is no help to anybody.
    pub start_after_ms: u64,
    /// How much longer than otherwise a reader waits for bytes while an original is on its way.
    pub wait_ms_max: u64,
    /// Originals fetched at once, on the whole node.
    pub parallel_max: usize,
}

impl Default for OriginalConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            hosts_dir: "/etc/containerd/certs.d".into(),
            credentials_file: None,
            start_after_ms: 2_000,
            wait_ms_max: 120_000,
            parallel_max: 2,
        }
    }
}

impl OriginalConfig {
    pub(crate) fn start_after(&self) -> Duration {
        Duration::from_millis(self.start_after_ms)
    }

    pub(crate) fn wait_max(&self) -> Duration {
        Duration::from_millis(self.wait_ms_max)
    }
}
