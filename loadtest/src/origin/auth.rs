//! Who may read.
//!
//! In: an `Authorization` header, or a token request. Out: yes, a challenge, or a token.
//! Invariant: a token is good for the repository its scope named, until [`Tokens::expire`].
//! Not here: TLS; the origin is for loopback.

use std::collections::HashMap;

use headstart_layer_format::digest::hex;

/// How the origin wants to be asked.
#[derive(Clone, Debug, Default)]
pub enum Auth {
    #[default]
    Anonymous,
    Basic {
        user: String,
        password: String,
    },
    /// A 401 points at a token service: the origin's own `/token`, or wherever a security test says.
    Bearer {
        realm: Option<String>,
        service: String,
        /// What the token service wants; `None` gives tokens to anyone, as Docker Hub does.
        user: Option<(String, String)>,
    },
    /// As `Bearer`, but tokens come only by POST of a refresh token.
    Identity {
        refresh_token: String,
    },
}

impl Auth {
    pub fn basic(user: &str, password: &str) -> Self {
        Self::Basic {
            user: user.to_owned(),
            password: password.to_owned(),
        }
    }

    /// Tokens for anyone.
    pub fn bearer() -> Self {
        Self::Bearer {
            realm: None,
            service: "origin.test".to_owned(),
            user: None,
        }
    }

    pub fn bearer_for(user: &str, password: &str) -> Self {
        Self::Bearer {
            realm: None,
            service: "origin.test".to_owned(),
            user: Some((user.to_owned(), password.to_owned())),
        }
    }

    /// The `WWW-Authenticate` of a 401, if this mode has one.
    pub(super) fn challenge(&self, own_url: &str, repository: Option<&str>) -> Option<String> {
        match self {
            Self::Anonymous => None,
            Self::Basic { .. } => Some("Basic realm=\"origin\"".to_owned()),
            Self::Identity { .. } => Auth::bearer().challenge(own_url, repository),
            Self::Bearer { realm, service, .. } => {
                let own = format!("{own_url}/token");
                let realm = realm.as_ref().unwrap_or(&own);
                let scope = repository.map_or(String::new(), |r| format!(",scope=\"repository:{r}:pull\""));
                Some(format!("Bearer realm=\"{realm}\",service=\"{service}\"{scope}"))
            }
        }
    }
}

/// `Authorization: Basic` of a user.
pub fn basic_header(user: &str, password: &str) -> String {
    format!("Basic {}", base64(format!("{user}:{password}").as_bytes()))
}

/// Tokens given out and still good: token -> scope.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    good: HashMap<String, String>,
    given: u64,
}

impl Tokens {
    pub(super) fn give(&mut self, scope: &str) -> String {
        self.given += 1;
        let token = format!("token-{}-{}", self.given, hex(&self.given.to_be_bytes()));
        self.good.insert(token.clone(), scope.to_owned());
        token
    }

    pub(super) fn expire(&mut self) {
        self.good.clear();
    }

    /// Whether `header` allows reading `repository` (`None`: the bare `/v2/`).
    pub(super) fn allows(&self, auth: &Auth, header: Option<&str>, repository: Option<&str>) -> bool {
        match auth {
            Auth::Anonymous => true,
            Auth::Basic { user, password } => header == Some(basic_header(user, password).as_str()),
            Auth::Bearer { .. } | Auth::Identity { .. } => {
                let token = header.and_then(|h| h.strip_prefix("Bearer "));
                let scope = token.and_then(|t| self.good.get(t));
                match (scope, repository) {
                    (None, _) => false,
                    (Some(_), None) => true,
                    (Some(scope), Some(r)) => scope
                        .split(' ')
                        .any(|s| s.strip_prefix("repository:").and_then(|s| s.strip_suffix(":pull")) == Some(r)),
                }
            }
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in bytes.chunks(3) {
        let n = (0..3).fold(0u32, |n, i| n << 8 | u32::from(group.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            match i <= group.len() {
                true => out.push(ALPHABET[(n >> (18 - 6 * i)) as usize & 63] as char),
                false => out.push('='),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn basic_header_is_the_one_of_rfc_7617() {
        assert_eq!(
            basic_header("Aladdin", "open sesame"),
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
        );
        assert_eq!(base64(b"a"), "YQ==");
        assert_eq!(base64(b"abcde"), "YWJjZGU=");
    }
}
