//! The server's configuration: `server.toml`.
//!
//! In: TOML text, or nothing. Out: a [`Config`] that was checked as a whole.
//! Invariant: an unknown key is an error, so a misspelt limit never silently becomes the default; passwords come only
//! from files or the environment and are not part of this type.
//! Not here: the conversion budgets ([`crate::ingest::IngestConfig`]) and reading of the secrets
//! ([`crate::upstream::auth`]).

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::ingest::IngestConfig;

/// Public registries that a server without `[[upstreams]]` mirrors; none of them needs credentials to be useful.
const PUBLIC_UPSTREAMS: [(&str, &str); 4] = [
    ("docker.io", "https://registry-1.docker.io"),
    ("ghcr.io", "https://ghcr.io"),
    ("quay.io", "https://quay.io"),
    ("registry.k8s.io", "https://registry.k8s.io"),
];

/// A configuration file has at most this many bytes; a larger one is the wrong file.
const CONFIG_SIZE_MAX: u64 = 1 << 20;

/// Half of Tokio's threads for blocking work: a fetch keeps one to its end, and every other read of the disk needs one.
const FETCHES_MAX: usize = 256;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read configuration {path}: {error}")]
    Read { path: PathBuf, error: std::io::Error },
    #[error("read configuration {0}: it is over 1 MiB")]
    TooLarge(PathBuf),
    #[error("parse configuration: {0}")]
    Parse(#[from] toml::de::Error),
    #[error("use the configuration: {0}")]
    Invalid(String),
}

/// `server.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port to listen on.
    pub listen: SocketAddr,
    /// Everything the server keeps is below this directory.
    pub data_dir: PathBuf,
    /// Upstream for requests that carry neither `ns` nor a known first path element.
    #[serde(default = "none")]
    pub default_upstream: Option<String>,
    /// The closed set of registries this server may speak to. Left out: the public ones.
    #[serde(default = "Vec::new")]
    pub upstreams: Vec<UpstreamConfig>,
    pub http: HttpConfig,
    pub fetch: FetchConfig,
    pub log: LogConfig,
    pub ingest: IngestConfig,
}

fn none() -> Option<String> {
    None
}

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

/// Bounds of the fetching side.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FetchConfig {
    pub connect_timeout_ms: u64,
    /// From a request to the head of its answer. Below containerd's 30 s, so that our answer reaches it.
    pub header_timeout_ms: u64,
    /// An upstream body that brings no byte for this long is given up and resumed.
    pub idle_timeout_ms: u64,
    /// Tries of one blob in a row that bring no new byte.
    pub tries_max: u32,
    /// Blobs fetched from upstreams at once, each with a thread that writes; further ones wait. At most 256.
    pub blobs_max: usize,
    /// Largest blob that is fetched.
    pub blob_size_max: u64,
    /// Largest manifest. The distribution specification asks for at least 4 MiB.
    pub manifest_size_max: u64,
    /// A tag confirmed by the upstream less than this ago is answered without asking again. 0 asks every time.
    pub tag_fresh_ms: u64,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            connect_timeout_ms: 5_000,
            header_timeout_ms: 20_000,
            idle_timeout_ms: 30_000,
            tries_max: 5,
            blobs_max: 64,
            blob_size_max: 256 << 30,
            manifest_size_max: 4 << 20,
            tag_fresh_ms: 0,
        }
    }
}

/// What is written to standard error.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    pub format: LogFormat,
    /// In the syntax of `RUST_LOG`, which wins when it is set.
    pub filter: String,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            format: LogFormat::Human,
            filter: "info".into(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Human,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 5080)),
            data_dir: PathBuf::from("/var/lib/headstart-server"),
            default_upstream: Some(PUBLIC_UPSTREAMS[0].0.into()),
            upstreams: PUBLIC_UPSTREAMS
                .iter()
                .map(|(name, url)| UpstreamConfig::new(*name, *url))
                .collect(),
            http: HttpConfig::default(),
            fetch: FetchConfig::default(),
            log: LogConfig::default(),
            ingest: IngestConfig::default(),
        }
    }
}

impl Config {
    /// The file's configuration, or the defaults when there is no file.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let read = |error| ConfigError::Read {
            path: path.to_owned(),
            error,
        };
        if std::fs::metadata(path).map_err(read)?.len() > CONFIG_SIZE_MAX {
            return Err(ConfigError::TooLarge(path.to_owned()));
        }
        Self::parse(&std::fs::read_to_string(path).map_err(read)?)
    }

    /// Parses and checks. A text without `[[upstreams]]` gets the public ones, with Docker Hub as default.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text)?;
        if config.upstreams.is_empty() {
            let public = Self::default();
            config.upstreams = public.upstreams;
            config.default_upstream = config.default_upstream.or(public.default_upstream);
        }
        config.check()?;
        Ok(config)
    }

    /// What types cannot say. Upstream URLs and names are checked where they are used ([`crate::upstream::Upstreams`]).
    fn check(&self) -> Result<(), ConfigError> {
        let bad = |what: &str| Err(ConfigError::Invalid(what.into()));
        if self.data_dir.as_os_str().is_empty() {
            return bad("data_dir is empty");
        }
        if self.http.connections_max == 0 || self.http.requests_max == 0 || self.fetch.blobs_max == 0 {
            return bad("connections_max, requests_max and blobs_max must be at least 1");
        }
        if self.fetch.blobs_max > FETCHES_MAX {
            return bad("blobs_max must be at most 256");
        }
        if self.fetch.tries_max == 0 {
            return bad("tries_max must be at least 1");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stable_names_parse_and_unknown_ones_do_not() {
        let config = Config::parse(
            r#"
            listen = "0.0.0.0:5000"
            data_dir = "/d"
            default_upstream = "docker.io"
            [[upstreams]]
            name = "docker.io"
            url = "https://registry-1.docker.io"
            token_hosts = ["auth.docker.io"]
            [upstreams.auth]
            username = "u"
            password_env = "P"
            [[upstreams]]
            name = "local"
            url = "http://127.0.0.1:5000"
            "#,
        )
        .unwrap();
        assert_eq!(config.upstreams.len(), 2);
        assert_eq!(config.upstreams[0].auth.as_ref().unwrap().username, "u");
        assert!(config.upstreams[1].auth.is_none());
        for bad in [
            "listn = \"x\"",
            "[http]\nfoo = 1",
            "[fetch]\nblobs_max = 257",
            "[[upstreams]]\nname=\"a\"\nurl=\"b\"\npassword=\"c\"",
        ] {
            assert!(Config::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn without_upstreams_the_public_ones_are_used_and_only_then_with_a_default() {
        assert_eq!(
            Config::parse("").unwrap().default_upstream.as_deref(),
            Some("docker.io")
        );
        let one = "[[upstreams]]\nname = \"a\"\nurl = \"http://b\"";
        assert_eq!(Config::parse(one).unwrap().default_upstream, None);
    }
}
