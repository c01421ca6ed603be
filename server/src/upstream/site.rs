//! One base URL of an upstream: its wire and its authorization.
//!
//! In: requests by path below `/v2/`. Out: answers with an accepted status.
//! Invariant: nothing that belongs to one site (token, Basic, realm) is used at another.
//! Not here: what the requests mean ([`super::client`]).

use http::{HeaderMap, Method, StatusCode};
use reqwest::{Response, Url};

use super::{Caller, UpstreamError, exchange::Exchange, transport::Transport};

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

    pub(super) fn with(mut self, headers: HeaderMap) -> Self {
        self.headers = headers;
        self
    }
}

/// One base URL.
#[derive(Debug)]
pub(super) struct Site {
    base: Url,
    wire: Transport,
    exchange: Exchange,
}

impl Site {
    pub(super) fn new(base: Url, wire: Transport, exchange: Exchange) -> Self {
        Self { base, wire, exchange }
    }

    pub(super) fn wire(&self) -> &Transport {
        &self.wire
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

    /// The answer, whatever its status.
    pub(super) async fn ask(&self, ask: &Ask<'_>) -> Result<Response, UpstreamError> {
        let url = self.url(&ask.path, ask.query.as_deref());
        self.exchange
            .ask(&self.wire, &ask.method, ask.repository, ask.caller, &url, &ask.headers)
            .await
    }

    /// The answer, if its status is one of success; 416 counts as one.
    pub(super) async fn accepted(&self, ask: &Ask<'_>) -> Result<Response, UpstreamError> {
        let response = self.ask(ask).await?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        self.wire.accept_status(response).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::FetchConfig, metrics::Metrics, upstream::auth::Realms};

    fn site(base: &str) -> Site {
        let base: Url = base.parse().unwrap();
        let wire = Transport::new("u", base.clone(), &FetchConfig::default(), Metrics::new()).unwrap();
        let exchange = Exchange::new(Realms::new(base.clone(), "u", &[]), None);
        Site::new(base, wire, exchange)
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
