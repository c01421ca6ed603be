//! `[[upstreams]]`: one registry that this server may speak to.
//!
//! In: a table of `server.toml`. Out: [`UpstreamConfig`].
//! Invariant: no secret is in it, only where one is.
//! Not here: checks of URLs and names, and reading of secrets (`upstream/`).

use std::path::PathBuf;

use serde::Deserialize;

/// One registry.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// The value of `ns`, and the first path element of path-based mirrors: usually the registry's host, `docker.io`.
    pub name: String,
    /// Where it really is, without `/v2`: `https://registry-1.docker.io`.
    pub url: String,
    /// Credentials; anonymous without.
    #[serde(default)]
    pub auth: Option<AuthConfig>,
    /// Hosts, `host` or `host:port`, that may serve as bearer token realm besides the upstream's own host and hosts
    /// below it or below `name`. Credentials are never sent anywhere else.
    #[serde(default)]
    pub token_hosts: Vec<String>,
}

impl UpstreamConfig {
    /// An anonymous upstream.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            auth: None,
            token_hosts: Vec::new(),
        }
    }
}

/// Credentials for one upstream: sent as Basic, or exchanged for bearer tokens, as the upstream asks.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuthConfig {
    pub username: String,
    /// File whose first line is the password or access token.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Environment variable that holds it.
    #[serde(default)]
    pub password_env: Option<String>,
}
