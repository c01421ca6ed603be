//! How the node says who it is, and whom it believes to be its servers.
//!
//! In: the `[fetch.identity]` table. Out: an HTTP client, and the `Authorization` value that goes with it.
//! Invariant: the two are of one version of the files. Files are looked at again every [`LOOK_EVERY`], in use; what does
//! not load changes nothing. With nothing loaded yet, no secret is sent and nothing fails but requests: the node's
//! containers start without lazy layers. No secret is in a `Debug` text or a log line.
//! Not here: what a server's refusal means (`fetch/servers.rs`).

use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderValue;
use reqwest::{Certificate, Client, ClientBuilder};
use serde::Deserialize;

use super::error::FetchError;

/// Time between two looks at the files: a few `stat`s, while requests are made.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A certificate chain has some KiB; a larger file is the wrong one.
const FILE_SIZE_MAX: u64 = 1 << 20;

/// `[fetch.identity]`: all optional, and all read again when they change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityConfig {
    /// PEM file with the authorities of the servers' certificates, instead of those the system trusts.
    pub ca_file: Option<PathBuf>,
    /// PEM files with the node's certificate chain and its key.
    pub client_cert_file: Option<PathBuf>,
    pub client_key_file: Option<PathBuf>,
    /// File whose first line is a bearer token.
    pub token_file: Option<PathBuf>,
    /// Instead of a token: a name, and a file whose first line is its password.
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
}

impl IdentityConfig {
    fn check(&self) -> Result<(), FetchError> {
        let bad = |what: &str| Err(FetchError::Config(what.to_owned()));
        if self.client_cert_file.is_some() != self.client_key_file.is_some() {
            return bad("fetch.identity needs client_cert_file and client_key_file, or neither");
        }
        if self.username.is_some() != self.password_file.is_some() {
            return bad("fetch.identity needs username and password_file, or neither");
        }
        if self.token_file.is_some() && self.username.is_some() {
            return bad("fetch.identity has a token or a password, not both");
        }
        Ok(())
    }

    fn has_secret(&self) -> bool {
        self.token_file.is_some() || self.password_file.is_some()
    }

    fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let files = [
            &self.ca_file,
            &self.client_cert_file,
            &self.client_key_file,
            &self.token_file,
            &self.password_file,
        ];
        files.into_iter().flatten()
    }
}

/// The files' latest good state.
pub(super) struct Identity {
    config: IdentityConfig,
    builder: Box<dyn Fn() -> ClientBuilder + Send + Sync>,
    held: Mutex<Held>,
}

struct Held {
    loaded: Loaded,
    stamp: Stamp,
    looked: Instant,
}

#[derive(Clone)]
struct Loaded {
    client: Client,
    authorization: Option<HeaderValue>,
}

/// Tells two versions of the files apart.
type Stamp = Vec<Option<(u64, u64, i64, i64, i64)>>;

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// `builder` makes a client without an identity. `is_plain`: secrets would be sent over plain HTTP.
    pub(super) fn new(
        config: &IdentityConfig,
        is_plain: bool,
        builder: impl Fn() -> ClientBuilder + Send + Sync + 'static,
    ) -> Result<Self, FetchError> {
        config.check()?;
        if is_plain && config.has_secret() {
            tracing::warn!("the node's token or password goes to a server over plain http");
        }
        let stamp = stamp(config);
        let loaded = match load(config, &builder) {
            Ok(loaded) => loaded,
            Err(error) => {
                // The files may come later; until then images are pulled as ever.
                tracing::error!(error, "the node's identity does not load; servers may refuse it");
                // A machine may know no authorities at all: then none is trusted, which plain HTTP does not ask for.
                let plain = builder().build().or_else(|_| builder().tls_certs_only([]).build());
                Loaded {
                    client: plain.map_err(|e| FetchError::Config(told(&e)))?,
                    authorization: None,
                }
            }
        };
        Ok(Self {
            config: config.clone(),
            builder: Box::new(builder),
            held: Mutex::new(Held {
                loaded,
                stamp,
                looked: Instant::now(),
            }),
        })
    }

    /// The client for the next request, and what goes into its `Authorization`.
    pub(super) fn now(&self) -> (Client, Option<HeaderValue>) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.looked.elapsed() >= LOOK_EVERY {
            held.looked = Instant::now();
            let stamp = stamp(&self.config);
            if stamp != held.stamp {
                held.stamp = stamp;
                match load(&self.config, &self.builder) {
                    Ok(loaded) => {
                        tracing::info!("the node's identity has changed");
                        held.loaded = loaded;
                    }
                    Err(error) => {
                        tracing::error!(error, "the node's changed identity does not load; the old one stays")
                    }
                }
            }
        }
        let loaded = &held.loaded;
        (loaded.client.clone(), loaded.authorization.clone())
    }
}

fn load(config: &IdentityConfig, builder: &dyn Fn() -> ClientBuilder) -> Result<Loaded, String> {
    let mut client = builder();
    if let Some(path) = &config.ca_file {
        let bundle = Certificate::from_pem_bundle(&read(path)?).map_err(|e| format!("{}: {e}", path.display()))?;
        if bundle.is_empty() {
            return Err(format!("{} has no certificate", path.display()));
        }
        client = client.tls_certs_only(bundle);
    }
    if let (Some(cert), Some(key)) = (&config.client_cert_file, &config.client_key_file) {
        let mut pem = read(key)?;
        pem.push(b'\n');
        pem.extend(read(cert)?);
        // The error could quote what it read.
        let identity = reqwest::Identity::from_pem(&pem);
        client = client.identity(identity.map_err(|_| "the client certificate and key are not PEM".to_owned())?);
    }
    let authorization = match (&config.token_file, &config.username, &config.password_file) {
        (Some(path), _, _) => Some(format!("Bearer {}", first_line(path)?)),
        (None, Some(user), Some(path)) => Some(basic(&format!("{user}:{}", first_line(path)?))),
        _ => None,
    };
    let authorization = authorization
        .map(|text| {
            let mut value = HeaderValue::from_str(&text).map_err(|_| "a token is not printable ASCII".to_owned())?;
            value.set_sensitive(true);
            Ok::<_, String>(value)
        })
        .transpose()?;
    let client = client.build().map_err(|e| told(&e))?;
    Ok(Loaded { client, authorization })
}

/// With its causes: by itself it says that something could not be built.
fn told(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("read {}: {error}", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_SIZE_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_SIZE_MAX {
        return Err(format!("read {}: it is over 1 MiB", path.display()));
    }
    Ok(bytes)
}

fn first_line(path: &Path) -> Result<String, String> {
    let text = String::from_utf8(read(path)?).map_err(|_| format!("{} is not UTF-8", path.display()))?;
    let line = text.lines().next().unwrap_or_default().trim();
    match line.is_empty() {
        true => Err(format!("{} is empty", path.display())),
        false => Ok(line.to_owned()),
    }
}

fn stamp(config: &IdentityConfig) -> Stamp {
    let one = |path: &PathBuf| {
        let m = fs::metadata(path).ok()?;
        Some((m.ino(), m.len(), m.mtime(), m.mtime_nsec(), m.ctime_nsec()))
    };
    config.files().map(one).collect()
}

/// `Authorization: Basic`, RFC 7617.
fn basic(credentials: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::from("Basic ");
    for group in credentials.as_bytes().chunks(3) {
        let bits = (0..3).fold(0u32, |n, i| n << 8 | u32::from(group.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            out.push(match i <= group.len() {
                true => char::from(ALPHABET[(bits >> (18 - 6 * i)) as usize & 63]),
                false => '=',
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_an_identity_is_none() {
        let path = || Some(PathBuf::from("/f"));
        let none = IdentityConfig::default;
        for bad in [
            IdentityConfig {
                client_cert_file: path(),
                ..none()
            },
            IdentityConfig {
                username: Some("u".into()),
                ..none()
            },
            IdentityConfig {
                password_file: path(),
                ..none()
            },
            IdentityConfig {
                token_file: path(),
                username: Some("u".into()),
                password_file: path(),
                ..none()
            },
        ] {
            assert!(Identity::new(&bad, false, Client::builder).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_token_that_comes_or_changes_is_taken_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let config = IdentityConfig {
            token_file: Some(path.clone()),
            ..IdentityConfig::default()
        };
        let identity = Identity::new(&config, false, Client::builder).unwrap();
        assert_eq!(identity.now().1, None, "a missing file stops nobody");
        let wait_for = |want: &str| {
            let deadline = Instant::now() + Duration::from_secs(30);
            while identity.now().1.is_none_or(|v| v.as_bytes() != want.as_bytes()) {
                assert!(Instant::now() < deadline, "{want}");
                std::thread::sleep(LOOK_EVERY / 10);
            }
        };
        fs::write(&path, "one\nrest\n").unwrap();
        wait_for("Bearer one");
        fs::write(&path, "another\n").unwrap();
        wait_for("Bearer another");
        fs::write(&path, "").unwrap();
        std::thread::sleep(LOOK_EVERY * 3 / 2);
        let (_, kept) = identity.now();
        assert_eq!(kept.as_ref().map(HeaderValue::as_bytes), Some(&b"Bearer another"[..]));
        let shown = format!("{identity:?} {kept:?}");
        assert!(!shown.contains("another"), "{shown}");
        assert_eq!(basic("Aladdin:open sesame"), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
    }
}
