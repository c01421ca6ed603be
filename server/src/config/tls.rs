//! `[tls]`: the listening side's certificate, and whose client certificates it accepts.
//!
//! In: a table of `server.toml`. Out: [`TlsConfig`].
//! Invariant: paths only; keys are read where they are used.
//! Not here: TLS towards upstreams ([`super::UpstreamConfig`]).

use std::path::PathBuf;

use serde::Deserialize;

/// Time for a handshake: a round trip or two, also on a bad line.
const HANDSHAKE_TIMEOUT_MS: u64 = 10_000;

/// Handshakes at once: each costs about a millisecond of CPU, so more would only wait for cores.
const HANDSHAKES_MAX: usize = 256;

/// The listening side's TLS. All files are read again when they change.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificate chain, the server's own first.
    pub cert_file: PathBuf,
    /// PEM file with its private key.
    pub key_file: PathBuf,
    /// PEM file with the authorities whose client certificates are accepted.
    #[serde(default)]
    pub client_ca_file: Option<PathBuf>,
    #[serde(default)]
    pub client_cert: ClientCertificates,
    /// A connection that has not finished its handshake after this is closed.
    #[serde(default = "handshake_timeout_ms")]
    pub handshake_timeout_ms: u64,
    /// Handshakes that run at once, an eighth of them of one client (at least one); further ones wait, within their time.
    #[serde(default = "handshakes_max")]
    pub handshakes_max: usize,
}

impl TlsConfig {
    /// Without client certificates.
    pub fn new(cert_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        Self {
            cert_file: cert_file.into(),
            key_file: key_file.into(),
            client_ca_file: None,
            client_cert: ClientCertificates::Off,
            handshake_timeout_ms: HANDSHAKE_TIMEOUT_MS,
            handshakes_max: HANDSHAKES_MAX,
        }
    }
}

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    #[default]
    Off,
    /// They may; one that is not signed by `client_ca_file` is refused.
    Optional,
    Required,
}

fn handshake_timeout_ms() -> u64 {
    HANDSHAKE_TIMEOUT_MS
}

fn handshakes_max() -> usize {
    HANDSHAKES_MAX
}
