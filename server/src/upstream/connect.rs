//! The two HTTP clients of an origin: one for itself, one for where it leads us.
//!
//! In: certificates' files, time-outs, names. Out: clients, made anew when a file has changed.
//! Invariant: our certificate is shown to the own origin only; names that answers bring are looked up by the resolver
//! that checks addresses. No proxy unless the operator said so, and no redirect is followed here.
//! Not here: requests ([`super::transport`]).

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, RwLock},
    time::{Duration, Instant},
};

use reqwest::{Certificate, Client, Identity};

use super::{
    dial::{self, Dial},
    stamp::Stamp,
};
use crate::config::{FetchConfig, ProxyMode, UpstreamConfig};

/// Files are looked at this often, at most.
const LOOK_AFTER: Duration = Duration::from_secs(5);

/// A file of certificates is at most this large: the bundles of distributions have some 300 KiB.
const FILE_SIZE_MAX: u64 = 4 << 20;

/// Where the environment names proxies.
const PROXY_VARIABLES: [&str; 6] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Time-outs of one upstream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) connect: Duration,
    pub(super) header: Duration,
    pub(super) idle: Duration,
}

impl Timeouts {
    pub(super) fn new(config: &UpstreamConfig, fetch: &FetchConfig) -> Self {
        let of = |own: Option<u64>, general: u64| Duration::from_millis(own.unwrap_or(general));
        Self {
            connect: of(config.connect_timeout_ms, fetch.connect_timeout_ms),
            header: of(config.header_timeout_ms, fetch.header_timeout_ms),
            idle: of(config.idle_timeout_ms, fetch.idle_timeout_ms),
        }
    }
}

/// Hosts of the proxies that are used.
pub(super) fn proxies(config: &UpstreamConfig) -> HashSet<String> {
    match config.proxy {
        ProxyMode::None => HashSet::new(),
        ProxyMode::System => {
            let of = |name: &&str| std::env::var(name).ok();
            dial::proxies_of(PROXY_VARIABLES.iter().filter_map(of))
        }
    }
}

/// Both clients.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) own: Client,
    pub(super) away: Client,
}

/// Clients that follow their files.
#[derive(Debug)]
pub(super) struct Connect {
    recipe: Recipe,
    pair: RwLock<Arc<Pair>>,
    seen: Mutex<(Instant, Vec<Stamp>)>,
}

#[derive(Debug)]
struct Recipe {
    dial: Dial,
    timeouts: Timeouts,
    proxy: ProxyMode,
    ca_file: Option<PathBuf>,
    client_files: Option<(PathBuf, PathBuf)>,
}

impl Connect {
    pub(super) fn new(config: &UpstreamConfig, timeouts: Timeouts, dial: Dial) -> Result<Self, String> {
        let client_files = match (&config.client_cert_file, &config.client_key_file) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            _ => return Err("client_cert_file and client_key_file need each other".into()),
        };
        let recipe = Recipe {
            dial,
            timeouts,
            proxy: config.proxy,
            ca_file: config.ca_file.clone(),
            client_files,
        };
        let stamps = recipe.stamps();
        let pair = recipe.make()?;
        Ok(Self {
            recipe,
            pair: RwLock::new(Arc::new(pair)),
            seen: Mutex::new((Instant::now(), stamps)),
        })
    }

    pub(super) fn pair(&self) -> Arc<Pair> {
        if self.recipe.has_files() {
            self.look();
        }
        self.pair.read().unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Makes new clients if a file has changed. A file that is not there or wrong leaves the clients as they were, until
    /// it changes again.
    fn look(&self) {
        let Ok(mut seen) = self.seen.try_lock() else { return };
        if seen.0.elapsed() < LOOK_AFTER {
            return;
        }
        let stamps = self.recipe.stamps();
        seen.0 = Instant::now();
        if stamps == seen.1 {
            return;
        }
        seen.1 = stamps;
        match self.recipe.make() {
            Ok(pair) => *self.pair.write().unwrap_or_else(|e| e.into_inner()) = Arc::new(pair),
            Err(error) => tracing::warn!(error, "new certificates are not used"),
        }
    }
}

impl Recipe {
    fn has_files(&self) -> bool {
        self.ca_file.is_some() || self.client_files.is_some()
    }

    fn stamps(&self) -> Vec<Stamp> {
        let client = self.client_files.iter().flat_map(|(cert, key)| [cert, key]);
        self.ca_file.iter().chain(client).map(|file| Stamp::of(file)).collect()
    }

    fn make(&self) -> Result<Pair, String> {
        let basis = || {
            let mut builder = Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(self.timeouts.connect)
                .read_timeout(self.timeouts.idle)
                .user_agent(concat!("headstart-server/", env!("CARGO_PKG_VERSION")));
            if self.proxy == ProxyMode::None {
                builder = builder.no_proxy();
            }
            if let Some(file) = &self.ca_file {
                let wrong = |e: reqwest::Error| format!("ca_file {}: {e}", file.display());
                let certificates = Certificate::from_pem_bundle(&read(file)?).map_err(wrong)?;
                if certificates.is_empty() {
                    return Err(format!("ca_file {}: no certificate in it", file.display()));
                }
                builder = builder.tls_certs_merge(certificates);
            }
            Ok::<_, String>(builder)
        };
        let mut own = basis()?.dns_resolver(self.dial.own());
        // With a proxy too: hosts that `NO_PROXY` excepts are often just those inside.
        let away = basis()?.dns_resolver(self.dial.away());
        if let Some((cert, key)) = &self.client_files {
            let mut pem = read(cert)?;
            pem.push(b'\n');
            pem.extend(read(key)?);
            let identity = Identity::from_pem(&pem).map_err(|_| {
                let (cert, key) = (cert.display(), key.display());
                format!("client_cert_file {cert}, client_key_file {key}: no certificate with its key")
            })?;
            own = own.identity(identity);
        }
        let failed = |e: reqwest::Error| format!("no HTTP client: {e}");
        Ok(Pair {
            own: own.build().map_err(failed)?,
            away: away.build().map_err(failed)?,
        })
    }
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    super::stamp::read_bounded(file, FILE_SIZE_MAX)
}
