//! On whose behalf an upstream is asked.
//!
//! In: nothing, or the `Authorization` value that a client sent us. Out: a [`Caller`], which is part of the key of
//! whatever is cached or shared because of it.
//! Invariant: equality and hashing go by a fingerprint; the secret is in no `Debug` text and no log line.
//! Not here: whether a client may read something (`access/`), and the exchange for tokens ([`super::exchange`]).

use std::{
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use http::HeaderValue;
use sha2::{Digest as _, Sha256};

/// On whose behalf an upstream is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Caller {
    /// With the server's own credentials for the upstream, or none.
    #[default]
    Server,
    /// With no credentials, even if the server has some: what anybody may see.
    Anybody,
    /// With the client's own, which take the place of the server's.
    Client(ClientCredentials),
}

/// A caller as part of a key: without the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CallerKey {
    Server,
    Anybody,
    Client([u8; 32]),
}

impl Caller {
    /// What it is called in a key that is written down: nothing of a client's credentials ever is.
    pub fn lasting_name(&self) -> Option<&'static str> {
        match self {
            Self::Server => Some("server"),
            Self::Anybody => Some("anybody"),
            Self::Client(_) => None,
        }
    }

    pub fn key(&self) -> CallerKey {
        match self {
            Self::Server => CallerKey::Server,
            Self::Anybody => CallerKey::Anybody,
            Self::Client(own) => CallerKey::Client(*own.fingerprint()),
        }
    }
}

/// What a client authenticated with, to be shown to its upstream.
#[derive(Clone)]
pub struct ClientCredentials(Arc<Inner>);

struct Inner {
    authorization: HeaderValue,
    fingerprint: [u8; 32],
}

impl ClientCredentials {
    /// `authorization` is the whole value: `Basic ...` or `Bearer ...`.
    pub fn new(mut authorization: HeaderValue) -> Self {
        authorization.set_sensitive(true);
        let fingerprint = Sha256::digest(authorization.as_bytes()).into();
        Self(Arc::new(Inner {
            authorization,
            fingerprint,
        }))
    }

    pub fn authorization(&self) -> &HeaderValue {
        &self.0.authorization
    }

    /// Whether it is a token, which is shown as it is, and not a name with a password.
    pub fn is_bearer(&self) -> bool {
        let scheme = self.0.authorization.as_bytes().split(|&b| b == b' ').next();
        scheme.is_some_and(|s| s.eq_ignore_ascii_case(b"bearer"))
    }

    /// SHA-256 of the value: a key for caches.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.0.fingerprint
    }
}

impl PartialEq for ClientCredentials {
    fn eq(&self, other: &Self) -> bool {
        self.0.fingerprint == other.0.fingerprint
    }
}

impl Eq for ClientCredentials {}

impl Hash for ClientCredentials {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.fingerprint.hash(state);
    }
}

impl fmt::Debug for ClientCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCredentials").finish_non_exhaustive()
    }
}
