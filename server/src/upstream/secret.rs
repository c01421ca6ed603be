//! What we show an upstream, and where that comes from.
//!
//! In: `[upstreams.auth]`: a file, the environment, docker's configuration, a helper. Out: a [`Secret`], fresh enough.
//! Invariant: files are read again when they change, helpers run again when what they said is old, and either when it
//! was refused; a source that fails leaves what it said before in use. A request that goes away while it asks has asked
//! nothing. No secret is in a `Debug` or a message.
//! Not here: how a secret is shown ([`super::exchange`]), credentials of clients.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use http::HeaderValue;
use tokio::sync::Mutex;

use super::{
    UpstreamError,
    base64::base64,
    docker_config::{self, Found},
    helper::Helper,
    stamp::{Stamp, read_bounded},
};
use crate::config::AuthConfig;

/// Password file bytes that are looked at.
const PASSWORD_LEN_MAX: u64 = 64 << 10;

/// Files are looked at this often, at most.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// A source is not asked again for a refusal within this: refusals come by the request.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What docker writes as user name of a refresh token.
const TOKEN_USER: &str = "<token>";

/// What is shown.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    Basic {
        username: String,
        password: String,
    },
    /// An OAuth2 refresh token.
    Identity(String),
    /// A bearer token for the registry itself.
    Bearer(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").finish_non_exhaustive()
    }
}

impl Secret {
    /// A user name and what goes with it.
    pub(super) fn new(username: String, password: String) -> Result<Self, String> {
        if username == TOKEN_USER {
            return Ok(Self::Identity(password));
        }
        if username.contains(':') {
            return Err("a username for Basic must not contain ':'".into());
        }
        Ok(Self::Basic { username, password })
    }

    /// As `Authorization`, if it can be shown so.
    pub(super) fn basic(&self) -> Option<HeaderValue> {
        let Self::Basic { username, password } = self else {
            return None;
        };
        sensitive(format!("Basic {}", base64(format!("{username}:{password}").as_bytes())))
    }

    /// As `Authorization`, if it is a token of the registry itself.
    pub(super) fn bearer(&self) -> Option<HeaderValue> {
        match self {
            Self::Bearer(token) => sensitive(format!("Bearer {token}")),
            _ => None,
        }
    }
}

fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Where the secret of one origin comes from.
#[derive(Debug)]
pub(super) struct Secrets {
    source: Source,
    state: Mutex<State>,
}

enum Source {
    Nothing,
    Fixed(Secret),
    File {
        username: String,
        file: PathBuf,
    },
    Docker {
        file: PathBuf,
        server: String,
        helpers: Helpers,
    },
    Helper {
        helper: Helper,
        server: String,
        helpers: Helpers,
    },
}

/// How helpers are run.
#[derive(Clone, Debug)]
struct Helpers {
    dir: Option<PathBuf>,
    timeout: Duration,
    fresh: Duration,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Fixed(_) => "Fixed",
            Self::File { .. } => "File",
            Self::Docker { .. } => "Docker",
            Self::Helper { .. } => "Helper",
        })
    }
}

#[derive(Default)]
struct State {
    secret: Option<Arc<Secret>>,
    /// When the source last said something; never, at first.
    asked: Option<Instant>,
    /// When it last failed, if it has said nothing since.
    failed: Option<Instant>,
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    /// What was said is used until then, whatever the stamps say.
    fresh_until: Option<Instant>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl Secrets {
    pub(super) fn nothing() -> Self {
        Self::with(Source::Nothing)
    }

    /// `server` is how docker names the registry: a host, or Docker Hub's URL. What can be read now is checked now.
    /// `own` is false for a mirror, which is not shown what was meant for the upstream itself.
    pub(super) fn new(config: &AuthConfig, server: &str, own: bool) -> Result<Self, String> {
        let helpers = Helpers {
            dir: config.helper_dir.clone(),
            timeout: Duration::from_millis(config.helper_timeout_ms),
            fresh: Duration::from_millis(config.helper_fresh_ms),
        };
        let username = config.username.clone();
        let server = server.to_owned();
        let source = match config {
            AuthConfig {
                password_file: Some(file),
                password_env: None,
                docker_config_file: None,
                credential_helper: None,
                ..
            } => {
                read_password(&username, file)?;
                Source::File {
                    username,
                    file: file.clone(),
                }
            }
            AuthConfig {
                password_file: None,
                password_env: Some(name),
                docker_config_file: None,
                credential_helper: None,
                ..
            } => {
                let password = std::env::var(name).map_err(|e| format!("password_env {name}: {e}"))?;
                Source::Fixed(Secret::new(username, password)?)
            }
            AuthConfig {
                password_file: None,
                password_env: None,
                docker_config_file: Some(file),
                credential_helper: None,
                ..
            } => {
                docker_config::find(file, &server)?;
                Source::Docker {
                    file: file.clone(),
                    server,
                    helpers,
                }
            }
            AuthConfig {
                password_file: None,
                password_env: None,
                docker_config_file: None,
                credential_helper: Some(name),
                ..
            } => Source::Helper {
                helper: helpers.of(name)?,
                server,
                helpers,
            },
            _ => {
                return Err(
                    "auth needs exactly one of password_file, password_env, docker_config_file and credential_helper"
                        .into(),
                );
            }
        };
        let for_all = matches!(source, Source::Docker { .. } | Source::Helper { .. });
        Ok(Self::with(if own || for_all { source } else { Source::Nothing }))
    }

    fn with(source: Source) -> Self {
        Self {
            source,
            state: Mutex::new(State::default()),
        }
    }

    pub(super) fn is_nothing(&self) -> bool {
        matches!(self.source, Source::Nothing)
    }

    /// What to show now; `None` is nothing.
    pub(super) async fn current(&self) -> Result<Option<Arc<Secret>>, UpstreamError> {
        let came = Instant::now();
        let mut state = self.state.lock().await;
        if state.asked.is_none() || self.is_old(&mut state) {
            self.ask(&mut state, came).await?;
        }
        Ok(state.secret.clone())
    }

    /// Another one than `refused`, if the source has one.
    pub(super) async fn other_than(&self, refused: &Secret) -> Result<Option<Arc<Secret>>, UpstreamError> {
        if matches!(self.source, Source::Nothing | Source::Fixed(_)) {
            return Ok(None);
        }
        let came = Instant::now();
        let mut state = self.state.lock().await;
        let is_other = |s: &Arc<Secret>| **s != *refused;
        let asked_now = state.asked.is_some_and(|at| at.elapsed() < ASK_AGAIN_AFTER);
        if !state.secret.as_ref().is_some_and(is_other) && !asked_now {
            self.ask(&mut state, came).await?;
        }
        Ok(state.secret.clone().filter(is_other))
    }

    fn is_old(&self, state: &mut State) -> bool {
        if state.fresh_until.is_some_and(|until| Instant::now() >= until) {
            return true;
        }
        let (Source::File { file, .. } | Source::Docker { file, .. }) = &self.source else {
            return false;
        };
        if state.looked.is_some_and(|at| at.elapsed() < LOOK_AFTER) {
            return false;
        }
        state.looked = Some(Instant::now());
        state.stamp != Some(Stamp::of(file))
    }

    /// For who `came` then. A failure since is theirs too: of those who wait for a helper that hangs, each would else run
    /// it once more, one after the other. Nothing is written down before the source has spoken: this may be dropped where
    /// it waits.
    async fn ask(&self, state: &mut State, came: Instant) -> Result<(), UpstreamError> {
        if state.failed.is_some_and(|at| at >= came) {
            return state.said_before();
        }
        let mut stamp = None;
        let (said, fresh) = match &self.source {
            Source::Nothing => (Ok(None), None),
            Source::Fixed(secret) => (Ok(Some(secret.clone())), None),
            Source::File { username, file } => {
                stamp = Some(Stamp::of(file));
                (read_password(username, file).map(Some), None)
            }
            Source::Docker { file, server, helpers } => {
                stamp = Some(Stamp::of(file));
                match docker_config::find(file, server) {
                    Ok(Found::Helper(name)) => (helpers.ask(&name, server).await, Some(helpers.fresh)),
                    Ok(Found::Secret(secret)) => (Ok(Some(secret)), None),
                    Ok(Found::Nothing) => (Ok(None), None),
                    Err(error) => (Err(error), None),
                }
            }
            Source::Helper {
                helper,
                server,
                helpers,
            } => (helper.get(server).await, Some(helpers.fresh)),
        };
        let now = Instant::now();
        state.stamp = stamp;
        state.fresh_until = fresh.map(|fresh| now + fresh);
        match said {
            Ok(secret) => {
                state.secret = secret.map(Arc::new);
                (state.asked, state.failed) = (Some(now), None);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(error, "the credentials for an upstream cannot be had");
                state.failed = Some(now);
                if state.secret.is_none() {
                    // The next request asks again.
                    state.asked = None;
                }
                state.said_before()
            }
        }
    }
}

impl State {
    /// What there is to go on with when the source fails.
    fn said_before(&self) -> Result<(), UpstreamError> {
        self.secret.as_ref().map(drop).ok_or(UpstreamError::NoCredentials)
    }
}

impl Helpers {
    fn of(&self, name: &str) -> Result<Helper, String> {
        Helper::new(name, self.dir.as_deref(), self.timeout)
    }

    async fn ask(&self, name: &str, server: &str) -> Result<Option<Secret>, String> {
        self.of(name)?.get(server).await
    }
}

fn read_password(username: &str, file: &Path) -> Result<Secret, String> {
    let bytes = read_bounded(file, PASSWORD_LEN_MAX).map_err(|e| format!("password_file {e}"))?;
    let text = String::from_utf8(bytes).map_err(|_| format!("password_file {} is not UTF-8", file.display()))?;
    Secret::new(username.to_owned(), text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_auth(file: &Path) -> AuthConfig {
        AuthConfig {
            username: "u".into(),
            password_file: Some(file.to_owned()),
            ..AuthConfig::default()
        }
    }

    fn basic(password: &str) -> Secret {
        Secret::new("u".into(), password.into()).unwrap()
    }

    #[tokio::test]
    async fn a_rotated_file_is_read_again_and_one_that_vanished_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p");
        std::fs::write(&file, "one\nignored").unwrap();
        let secrets = Secrets::new(&file_auth(&file), "h", true).unwrap();
        assert_eq!(*secrets.current().await.unwrap().unwrap(), basic("one"));
        std::fs::write(dir.path().join("new"), "two").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        tokio::time::sleep(LOOK_AFTER).await;
        assert_eq!(*secrets.current().await.unwrap().unwrap(), basic("two"));
        assert_eq!(secrets.other_than(&basic("two")).await.unwrap(), None);
        assert_eq!(*secrets.other_than(&basic("one")).await.unwrap().unwrap(), basic("two"));
        std::fs::remove_file(&file).unwrap();
        tokio::time::sleep(LOOK_AFTER).await;
        assert_eq!(*secrets.current().await.unwrap().unwrap(), basic("two"));
    }

    fn helper_auth(dir: &Path, script: &str, timeout_ms: u64) -> Secrets {
        use std::os::unix::fs::PermissionsExt as _;
        let file = dir.join("docker-credential-slow");
        std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = AuthConfig {
            credential_helper: Some("slow".into()),
            helper_dir: Some(dir.to_owned()),
            helper_timeout_ms: timeout_ms,
            ..AuthConfig::default()
        };
        Secrets::new(&config, "r.test", true).unwrap()
    }

    /// A client that left while the helper ran for it left a source that counted as asked and had said nothing: the
    /// upstream was asked without credentials from then on.
    #[tokio::test]
    async fn who_leaves_while_a_helper_runs_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let go = dir.path().join("go");
        let script = format!(
            "while [ ! -e {} ]; do sleep 0.05; done; echo '{{\"Username\":\"u\",\"Secret\":\"one\"}}'",
            go.display()
        );
        let secrets = helper_auth(dir.path(), &script, 60_000);
        let left = tokio::time::timeout(Duration::from_millis(200), secrets.current()).await;
        assert!(left.is_err());
        std::fs::write(&go, "").unwrap();
        assert_eq!(*secrets.current().await.unwrap().unwrap(), basic("one"));
    }

    /// Requests that wait for a helper that hangs share its failure. Each ran it anew when its turn came, so that the
    /// last of a hundred waited a hundred times as long.
    #[tokio::test]
    async fn a_helper_that_hangs_is_waited_for_once() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let script = format!("echo x >> {}; sleep 300", runs.display());
        let secrets = helper_auth(dir.path(), &script, 1_000);
        let all = futures_util::future::join_all((0..20).map(|_| secrets.current())).await;
        assert!(all.iter().all(|one| *one == Err(UpstreamError::NoCredentials)));
        assert_eq!(std::fs::read_to_string(&runs).unwrap(), "x\n");
    }

    #[test]
    fn sources_are_checked_and_exclude_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("none");
        let helper = |name: &str| AuthConfig {
            credential_helper: Some(name.into()),
            ..AuthConfig::default()
        };
        assert!(Secrets::new(&helper("ecr-login"), "h", true).is_ok());
        for bad in [
            AuthConfig::default(),
            file_auth(&missing),
            helper("../sh"),
            helper(""),
            helper("a b"),
            AuthConfig {
                password_env: Some("HOME".into()),
                credential_helper: Some("x".into()),
                ..AuthConfig::default()
            },
            AuthConfig {
                docker_config_file: Some(missing.clone()),
                ..AuthConfig::default()
            },
            AuthConfig {
                username: "a:b".into(),
                password_env: Some("PATH".into()),
                ..AuthConfig::default()
            },
        ] {
            assert!(Secrets::new(&bad, "h", true).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        let secret = basic("hunter2");
        assert!(!format!("{secret:?} {:?}", secret.basic()).contains("hunter2"));
        assert_eq!(
            Secret::new("<token>".into(), "t".into()).unwrap(),
            Secret::Identity("t".into())
        );
    }
}
