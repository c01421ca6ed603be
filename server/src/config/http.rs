//! `[http]`: bounds of the listening side.
//!
//! In: a table of `server.toml`. Out: [`HttpConfig`].
//! Invariant: every bound has a default that suits a thousand nodes.
//! Not here: TLS ([`super::TlsConfig`]) and who may read what ([`super::AccessConfig`]).

use serde::Deserialize;

/// Bounds of the listening side.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Open connections; further ones wait in the kernel's backlog.
    pub connections_max: usize,
    /// Requests whose answer has not begun yet; further ones get 503.
    pub requests_max: usize,
    /// A connection that has not sent a whole request head after this is closed; a body gets as long again.
    pub header_timeout_ms: u64,
    /// A client that takes no byte of an answer for this long is cut off.
    pub write_timeout_ms: u64,
    /// After SIGTERM, running answers get this long.
    pub drain_timeout_ms: u64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            requests_max: 2048,
            header_timeout_ms: 10_000,
            write_timeout_ms: 60_000,
            drain_timeout_ms: 10_000,
        }
    }
}
