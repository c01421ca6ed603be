//! Credentials and tokens of one upstream.
//!
//! In: configuration, and the `WWW-Authenticate` headers of a 401. Out: the `Authorization` value for the next try.
//! Invariant: a secret is sent only to the upstream's own origin and to token realms pinned for it ([`Realms`]), never
//! in clear text when the upstream itself is https; no secret is in a `Debug` or a log line. Tokens are cached by
//! caller and repository, bounded, and dropped before they expire.
//! Not here: sending, and whose credentials are shown ([`super::exchange`]).

use std::{
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use http::{HeaderMap, HeaderValue, header};
use http_auth::ChallengeParser;
use reqwest::Url;
use serde::Deserialize;

use super::{Caller, base64::base64, caller::CallerKey};
use crate::config::AuthConfig;

/// Cached tokens per upstream: one a caller and repository in use. A token has some 2 KiB.
const TOKENS_MAX: u64 = 4096;

/// What the token specification of distribution assumes when `expires_in` is missing.
const TOKEN_LIFE_SECS_DEFAULT: u64 = 60;

/// No token is used longer than this, whatever the server promises.
const TOKEN_LIFE_SECS_MAX: u64 = 3600;

/// A token is not used for its last tenth, and at least these seconds: clocks and queues differ.
const TOKEN_MARGIN_SECS_MIN: u64 = 5;

/// Longest `scope` and `service` that we repeat to a realm.
const PARAM_LEN_MAX: usize = 1024;

/// Password file bytes that are looked at.
const PASSWORD_LEN_MAX: usize = 64 << 10;

/// User and password of one upstream.
#[derive(Clone)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").finish_non_exhaustive()
    }
}

impl Credentials {
    /// Reads the secret that the configuration points to.
    pub fn load(config: &AuthConfig) -> Result<Self, String> {
        let password = match (&config.password_file, &config.password_env) {
            (Some(file), None) => read_password(file)?,
            (None, Some(name)) => std::env::var(name).map_err(|e| format!("password_env {name}: {e}"))?,
            _ => return Err("auth needs exactly one of password_file and password_env".into()),
        };
        if config.username.contains(':') {
            return Err("a username for Basic must not contain ':'".into());
        }
        Ok(Self {
            username: config.username.clone(),
            password,
        })
    }

    /// The value of `Authorization`.
    pub fn basic(&self) -> HeaderValue {
        let text = format!(
            "Basic {}",
            base64(format!("{}:{}", self.username, self.password).as_bytes())
        );
        let mut value = HeaderValue::try_from(text).expect("base64 is ASCII");
        value.set_sensitive(true);
        value
    }
}

fn read_password(file: &Path) -> Result<String, String> {
    let bytes = std::fs::read(file).map_err(|e| format!("password_file {}: {e}", file.display()))?;
    if bytes.len() > PASSWORD_LEN_MAX {
        return Err(format!("password_file {} is too large", file.display()));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("password_file {} is not UTF-8", file.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Which hosts may be token realms.
#[derive(Clone, Debug)]
pub struct Realms {
    upstream: Url,
    name: String,
    hosts: Vec<String>,
}

impl Realms {
    pub fn new(upstream: Url, name: &str, hosts: &[String]) -> Self {
        Self {
            upstream,
            name: name.to_owned(),
            hosts: hosts.iter().map(|h| h.to_ascii_lowercase()).collect(),
        }
    }

    /// The upstream's own host and port; a host below it or below the upstream's name, at the same port; or one that
    /// the configuration lists. Never less encrypted than the upstream.
    pub fn allow(&self, realm: &Url) -> bool {
        let (Some(host), Some(own)) = (realm.host_str(), self.upstream.host_str()) else {
            return false;
        };
        if realm.scheme() != self.upstream.scheme() && realm.scheme() != "https" {
            return false;
        }
        let port = realm.port_or_known_default();
        let listed = |entry: &String| {
            entry == host || port.is_some_and(|p| entry.strip_prefix(host) == Some(format!(":{p}").as_str()))
        };
        if self.hosts.iter().any(listed) {
            return true;
        }
        let same_port = port == self.upstream.port_or_known_default();
        same_port && (host == own || is_below(host, own) || is_below(host, &self.name))
    }
}

/// Whether `host` is a subdomain of `domain`; a domain has a dot and is no IPv4 address.
fn is_below(host: &str, domain: &str) -> bool {
    let is_domain = domain.contains('.')
        && domain
            .rsplit('.')
            .next()
            .is_some_and(|last| last.parse::<u32>().is_err());
    is_domain && host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

/// What a 401 asks for.
#[derive(Debug)]
pub enum Challenge {
    Basic,
    Bearer {
        realm: Url,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The strongest challenge that we can meet: Bearer before Basic.
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(header::WWW_AUTHENTICATE) {
            for challenge in ChallengeParser::new(value.to_str().ok()?) {
                let Ok(challenge) = challenge else { break };
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
                if !challenge.scheme.eq_ignore_ascii_case("bearer") {
                    continue;
                }
                let param = |name: &str| {
                    let found = challenge.params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
                    found
                        .map(|(_, v)| v.to_unescaped())
                        .filter(|v| v.len() <= PARAM_LEN_MAX)
                };
                if let Some(realm) = param("realm").and_then(|r| Url::parse(&r).ok()) {
                    return Some(Self::Bearer {
                        realm,
                        service: param("service"),
                        scope: param("scope"),
                    });
                }
            }
        }
        basic
    }
}

/// The address of the token exchange.
pub fn token_url(realm: &Url, service: Option<&str>, scope: Option<&str>, repository: &str) -> Url {
    let mut url = realm.clone();
    let mut query = url.query_pairs_mut();
    if let Some(service) = service {
        query.append_pair("service", service);
    }
    match scope {
        Some(scope) => query.append_pair("scope", scope),
        None => query.append_pair("scope", &format!("repository:{repository}:pull")),
    };
    drop(query);
    url
}

/// Body of a token answer.
#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

/// A token, as header value.
#[derive(Clone)]
pub struct Token {
    value: HeaderValue,
    use_until: Instant,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").finish_non_exhaustive()
    }
}

impl Token {
    pub fn from_answer(body: &[u8], now: Instant) -> Option<Self> {
        let answer: TokenAnswer = serde_json::from_slice(body).ok()?;
        let text = answer.token.or(answer.access_token).filter(|t| !t.is_empty())?;
        let mut value = HeaderValue::from_str(&format!("Bearer {text}")).ok()?;
        value.set_sensitive(true);
        let life = answer
            .expires_in
            .unwrap_or(TOKEN_LIFE_SECS_DEFAULT)
            .min(TOKEN_LIFE_SECS_MAX);
        let margin = (life / 10).max(TOKEN_MARGIN_SECS_MIN);
        Some(Self {
            value,
            use_until: now + Duration::from_secs(life.saturating_sub(margin)),
        })
    }

    pub fn header(&self) -> HeaderValue {
        self.value.clone()
    }
}

/// Whose token, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) caller: CallerKey,
    repository: String,
}

impl TokenKey {
    pub(super) fn new(caller: &Caller, repository: &str) -> Self {
        Self {
            caller: caller.key(),
            repository: repository.to_owned(),
        }
    }
}

/// Tokens by caller and repository.
pub(super) struct Tokens(moka::sync::Cache<TokenKey, Token>);

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

impl Default for Tokens {
    fn default() -> Self {
        Self(moka::sync::Cache::new(TOKENS_MAX))
    }
}

impl Tokens {
    pub(super) fn get(&self, key: &TokenKey) -> Option<Token> {
        let token = self.0.get(key)?;
        if token.use_until <= Instant::now() {
            self.0.invalidate(key);
            return None;
        }
        Some(token)
    }

    pub(super) fn put(&self, key: TokenKey, token: Token) {
        self.0.insert(key, token);
    }

    /// The upstream no longer takes this one; another may have been stored meanwhile.
    pub(super) fn forget(&self, key: &TokenKey, refused: &HeaderValue) {
        if self.0.get(key).is_some_and(|t| t.value == *refused) {
            self.0.invalidate(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(upstream: &str, name: &str, hosts: &[&str], realm: &str) -> bool {
        let hosts: Vec<_> = hosts.iter().map(|h| h.to_string()).collect();
        Realms::new(upstream.parse().unwrap(), name, &hosts).allow(&realm.parse().unwrap())
    }

    #[test]
    fn realms_are_pinned() {
        let hub = "https://registry-1.docker.io";
        assert!(allows(hub, "docker.io", &[], "https://auth.docker.io/token"));
        assert!(allows("https://ghcr.io", "ghcr.io", &[], "https://ghcr.io/token"));
        assert!(allows("http://127.0.0.1:5000", "local", &[], "http://127.0.0.1:5000/t"));
        assert!(allows(
            "http://127.0.0.1:5000",
            "local",
            &["127.0.0.1:6000"],
            "http://127.0.0.1:6000/t"
        ));
        assert!(allows(
            hub,
            "docker.io",
            &["login.example.org"],
            "https://login.example.org:8443/t"
        ));
        for evil in [
            "https://auth.docker.io.evil.example/token",
            "https://evildocker.io/token",
            "http://auth.docker.io/token",
            "https://auth.docker.io:8443/token",
            "https://docker.evil/",
        ] {
            assert!(!allows(hub, "docker.io", &[], evil), "{evil}");
        }
        assert!(!allows(
            "http://127.0.0.1:5000",
            "local",
            &[],
            "http://127.0.0.1:5001/t"
        ));
    }

    #[test]
    fn bearer_is_preferred_and_parameters_are_unquoted() {
        let mut headers = HeaderMap::new();
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"x\""));
        let bearer = "Bearer realm=\"https://a.example/token\",service=\"s\",scope=\"repository:a/b:pull\"";
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(bearer));
        let Some(Challenge::Bearer { realm, service, scope }) = Challenge::from_headers(&headers) else {
            panic!("no bearer challenge")
        };
        let url = token_url(&realm, service.as_deref(), scope.as_deref(), "ignored");
        assert_eq!(
            url.as_str(),
            "https://a.example/token?service=s&scope=repository%3Aa%2Fb%3Apull"
        );
    }

    #[test]
    fn tokens_end_early_and_may_be_missing() {
        let now = Instant::now();
        let token = Token::from_answer(br#"{"access_token":"t","expires_in":100}"#, now).unwrap();
        assert_eq!(token.use_until, now + Duration::from_secs(90));
        assert!(Token::from_answer(b"{}", now).is_none());
        assert!(Token::from_answer(b"<html>", now).is_none());
        assert!(Token::from_answer(br#"{"token":"a\nb"}"#, now).is_none());
        let tokens = Tokens::default();
        let key = TokenKey::new(&Caller::Server, "r");
        let short = Token::from_answer(br#"{"token":"t","expires_in":3}"#, now).unwrap();
        tokens.put(key.clone(), short);
        assert!(tokens.get(&key).is_none(), "a token without life left is not used");
        tokens.put(key.clone(), token);
        assert!(tokens.get(&key).is_some());
        for other in [
            TokenKey::new(&Caller::Anybody, "r"),
            TokenKey::new(&Caller::Server, "s"),
        ] {
            assert!(tokens.get(&other).is_none(), "{other:?}");
        }
    }
}
