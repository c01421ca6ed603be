//! `[[upstreams]]`: one registry that this server may speak to.
//!
//! In: a table of `server.toml`. Out: [`UpstreamConfig`].
//! Invariant: no secret is in it, only where one is.
//! Not here: checks of URLs and names, and reading of secrets (`upstream/`).

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde::Deserialize;

use super::TagsConfig;

/// One registry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// The value of `ns`, and the first path element of path-based mirrors: usually the registry's host, `docker.io`.
    pub name: String,
    /// Where it really is, without `/v2`: `https://registry-1.docker.io`.
    pub url: String,
    /// Mirrors of it, asked in this order while `url` is out of order. They may say yes; their no counts for nothing.
    /// `username` is never shown to them, a docker configuration or a helper is asked for each by its own host.
    /// What a client may see is asked at `url` alone.
    #[serde(default)]
    pub fallback_urls: Vec<String>,
    /// Credentials; anonymous without.
    #[serde(default)]
    pub auth: Option<AuthConfig>,
    /// Hosts, `host` or `host:port`, that may serve as bearer token realm besides the upstream's own host and hosts
    /// below it or below `name`. Credentials are never sent anywhere else.
    #[serde(default)]
    pub token_hosts: Vec<String>,
    /// Hosts that redirects may lead to although their address is private, of this link or of this machine. Not needed
    /// for public addresses, nor when the upstream's own address is of that class. Never get credentials.
    #[serde(default)]
    pub redirect_hosts: Vec<String>,
    /// Addresses of host names, used instead of DNS, as in `/etc/hosts`.
    #[serde(default)]
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Certificates (PEM) trusted besides the system's. Read again when it changes, as the next two.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Our certificate (PEM) for TLS, shown to the upstream's own host only.
    #[serde(default)]
    pub client_cert_file: Option<PathBuf>,
    /// Its key.
    #[serde(default)]
    pub client_key_file: Option<PathBuf>,
    /// Whether the proxies of the environment are used. They resolve names themselves, so addresses behind a name that
    /// goes by a proxy are not checked; those of `NO_PROXY` are.
    #[serde(default)]
    pub proxy: ProxyMode,
    /// Requests sent to it in a second; further ones wait, at most `queue_timeout_ms`. 0 is no limit.
    #[serde(default)]
    pub requests_per_sec_max: u32,
    /// Bytes of blobs fetched from it in a second, over all bodies. 0 is no limit.
    #[serde(default)]
    pub bytes_per_sec_max: u64,
    /// Requests it works on at once, a body being part of its request; further ones wait, at most `queue_timeout_ms`.
    /// 0 is no limit.
    #[serde(default)]
    pub requests_max: usize,
    #[serde(default = "queue_timeout_ms")]
    pub queue_timeout_ms: u64,
    /// Instead of those of `[fetch]`.
    #[serde(default)]
    pub connect_timeout_ms: Option<u64>,
    #[serde(default)]
    pub header_timeout_ms: Option<u64>,
    #[serde(default)]
    pub idle_timeout_ms: Option<u64>,
    /// Never asked; what is here is served.
    #[serde(default)]
    pub offline: bool,
    #[serde(default)]
    pub breaker: BreakerConfig,
    /// Whose cold blobs are held until they were verified.
    #[serde(default)]
    pub hold_until_verified: HoldMode,
    /// How long tags are believed, and what happens when they cannot be confirmed.
    #[serde(default)]
    pub tags: TagsConfig,
}

impl UpstreamConfig {
    /// An anonymous upstream.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            url: url.into(),
            queue_timeout_ms: queue_timeout_ms(),
            ..Self::default()
        }
    }
}

/// Below containerd's 30 s for a head, with time left for the request.
fn queue_timeout_ms() -> u64 {
    10_000
}

/// When nothing of a blob that is not here goes to a client before its digest is verified.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldMode {
    /// Only of a blob that was itself wrong a moment ago, and as long as an answer's head can wait.
    Never,
    /// While the upstream has sent wrong bytes lately.
    #[default]
    Suspect,
    Always,
}

/// Whether proxies are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProxyMode {
    /// No proxy, whatever the environment says.
    #[default]
    None,
    /// `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY` of the environment.
    System,
}

/// When an upstream that fails is left alone.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BreakerConfig {
    /// Failures in a row (no answer in time, no connection, 5xx) after which it is not asked for a while. 0 is never.
    pub failures_max: u32,
    /// For how long; then one request tries, and each failure doubles the time.
    pub open_ms: u64,
    /// Up to this.
    pub open_ms_max: u64,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            // More than the tries of one blob, so that one that cannot be had does not stop the others.
            failures_max: 10,
            open_ms: 5_000,
            open_ms_max: 60_000,
        }
    }
}

/// Credentials for one upstream: sent as Basic, or exchanged for bearer tokens, as the upstream asks. Exactly one of
/// the sources. Files are read again when they change, and whatever there is when it is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuthConfig {
    /// With `password_file` or `password_env`. `<token>` makes the password an OAuth2 refresh token.
    pub username: String,
    /// File whose first line is the password or access token.
    pub password_file: Option<PathBuf>,
    /// Environment variable that holds it.
    pub password_env: Option<String>,
    /// A `config.json` as `docker login` writes it: `auths` (`auth`, `identitytoken`, `registrytoken`), `credHelpers` and
    /// `credsStore`. Looked up by the upstream's host; Docker Hub's is `https://index.docker.io/v1/`.
    pub docker_config_file: Option<PathBuf>,
    /// `NAME` of the program `docker-credential-NAME`: a-z, 0-9 and '-'. It is run as `docker-credential-NAME get`, never
    /// by a shell, with this server's environment.
    pub credential_helper: Option<String>,
    /// Directory of the helpers; without, they are looked for in `PATH`.
    pub helper_dir: Option<PathBuf>,
    /// Time one run of a helper may take; it is killed then.
    pub helper_timeout_ms: u64,
    /// What a helper said is used this long.
    pub helper_fresh_ms: u64,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            username: String::new(),
            password_file: None,
            password_env: None,
            docker_config_file: None,
            credential_helper: None,
            helper_dir: None,
            helper_timeout_ms: 10_000,
            helper_fresh_ms: 300_000,
        }
    }
}
