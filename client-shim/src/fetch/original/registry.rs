//! One blob from one registry host, as any client would fetch it.
//!
//! In: a host, a repository, a digest. Out: the response whose body is the blob, not yet believed.
//! Invariant: every request has a time-out, redirects are few and never from https to http; a secret is sent to the host
//! itself and to token realms of the same domain only, and not along a redirect to another origin.
//! Not here: what the bytes are (`refill.rs`), and tokens kept between blobs (there is one request a layer).

use std::path::Path;
use std::time::Duration;

use headstart_layer_format::BlobDigest;
use http::header::{AUTHORIZATION, LOCATION, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_auth::ChallengeParser;
use reqwest::{Certificate, Client, RequestBuilder, Response, Url};
use serde::Deserialize;
use tokio::time::timeout;

use super::credentials::Credentials;
use super::hosts_file::Host;
use super::source::BlobSource;
use crate::fetch::body;
use crate::fetch::config::FetchConfig;

/// Registries send a client to a store behind them once; some again to its region.
const REDIRECTS_MAX: usize = 5;
/// A token has some 2 KiB.
const TOKEN_BODY_SIZE_MAX: u64 = 1 << 20;

/// Why this host is of no help; completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub(super) enum RegistryError {
    #[error("prepare for the host: {0}")]
    Setup(String),
    #[error("reach the host: {0}")]
    Unreachable(String),
    #[error("get the blob: the host answered {0}")]
    Status(u16),
    #[error("be let in by the host: {0}")]
    Auth(&'static str),
    #[error("follow the host's redirect: {0}")]
    Redirect(&'static str),
}

/// A host, ready to be asked.
#[derive(Debug)]
pub(super) struct Registry {
    host: Host,
    client: Client,
    response_timeout: Duration,
    idle_timeout: Duration,
}

impl Registry {
    /// Reads the host's certificates. Blocks for that.
    pub(super) fn new(host: Host, config: &FetchConfig) -> Result<Self, RegistryError> {
        let setup = |e: String| RegistryError::Setup(e);
        let mut client = Client::builder()
            .user_agent(concat!("headstart-shim/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(config.connect_timeout())
            .tls_danger_accept_invalid_certs(host.skip_verify);
        let read = |path: &Path| std::fs::read(path).map_err(|e| setup(format!("read {}: {e}", path.display())));
        let mut authorities = Vec::new();
        for path in &host.ca_files {
            let bundle = Certificate::from_pem_bundle(&read(path)?).map_err(|e| setup(e.to_string()))?;
            authorities.extend(bundle);
        }
        if !authorities.is_empty() {
            client = client.tls_certs_merge(authorities);
        }
        if let Some((cert, key)) = &host.client {
            let mut pem = read(key)?;
            if cert != key {
                pem.push(b'\n');
                pem.extend(read(cert)?);
            }
            // The error could quote what it read.
            let identity = reqwest::Identity::from_pem(&pem);
            client = client.identity(identity.map_err(|_| setup("its client certificate is not PEM".into()))?);
        }
        Ok(Self {
            host,
            client: client.build().map_err(|e| setup(e.to_string()))?,
            response_timeout: config.response_timeout(),
            idle_timeout: config.idle_timeout(),
        })
    }

    /// Asks for a blob, anonymously first: registries say what they want.
    pub(super) async fn blob(
        &self,
        source: &BlobSource,
        digest: &BlobDigest,
        credentials: Option<&Credentials>,
    ) -> Result<Response, RegistryError> {
        let mut url = self.host.base.clone();
        url.set_path(&format!("{}/{}/blobs/{digest}", url.path(), source.repository()));
        if let Some(ns) = self.host.ns(source.registry()) {
            url.query_pairs_mut().append_pair("ns", ns);
        }
        let first = self.follow(url.clone(), None).await?;
        if first.status() != StatusCode::UNAUTHORIZED {
            return found(first);
        }
        let authorization = self.answer_to(first.headers(), source, credentials).await?;
        let second = self.follow(url, Some(authorization)).await?;
        match second.status() {
            StatusCode::UNAUTHORIZED => Err(RegistryError::Auth("it refuses what it asked for")),
            _ => found(second),
        }
    }

    async fn follow(&self, start: Url, authorization: Option<Authorization>) -> Result<Response, RegistryError> {
        let mut url = start.clone();
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.client.get(url.clone());
            // The file's headers and our secret are for this host alone.
            if url.origin() == start.origin() {
                request = request.headers(self.host.headers.clone());
                request = match &authorization {
                    Some(Authorization::Basic(c)) => request.basic_auth(&c.username, Some(&c.password)),
                    Some(Authorization::Bearer(token)) => request.header(AUTHORIZATION, token.clone()),
                    None => request,
                };
            }
            let response = self.send(request).await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
            let next = location.and_then(|l| url.join(l).ok());
            let next = next.ok_or(RegistryError::Redirect("it leads nowhere"))?;
            if !matches!(next.scheme(), "http" | "https") || (url.scheme() == "https" && next.scheme() == "http") {
                return Err(RegistryError::Redirect("it leads out of https"));
            }
            url = next;
        }
        Err(RegistryError::Redirect("there are too many"))
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, RegistryError> {
        match timeout(self.response_timeout, request.send()).await {
            Err(_) => Err(RegistryError::Unreachable("it did not answer in time".into())),
            Ok(Err(e)) => Err(RegistryError::Unreachable(body::unreachable(&e).to_string())),
            Ok(Ok(response)) => Ok(response),
        }
    }

    /// What a challenge is answered with.
    async fn answer_to(
        &self,
        headers: &HeaderMap,
        source: &BlobSource,
        credentials: Option<&Credentials>,
    ) -> Result<Authorization, RegistryError> {
        match Challenge::from_headers(headers) {
            Some(Challenge::Bearer { realm, service, scope }) => {
                self.token(realm, service, scope, source, credentials).await
            }
            Some(Challenge::Basic) => match credentials {
                Some(credentials) => Ok(Authorization::Basic(credentials.clone())),
                None => Err(RegistryError::Auth("it wants a password, and none is configured")),
            },
            None => Err(RegistryError::Auth("it does not say how")),
        }
    }

    async fn token(
        &self,
        realm: Url,
        service: Option<String>,
        scope: Option<String>,
        source: &BlobSource,
        credentials: Option<&Credentials>,
    ) -> Result<Authorization, RegistryError> {
        let mut url = realm;
        if let Some(service) = service {
            url.query_pairs_mut().append_pair("service", &service);
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", source.repository()));
        url.query_pairs_mut().append_pair("scope", &scope);
        let mut request = self.client.get(url.clone());
        if let Some(credentials) = credentials.filter(|_| may_have_secret(&self.host.base, &url)) {
            request = request.basic_auth(&credentials.username, Some(&credentials.password));
        }
        let response = self.send(request).await?;
        if response.status() != StatusCode::OK {
            return Err(RegistryError::Auth("its token service says no"));
        }
        let answer: Result<TokenAnswer, _> = body::json(response, TOKEN_BODY_SIZE_MAX, self.idle_timeout).await;
        let token = answer.ok().and_then(|a| a.token.or(a.access_token));
        let value = token.and_then(|t| HeaderValue::from_str(&format!("Bearer {t}")).ok());
        let mut value = value.ok_or(RegistryError::Auth("its token service gives no token"))?;
        value.set_sensitive(true);
        Ok(Authorization::Bearer(value))
    }
}

fn found(response: Response) -> Result<Response, RegistryError> {
    match response.status() {
        StatusCode::OK => Ok(response),
        status => Err(RegistryError::Status(status.as_u16())),
    }
}

enum Authorization {
    Basic(Credentials),
    Bearer(HeaderValue),
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

enum Challenge {
    Basic,
    Bearer {
        realm: Url,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The strongest one that we can meet.
    fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            for challenge in ChallengeParser::new(value.to_str().ok()?) {
                let Ok(challenge) = challenge else { break };
                let param = |name: &str| {
                    let found = challenge.params.iter().find(|(n, _)| n.eq_ignore_ascii_case(name));
                    found.map(|(_, v)| v.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                } else if challenge.scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = param("realm").and_then(|r| Url::parse(&r).ok())
                    && matches!(realm.scheme(), "http" | "https")
                {
                    let (service, scope) = (param("service"), param("scope"));
                    return Some(Self::Bearer { realm, service, scope });
                }
            }
        }
        basic
    }
}

/// A realm at the host itself, or at another name of the host's domain (`auth.docker.io` for `registry-1.docker.io`), and
/// never less encrypted. Elsewhere the question is put without a secret.
fn may_have_secret(host: &Url, realm: &Url) -> bool {
    if realm.scheme() != host.scheme() && realm.scheme() != "https" {
        return false;
    }
    let (Some(own), Some(name)) = (host.host_str(), realm.host_str()) else {
        return false;
    };
    if own == name {
        return realm.port_or_known_default() == host.port_or_known_default();
    }
    let is_name = matches!(host.domain(), Some(d) if d.parse::<std::net::Ipv4Addr>().is_err());
    let parent = own
        .split_once('.')
        .map(|(_, parent)| parent)
        .filter(|p| p.contains('.'));
    is_name
        && parent.is_some_and(|parent| {
            name.strip_suffix(parent)
                .is_some_and(|r| r.is_empty() || r.ends_with('.'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_in_the_domain() {
        let may = |host: &str, realm: &str| may_have_secret(&host.parse().unwrap(), &realm.parse().unwrap());
        let hub = "https://registry-1.docker.io/v2";
        assert!(may(hub, "https://auth.docker.io/token"));
        assert!(may("https://ghcr.io/v2", "https://ghcr.io/token"));
        assert!(may("https://registry.gitlab.com/v2", "https://gitlab.com/jwt/auth"));
        assert!(may("http://127.0.0.1:5000/v2", "http://127.0.0.1:5000/t"));
        for (host, evil) in [
            (hub, "https://auth.docker.io.evil.example/token"),
            (hub, "https://evildocker.io/token"),
            (hub, "http://auth.docker.io/token"),
            ("https://ghcr.io/v2", "https://evil.io/token"),
            ("https://ghcr.io/v2", "https://ghcr.io:8443/token"),
            ("http://127.0.0.1:5000/v2", "http://127.0.0.2:5000/t"),
            ("http://127.0.0.1:5000/v2", "http://127.0.0.1:5001/t"),
        ] {
            assert!(!may(host, evil), "{host} {evil}");
        }
    }
}
