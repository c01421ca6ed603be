//! A client, as far as it has shown itself.
//!
//! In: its connection and its `Authorization` header. Out: a [`Client`].
//! Invariant: nothing here is believed yet, except the certificate, which the TLS handshake has verified. A secret is in
//! no `Debug` text.
//! Not here: whether a password or token is right ([`super::identify`]).

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use http::{HeaderMap, HeaderValue, header};

use super::basic;
use crate::upstream::ClientCredentials;

/// Longest `Authorization` that is looked at: bearer tokens of registries have some 4 KiB.
const AUTHORIZATION_LEN_MAX: usize = 16 << 10;

/// Who is at the other end of a connection; put into every request of it.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// Names in the verified client certificate.
    pub names: Option<Arc<[String]>>,
}

impl Peer {
    pub fn plain(address: SocketAddr) -> Self {
        Self { address, names: None }
    }

    /// For routers that run without a connection, in tests.
    pub fn unknown() -> Self {
        Self::plain(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))
    }
}

/// A client, by what it has shown.
#[derive(Clone, Debug)]
pub struct Client {
    pub peer: Peer,
    pub shown: Shown,
}

/// What the `Authorization` header holds.
#[derive(Clone)]
pub enum Shown {
    Nothing,
    Basic {
        user: String,
        password: String,
        credentials: ClientCredentials,
    },
    Bearer {
        token: String,
        credentials: ClientCredentials,
    },
    /// Something that is neither, or malformed.
    Other,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Basic { .. } => "Basic",
            Self::Bearer { .. } => "Bearer",
            Self::Other => "Other",
        })
    }
}

impl Client {
    pub fn new(peer: Peer, headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let shown = match (values.next(), values.next()) {
            (None, _) => Shown::Nothing,
            (Some(value), None) => Shown::parse(value),
            // Which of two would be checked, and which would be forwarded?
            (Some(_), Some(_)) => Shown::Other,
        };
        Self { peer, shown }
    }

    /// What an upstream can be shown on the client's behalf.
    pub fn credentials(&self) -> Option<&ClientCredentials> {
        match &self.shown {
            Shown::Basic { credentials, .. } | Shown::Bearer { credentials, .. } => Some(credentials),
            Shown::Nothing | Shown::Other => None,
        }
    }
}

impl Shown {
    fn parse(value: &HeaderValue) -> Self {
        let text = value.to_str().ok().filter(|t| t.len() <= AUTHORIZATION_LEN_MAX);
        let Some((scheme, rest)) = text.and_then(|t| t.trim().split_once(' ')) else {
            return Self::Other;
        };
        let rest = rest.trim();
        if scheme.eq_ignore_ascii_case("basic") {
            return match basic::decode(rest) {
                // skopeo and podman without credentials answer a Basic challenge with empty ones.
                Some((user, password)) if user.is_empty() && password.is_empty() => Self::Nothing,
                Some((user, password)) => Self::Basic {
                    user,
                    password,
                    credentials: ClientCredentials::new(value.clone()),
                },
                None => Self::Other,
            };
        }
        if scheme.eq_ignore_ascii_case("bearer") && !rest.is_empty() {
            return Self::Bearer {
                token: rest.to_owned(),
                credentials: ClientCredentials::new(value.clone()),
            };
        }
        Self::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(values: &[&'static str]) -> Shown {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
        }
        Client::new(Peer::unknown(), &headers).shown
    }

    #[test]
    fn headers_are_told_apart() {
        assert!(matches!(shown(&[]), Shown::Nothing));
        assert!(matches!(shown(&["Basic Og=="]), Shown::Nothing));
        assert!(matches!(
            shown(&["basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]),
            Shown::Basic { user, password, .. } if user == "Aladdin" && password == "open sesame"
        ));
        assert!(matches!(shown(&["BEARER t"]), Shown::Bearer { token, .. } if token == "t"));
        for other in ["Basic", "Basic !", "Basic QQ==", "Digest x", "Bearer ", ""] {
            assert!(matches!(shown(&[other]), Shown::Other), "{other:?}");
        }
        assert!(matches!(shown(&["Bearer a", "Bearer b"]), Shown::Other));
    }

    #[test]
    fn no_secret_is_shown() {
        let text = format!("{:?}", shown(&["Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="]));
        assert_eq!(text, "Basic");
    }
}
