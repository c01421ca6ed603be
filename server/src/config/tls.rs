//! `[tls]`: the listening side's certificate, and whose client certificates it accepts.
//!
//! In: a table of `server.toml`. Out: [`TlsConfig`].
//! Invariant: paths only; keys are read where they are used.
//! Not here: TLS towards upstreams ([`super::UpstreamConfig`]).

use std::path::PathBuf;

use serde::Deserialize;

/// The listening side's TLS.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsConfig {
    /// PEM file with the certificate chain, the server's own first.
    pub cert_file: PathBuf,
    /// PEM file with its private key.
    pub key_file: PathBuf,
}
