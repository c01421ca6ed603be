//! The server's configuration: `server.toml`.
//!
//! In: TOML text, or nothing. Out: a [`Config`] that was checked as a whole.
//! Invariant: an unknown key is an error, so a misspelt limit never silently becomes the default; passwords come only
//! from files or the environment and are not part of this type. Each table of the file is one file here.
//! Not here: the conversion budgets ([`crate::ingest::IngestConfig`]) and reading of the secrets
//! (`upstream/`).

mod access;
mod cache;
mod fetch;
mod http;
mod log;
mod network;
mod profile;
mod scrub;
mod tags;
mod telemetry;
mod tls;
mod upstream;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use serde::Deserialize;

pub use self::{
    access::{AccessConfig, AccessMethod, AccessMode, AccessRule, ChallengePing},
    cache::{Budgets, CacheConfig},
    fetch::FetchConfig,
    http::HttpConfig,
    log::{AccessLog, LogConfig, LogFormat},
    network::Network,
    profile::ProfileConfig,
    scrub::ScrubConfig,
    tags::{TagPolicy, TagsConfig},
    telemetry::TelemetryConfig,
    tls::{ClientCertificates, TlsConfig},
    upstream::{AuthConfig, BreakerConfig, HoldMode, ProxyMode, UpstreamConfig},
};
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
    #[error("parse configuration, line {line}: {reason}")]
    Parse { line: usize, reason: String },
    #[error("use the configuration: {0}")]
    Invalid(String),
}

impl ConfigError {
    /// Without the line itself, which the parser would print: somebody who writes a password where none belongs gets an
    /// error, and errors are logged. For the same reason without strings that are not what is expected.
    fn parse(text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..start].iter().filter(|&&byte| byte == b'\n').count() + 1;
        let message = error.message();
        let reason = match (message.split_once("string \""), message.rsplit_once("\", expected ")) {
            (Some((before, _)), Some((_, expected))) => format!("{before}string, expected {expected}"),
            _ => message.to_owned(),
        };
        Self::Parse { line, reason }
    }
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
    /// TLS of the listening side; plain HTTP without.
    pub tls: Option<TlsConfig>,
    /// Who may read what; everybody everything without.
    pub access: AccessConfig,
    pub fetch: FetchConfig,
    /// How much is kept, and for how long.
    pub cache: CacheConfig,
    /// How often it is read again.
    pub scrub: ScrubConfig,
    /// What is learnt of starts.
    pub profile: ProfileConfig,
    pub log: LogConfig,
    pub telemetry: TelemetryConfig,
    pub ingest: IngestConfig,
}

fn none() -> Option<String> {
    None
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
            tls: None,
            access: AccessConfig::default(),
            fetch: FetchConfig::default(),
            cache: CacheConfig::default(),
            scrub: ScrubConfig::default(),
            profile: ProfileConfig::default(),
            log: LogConfig::default(),
            telemetry: TelemetryConfig::default(),
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
        let mut config: Self = toml::from_str(text).map_err(|error| ConfigError::parse(text, &error))?;
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
        if let Err(what) = self.http.check() {
            return bad(what);
        }
        if let Err(what) = self.log.check() {
            return bad(what);
        }
        if let Err(what) = self.telemetry.check() {
            return bad(&what);
        }
        if let Err(what) = self.fetch.check() {
            return bad(what);
        }
        if let Err(what) = self.profile.check() {
            return bad(what);
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
            "[fetch]\nblobs_max = 0",
            "[fetch]\nranges_max = 0",
            "[fetch]\nranges_max = 9223372036854775807",
            "[fetch]\npass_through_max = 0",
            "[fetch]\nparallel_ranges = 0",
            "[fetch]\nparallel_ranges = 65",
            "[fetch]\nturn_wait_ms = 600001",
            "[fetch]\nmin_rate_window_ms = 0",
            "[fetch]\nnegative_ttl_ms = 60001",
            "[fetch]\ntries_max = 0",
            "[[upstreams]]\nname=\"a\"\nurl=\"b\"\npassword=\"c\"",
        ] {
            assert!(Config::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_names_the_line_and_the_key_and_shows_no_value() {
        let upstream = "[[upstreams]]\nname = \"a\"\nurl = \"http://b\"\n";
        for (wrong, shown) in [
            ("auth = \"hunter2\"", "struct AuthConfig"),
            ("password = \"hunter2\"", "password"),
            ("requests_max = \"hunter2\"", "usize"),
            ("password \"hunter2\"", ""),
            ("[upstreams.auth]\npassword = \"hunter2\"", "password"),
        ] {
            let error = Config::parse(&format!("{upstream}{wrong}\n")).unwrap_err().to_string();
            assert!(error.contains("line 4") || error.contains("line 5"), "{error}");
            assert!(error.contains(shown), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = Config::parse("[telemetry]\notlp_endpoint = \"http://me:hunter2@c:4318\"").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        assert!(Config::parse("[log]\nfilter = \"a=b=c\"").is_err());
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
