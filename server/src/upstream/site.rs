//! One base URL of an upstream: its wire and its authorization.
//!
//! In: requests by path below `/v2/`. Out: answers with an accepted status.
//! Invariant: nothing that belongs to one site (token, Basic, realm) is used at another.
//! Not here: what the requests mean ([`super::client`]).

use http::{HeaderMap, Method, StatusCode};
use reqwest::{Response, Url};

use super::{
    Caller, UpstreamError,
    breaker::Breaker,
    budget::Budget,
    connect::{Connect, Timeouts, proxies},
    dial::Dial,
    docker_config::DOCKER_HUB_SERVER,
    exchange::Exchange,
    hold::{Counted, Holds},
    realm::Realms,
    secret::Secrets,
    set::DOCKER_HUB,
    transport::Transport,
};
use crate::{
    config::{FetchConfig, UpstreamConfig},
    metrics::{Metrics, names::Count},
};

/// One request, whichever site gets it.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) repository: &'a str,
    pub(super) caller: &'a Caller,
    /// Below `/v2/`: made of parsed types, so nothing needs escaping.
    pub(super) path: String,
    pub(super) query: Option<String>,
    pub(super) headers: HeaderMap,
}

impl<'a> Ask<'a> {
    pub(super) fn new(method: Method, repository: &'a str, caller: &'a Caller, path: String) -> Self {
        Self {
            method,
            repository,
            caller,
            path,
            query: None,
            headers: HeaderMap::new(),
        }
    }

    fn counted(&self) -> Counted {
        match (&self.method, self.path.contains("/blobs/")) {
            (&Method::HEAD, _) => Counted::Nothing,
            (_, true) => Counted::Blobs,
            (_, false) => Counted::Pulls,
        }
    }

    pub(super) fn with(mut self, headers: HeaderMap) -> Self {
        self.headers = headers;
        self
    }
}

/// One base URL.
#[derive(Debug)]
pub(super) struct Site {
    base: Url,
    upstream: String,
    wire: Transport,
    exchange: Exchange,
    holds: Holds,
    breaker: Breaker,
    metrics: Metrics,
}

impl Site {
    /// `upstream` is the canonical name, `url` the one of the configuration or a mirror's. Errors are texts for the
    /// operator.
    pub(super) fn new(
        config: &UpstreamConfig,
        upstream: &str,
        url: &str,
        fetch: &FetchConfig,
        budget: &Budget,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        let base = Url::parse(url).map_err(|e| format!("url: {e}"))?;
        let host = base.host_str().filter(|_| matches!(base.scheme(), "http" | "https"));
        let Some(host) = host.map(str::to_owned) else {
            return Err("a url is http(s)://host".into());
        };
        if !base.username().is_empty() || base.password().is_some() || base.query().is_some() {
            return Err("a url must not carry a user, a password or a query; use [upstreams.auth]".into());
        }
        let own = url == config.url;
        let trusted = config.redirect_hosts.iter().chain(&config.token_hosts);
        let dial = Dial::new(&host, trusted, &config.hosts, proxies(config));
        let timeouts = Timeouts::new(config, fetch);
        let connect = Connect::new(config, timeouts, dial.clone())?;
        let wire = Transport::new(
            upstream,
            base.clone(),
            connect,
            dial,
            timeouts,
            budget.clone(),
            metrics.clone(),
        );
        // A mirror is not the upstream: hosts below the upstream's name are not its realms.
        let realms = Realms::new(base.clone(), if own { upstream } else { &host }, &config.token_hosts);
        let server = if own && upstream == DOCKER_HUB {
            DOCKER_HUB_SERVER.to_owned()
        } else {
            base.port().map_or(host.clone(), |port| format!("{host}:{port}"))
        };
        let secrets = match &config.auth {
            Some(auth) => Secrets::new(auth, &server, own)?,
            None => Secrets::nothing(),
        };
        Ok(Self {
            exchange: Exchange::new(upstream, realms, secrets, metrics),
            breaker: Breaker::new(&config.breaker, upstream, metrics),
            holds: Holds::default(),
            upstream: upstream.to_owned(),
            metrics: metrics.clone(),
            base,
            wire,
        })
    }

    pub(super) fn wire(&self) -> &Transport {
        &self.wire
    }

    pub(super) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// The site's URL of `path` below `/v2/`.
    pub(super) fn url(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.base.clone();
        let prefix = self.base.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{prefix}/v2/{path}"));
        url.set_query(query);
        url
    }

    /// The part of `url` below `/v2/`, if it is one of this site's.
    pub(super) fn path_of<'u>(&self, url: &'u Url) -> Option<&'u str> {
        let prefix = self.base.path().trim_end_matches('/');
        let own = self.wire.is_own(url) && url.username().is_empty() && url.password().is_none();
        url.path().strip_prefix(prefix)?.strip_prefix("/v2/").filter(|_| own)
    }

    /// The answer, if its status is one of success; 416 counts as one.
    pub(super) async fn accepted(&self, ask: &Ask<'_>) -> Result<Response, UpstreamError> {
        let ours = self.exchange.is_ours(ask.caller);
        let counted = ask.counted();
        if ours {
            self.holds.check(counted)?;
        }
        let url = self.url(&ask.path, ask.query.as_deref());
        let mut response = self.exchange.ask(&self.wire, &url, ask).await?;
        if self.is_refused_elsewhere(&response) {
            match ask.method {
                // Signatures are often good for GET only: the blob may well be there. It is no proof of a right. A 400 is not
                // about the method, and who got one for a GET would believe this (`proof.rs`).
                Method::HEAD if ask.path.contains("/blobs/") && response.status() != StatusCode::BAD_REQUEST => {
                    return Ok(response);
                }
                // Signed URLs end; the registry has another.
                _ => {
                    drop(response);
                    response = self.exchange.ask(&self.wire, &url, ask).await?;
                }
            }
        }
        if ours && self.wire.is_own(response.url()) {
            let began = self
                .holds
                .learn(counted, response.status().as_u16(), response.headers());
            if began {
                tracing::warn!(
                    upstream = self.upstream,
                    "the upstream limits our requests: they are held back"
                );
                self.metrics.add(Count::RateHolds, 1, &[&self.upstream]);
            }
        }
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        self.wire.accept_status(response).await
    }

    /// A no from where the registry led us, not from the registry. 400 is what stores say when the link's time is over, or
    /// that of the credentials it was signed with (`ExpiredToken`).
    pub(super) fn is_refused_elsewhere(&self, response: &Response) -> bool {
        matches!(response.status().as_u16(), 400 | 401 | 403 | 405 | 410) && !self.wire.is_own(response.url())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(base: &str) -> Site {
        let config = UpstreamConfig::new("u", base);
        let budget = Budget::new(&config, "u", &Metrics::new()).unwrap();
        Site::new(&config, "u", base, &FetchConfig::default(), &budget, &Metrics::new()).unwrap()
    }

    #[test]
    fn paths_keep_the_prefix_of_the_url() {
        let at = |base: &str| site(base).url("a/b/manifests/latest", None).to_string();
        assert_eq!(at("http://h:5000"), "http://h:5000/v2/a/b/manifests/latest");
        assert_eq!(at("http://h/mirror/"), "http://h/mirror/v2/a/b/manifests/latest");
    }

    #[test]
    fn only_own_urls_have_a_path_here() {
        let site = site("http://h:5000/mirror");
        let of = |url: &str| site.path_of(&url.parse().unwrap()).map(str::to_owned);
        assert_eq!(
            of("http://h:5000/mirror/v2/a/tags/list?n=1").as_deref(),
            Some("a/tags/list")
        );
        for bad in [
            "http://h:5000/v2/a/tags/list",
            "http://h:5001/mirror/v2/a/tags/list",
            "https://h:5000/mirror/v2/a/tags/list",
            "http://u@h:5000/mirror/v2/a/tags/list",
            "http://evil:5000/mirror/v2/a/tags/list",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
