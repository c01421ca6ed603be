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
    /// Each user has repositories of their own, and some are for everybody.
    Users {
        /// Tokens from the origin's own `/token`, or Basic.
        bearer: bool,
        users: Vec<User>,
        public: Vec<String>,
    },
}

/// One of [`Auth::Users`].
#[derive(Clone, Debug)]
pub struct User {
    pub name: String,
    pub password: String,
    pub repositories: Vec<String>,
}

impl User {
    pub fn new(name: &str, password: &str, repositories: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            password: password.to_owned(),
            repositories: repositories.iter().map(|r| (*r).to_owned()).collect(),
        }
    }
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

    pub fn users(bearer: bool, users: &[User], public: &[&str]) -> Self {
        Self::Users {
            bearer,
            users: users.to_vec(),
            public: public.iter().map(|r| (*r).to_owned()).collect(),
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
                Some(bearer(realm.as_ref().unwrap_or(&own), service, repository))
            }
            Self::Users { bearer: true, .. } => Some(bearer(&format!("{own_url}/token"), "origin.test", repository)),
            Self::Users { .. } => Some("Basic realm=\"origin\"".to_owned()),
        }
    }

    /// The scope of a token for whoever shows `header`; `None` for wrong credentials, or where no tokens are given.
    pub(super) fn scope(&self, header: Option<&str>, asked: &str) -> Option<String> {
        match self {
            Self::Anonymous | Self::Basic { .. } | Self::Identity { .. } | Self::Users { bearer: false, .. } => None,
            Self::Bearer { user, .. } => {
                let wanted = user.as_ref().map(|(user, password)| basic_header(user, password));
                (wanted.is_none() || wanted.as_deref() == header).then(|| asked.to_owned())
            }
            Self::Users { users, public, .. } => {
                let user = user_of(users, header);
                if header.is_some() && user.is_none() {
                    return None;
                }
                let granted = |scope: &&str| {
                    let repository = scope.strip_prefix("repository:").and_then(|s| s.strip_suffix(":pull"));
                    repository.is_some_and(|r| may_read(user, public, r))
                };
                Some(asked.split(' ').filter(granted).collect::<Vec<_>>().join(" "))
            }
        }
    }
}

fn bearer(realm: &str, service: &str, repository: Option<&str>) -> String {
    let scope = repository.map_or(String::new(), |r| format!(",scope=\"repository:{r}:pull\""));
    format!("Bearer realm=\"{realm}\",service=\"{service}\"{scope}")
}

fn user_of<'u>(users: &'u [User], header: Option<&str>) -> Option<&'u User> {
    let header = header?;
    users.iter().find(|u| basic_header(&u.name, &u.password) == header)
}

fn may_read(user: Option<&User>, public: &[String], repository: &str) -> bool {
    let has = |repositories: &[String]| repositories.iter().any(|r| r == repository);
    has(public) || user.is_some_and(|user| has(&user.repositories))
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
            Auth::Users {
                bearer: false,
                users,
                public,
            } => {
                let user = user_of(users, header);
                match repository {
                    Some(repository) => may_read(user, public, repository),
                    None => user.is_some(),
                }
            }
            Auth::Bearer { .. } | Auth::Identity { .. } | Auth::Users { .. } => {
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
