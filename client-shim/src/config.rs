//! `shim.toml`: everything an operator can set.
//!
//! In: a TOML file, or nothing. Out: a checked [`Config`]. Invariant: an unknown key is an error, every value is within
//! its bounds, and the defaults alone make a working shim beside a server on the same machine.
//! Not here: the settings of the cache and the fetcher, which stand beside their code and are only nested here.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use headstart_layer_format::limits::TOC_WAIT_MS_MAX;
use serde::Deserialize;

use crate::fetch::servers::FetchConfig;
use crate::layers::LazyConfig;
use crate::profile::PrefetchConfig;
use crate::survival::SurvivalConfig;
use crate::telemetry::TelemetryConfig;

/// Longest path of a unix socket: `sun_path` of `sockaddr_un` is 108 bytes with its NUL.
const SOCKET_PATH_LEN_MAX: usize = 107;

/// Characters that overlayfs's option string gives a meaning to.
const OVERLAY_SPECIAL: [char; 3] = [':', ',', '\\'];

/// Largest config file read: far above any real one, small enough to hold.
pub(crate) const CONFIG_SIZE_MAX: u64 = 1 << 20;

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("read {path}: larger than {CONFIG_SIZE_MAX} bytes")]
    TooLarge { path: PathBuf },
    #[error("parse configuration: {0}")]
    Parse(#[from] toml::de::Error),
    #[error("accept {key}: {why}")]
    Value { key: &'static str, why: String },
}

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// State of the snapshotter, the layers and their cache.
    pub root_dir: PathBuf,
    /// Where containerd's proxy plugin connects (gRPC over a unix socket).
    pub socket: PathBuf,
    /// Where `headstart-shim status` asks the running shim; root's alone. Empty: beside `socket`, named after it
    /// (`/run/headstart/shim.sock`: `/run/headstart/shim-admin.sock`).
    pub admin_socket: PathBuf,
    /// Headstart servers in order of preference, for example `http://10.0.0.1:5080`.
    pub servers: Vec<String>,
    pub snapshotter: SnapshotterConfig,
    pub lazy: LazyConfig,
    pub fetch: FetchConfig,
    pub prefetch: PrefetchConfig,
    pub metrics: MetricsConfig,
    pub survival: SurvivalConfig,
    pub telemetry: TelemetryConfig,
    pub log: LogConfig,
    /// The file, as it was read.
    #[serde(skip)]
    pub text: String,
    /// Why another file, that was to be used, is not.
    #[serde(skip)]
    pub refused: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root_dir: "/var/lib/headstart-shim".into(),
            socket: "/run/headstart/shim.sock".into(),
            admin_socket: PathBuf::new(),
            servers: vec!["http://127.0.0.1:5080".into()],
            snapshotter: SnapshotterConfig::default(),
            lazy: LazyConfig::default(),
            fetch: FetchConfig::default(),
            prefetch: PrefetchConfig::default(),
            metrics: MetricsConfig::default(),
            survival: SurvivalConfig::default(),
            telemetry: TelemetryConfig::default(),
            log: LogConfig::default(),
            text: String::new(),
            refused: None,
        }
    }
}

impl Config {
    /// Reads and checks `path`; without one, the defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let read = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(read)?.len() > CONFIG_SIZE_MAX {
            return Err(ConfigError::TooLarge { path: path.to_owned() });
        }
        std::fs::read_to_string(path).map_err(read)?.parse()
    }

    /// Where status and metrics are asked for.
    pub fn admin_socket(&self) -> PathBuf {
        if !self.admin_socket.as_os_str().is_empty() {
            return self.admin_socket.clone();
        }
        let stem = self.socket.file_stem().unwrap_or_default().to_string_lossy();
        self.socket.with_file_name(format!("{stem}-admin.sock"))
    }

    fn check(self) -> Result<Self, ConfigError> {
        let refuse = |key, why: &str| Err(ConfigError::Value { key, why: why.into() });
        let root_dir = self.root_dir.to_string_lossy();
        if !self.root_dir.is_absolute() || root_dir.contains(OVERLAY_SPECIAL) {
            return refuse(
                "root_dir",
                "must be an absolute path without ':', ',' or '\\', which overlayfs options cannot carry",
            );
        }
        if !self.socket.is_absolute() || self.socket.as_os_str().len() > SOCKET_PATH_LEN_MAX {
            return refuse("socket", "must be an absolute path of at most 107 bytes");
        }
        let admin = self.admin_socket();
        if !admin.is_absolute() || admin.as_os_str().len() > SOCKET_PATH_LEN_MAX || admin == self.socket {
            return refuse(
                "admin_socket",
                "must be an absolute path of at most 107 bytes, and not containerd's",
            );
        }
        self.snapshotter.check()?;
        self.metrics.check()?;
        if let Err((key, why)) = self.fetch.check() {
            return refuse(key, why);
        }
        if let Err((key, why)) = self.telemetry.check() {
            return refuse(key, why);
        }
        Ok(self)
    }
}

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut config = toml::from_str::<Config>(text)?.check()?;
        text.clone_into(&mut config.text);
        Ok(config)
    }
}

/// `[snapshotter]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotterConfig {
    /// `false`: behave as an ordinary overlay snapshotter; lazy snapshots that exist stay usable.
    pub lazy: bool,
    /// How long an image's first `Prepare` waits for the server to convert its layers. A pull stands still meanwhile. It waits
    /// on, 300 s at most, while the conversion gets on and is going to be done before an ordinary pull would be.
    pub prepare_wait_ms: u64,
    /// Longest that a ready layer's TOC may take to come and be stored, before the layer is pulled instead.
    pub present_timeout_ms: u64,
    /// How long an image's decision is kept after its last use: long enough to unpack one large layer, so that the
    /// layers above a declined one do not wait again.
    pub decision_idle_ms: u64,
    /// How long "no server answered" is believed: short, for servers come back.
    pub no_server_memory_ms: u64,
    /// Flush an unpacked layer to disk before it counts as committed, so that power loss cannot leave an image whose
    /// files are empty.
    pub sync_on_commit: bool,
}

impl Default for SnapshotterConfig {
    fn default() -> Self {
        Self {
            lazy: true,
            prepare_wait_ms: 20_000,
            present_timeout_ms: 10_000,
            decision_idle_ms: 60_000,
            no_server_memory_ms: 10_000,
            sync_on_commit: true,
        }
    }
}

impl SnapshotterConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let bounds = [
            ("snapshotter.prepare_wait_ms", self.prepare_wait_ms, TOC_WAIT_MS_MAX),
            ("snapshotter.present_timeout_ms", self.present_timeout_ms, 120_000),
            ("snapshotter.decision_idle_ms", self.decision_idle_ms, 3_600_000),
            ("snapshotter.no_server_memory_ms", self.no_server_memory_ms, 3_600_000),
        ];
        for (key, value, max) in bounds {
            if value > max {
                return Err(ConfigError::Value {
                    key,
                    why: format!("{value} is over the limit of {max}"),
                });
            }
        }
        Ok(())
    }
}

/// `[metrics]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// A second place for `GET /metrics`, which the admin socket always has: `unix:/path`, or an address. Whoever may
    /// connect may read numbers; no image's name is among them. Empty: none.
    pub listen: String,
}

impl MetricsConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let listen = &self.listen;
        let fits = match listen.strip_prefix(crate::observe::listen::UNIX) {
            Some(path) => Path::new(path).is_absolute() && path.len() <= SOCKET_PATH_LEN_MAX,
            None => listen.is_empty() || listen.parse::<std::net::SocketAddr>().is_ok(),
        };
        if fits {
            return Ok(());
        }
        Err(ConfigError::Value {
            key: "metrics.listen",
            why: format!("{listen:?} is neither unix:/path nor an IP address with a port"),
        })
    }
}

/// `[log]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// A tracing filter: `info`, or for example `info,headstart_shim::snapshotter=debug`.
    pub level: String,
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_names_parse_and_the_rest_has_defaults() {
        let config: Config = "root_dir = '/r'\nsocket = '/s.sock'\nservers = ['http://a:1', 'http://b:2']"
            .parse()
            .unwrap();
        assert_eq!(config.root_dir, Path::new("/r"));
        assert_eq!(config.socket, Path::new("/s.sock"));
        assert_eq!(config.servers.len(), 2);
        assert_eq!(config.snapshotter.prepare_wait_ms, 20_000);
        assert!("".parse::<Config>().is_ok());
        assert_eq!(config.admin_socket(), Path::new("/s-admin.sock"));
        assert!("[metrics]\nlisten = '[::1]:9'".parse::<Config>().is_ok());
        assert!("[metrics]\nlisten = 'unix:/m'".parse::<Config>().is_ok());
        assert!("[fetch]\nkeep_warm_ms = 0".parse::<Config>().is_ok());
    }

    #[test]
    fn unknown_keys_and_values_out_of_bounds_are_refused() {
        for bad in [
            "rootdir = '/r'",
            "[snapshotter]\nprepare_wait = 1",
            "[snapshotter]\nprepare_wait_ms = 25001",
            "[log]\nformat = 'xml'",
            "[lazy]\nno_such_key = 1",
            "[fetch]\nno_such_key = 1",
            "[fetch]\nkeep_warm_ms = 999",
            "[fetch]\nkeep_warm_ms = 3600001",
            "[survival]\nno_such_key = 1",
            "[survival]\nkeep_with = 'hope'",
            "root_dir = 'relative'",
            "root_dir = '/a:b'",
            "root_dir = '/a,b'",
            "socket = 's'",
            "admin_socket = 's'",
            "socket = '/s'\nadmin_socket = '/s'",
            "[metrics]\nlisten = 'localhost:1'",
            "[metrics]\nlisten = 'unix:relative'",
            "[metrics]\nport = 1",
            "[telemetry]\notlp_endpoint = 'collector:4318'",
            "[telemetry]\notlp_endpoint = 'http://collector:4318x'",
            "[telemetry]\notlp_endpoint = 'http://'",
            "[telemetry]\notlp_endpoint = 'http://me:hunter2@c:4318'",
            "[telemetry]\notlp_endpoint = 'http://c:4318?key=hunter2'",
            "[telemetry]\ntrace_ratio = 1.1",
            "[telemetry]\nexport_timeout_ms = 0",
            "[telemetry]\nno_such_key = 1",
        ] {
            let error = bad.parse::<Config>().map(|_| ()).unwrap_err().to_string();
            // A value may be a secret.
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
