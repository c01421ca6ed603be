//! The configured servers, in order, with failover.
//!
//! In: digests. Out: parsed, checked answers. Invariant: every request has deadlines, every body a bound, and a failing
//! server never hides a working one behind it.
//! Not here: chunk bytes (`fetch/data.rs`), and how long a caller keeps trying (it has the deadline).

use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::api::{ChainStatus, ImageStatus, LayerState, LayerStatus};
use headstart_layer_format::limits::{TOC_SIZE_MAX, TOC_WAIT_MS_MAX};
use headstart_layer_format::{BlobDigest, ChainId, Toc, routes};
use http::StatusCode;
use http::header::{ACCEPT, AUTHORIZATION};
use reqwest::{Client, RequestBuilder, Response};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tracing::{Span, info_span};

use super::body;
use super::budget::Budget;
pub use super::config::FetchConfig;
use super::demand::Demand;
pub use super::error::FetchError;
use super::health::Health;
use super::identity::Identity;
use super::original::Originals;
use super::pace::Pace;
use crate::contents::EncodedToc;
use crate::telemetry::{self, number, within};

/// Bytes of a status body: 500 layers of about 1 KiB each, with room for reasons.
const STATUS_SIZE_MAX: u64 = 4 << 20;
/// Servers one node may be configured with.
const SERVERS_MAX: usize = 16;
/// Idle connections kept to one server; more than this many runs rarely flow at once.
const IDLE_CONNECTIONS_MAX: usize = 16;

/// All servers of this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Servers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    identity: Identity,
    servers: Vec<Arc<Server>>,
    config: FetchConfig,
    budget: Budget,
    originals: Arc<Originals>,
    demand: Demand,
    pace: Pace,
}

/// One server.
#[derive(Debug)]
pub(super) struct Server {
    /// Base URL without a trailing slash.
    pub(super) base: String,
    pub(super) health: Health,
}

/// What the servers say about a layer's TOC.
#[derive(Debug)]
pub enum TocAnswer {
    /// The encoded TOC as served (its digest was compared with the header), and decoded; it describes the layer asked.
    Ready { encoded: EncodedToc, toc: Arc<Toc> },
    /// Known, but there is no TOC (yet).
    NotReady(Box<LayerStatus>),
    /// No server knows the layer.
    Unknown,
}

impl Servers {
    /// `urls` are base URLs in order of preference.
    pub fn new(urls: &[String], config: &FetchConfig) -> Result<Servers, FetchError> {
        if urls.is_empty() || urls.len() > SERVERS_MAX {
            return Err(FetchError::Config(format!("it must have 1 to {SERVERS_MAX} servers")));
        }
        let servers = urls.iter().map(|u| parse_base(u)).collect::<Result<Vec<_>, _>>()?;
        let (connect_timeout, pool_idle) = (config.connect_timeout(), config.pool_idle());
        let builder = move || {
            Client::builder()
                .user_agent(concat!("headstart-shim/", env!("CARGO_PKG_VERSION")))
                // The list is closed: neither an environment variable nor a server may lead elsewhere.
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(connect_timeout)
                .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
                .pool_idle_timeout(pool_idle)
                .tcp_nodelay(true)
        };
        let is_plain = servers.iter().any(|s| s.base.starts_with("http:"));
        let identity = Identity::new(&config.identity, is_plain, builder)?;
        Ok(Servers(Arc::new(Inner {
            identity,
            servers,
            config: config.clone(),
            budget: Budget::new(config.inflight_bytes_max),
            originals: Arc::new(Originals::new(&config.original, config)),
            demand: Demand::new(),
            pace: Pace::default(),
        })))
    }

    /// State of an image's layers; waits up to `wait_ms` on the server for conversions. `None`: no server knows it.
    pub async fn image(&self, manifest: &BlobDigest, wait_ms: u64) -> Result<Option<ImageStatus>, FetchError> {
        let empty = tracing::field::Empty;
        let span = info_span!("ask image", otel.kind = "client", %manifest, wait_ms = number(wait_ms), outcome = empty, server = empty);
        let found = within(span.clone(), self.image_now_or_later(manifest, wait_ms)).await?;
        let outcome = match &found {
            None => "unknown",
            Some(image) if image.is_ready() => "ready",
            Some(_) => "not ready",
        };
        span.record("outcome", outcome);
        Ok(found)
    }

    async fn image_now_or_later(&self, manifest: &BlobDigest, wait_ms: u64) -> Result<Option<ImageStatus>, FetchError> {
        // Asked without a wait first, so that a server that never answers holds a pull up for one response's time-out only.
        let now = self.image_within(manifest, 0).await?;
        let is_settled = |image: &ImageStatus| {
            image.layers.iter().all(|l| l.state == LayerState::Ready)
                || image
                    .layers
                    .iter()
                    .any(|l| matches!(l.state, LayerState::Refused | LayerState::Failed))
        };
        if wait_ms == 0 || now.as_ref().is_none_or(is_settled) {
            return Ok(now);
        }
        self.image_within(manifest, wait_ms).await
    }

    async fn image_within(&self, manifest: &BlobDigest, wait_ms: u64) -> Result<Option<ImageStatus>, FetchError> {
        let wait_ms = wait_ms.min(TOC_WAIT_MS_MAX);
        let path = format!("{}?{}={wait_ms}", routes::image(manifest), routes::WAIT_MS_QUERY);
        let found: Option<ImageStatus> = self.status(&path, Duration::from_millis(wait_ms)).await?;
        match found {
            Some(image) if image.manifest_digest != *manifest => {
                Err(FetchError::Malformed("a status is of another image"))
            }
            found => Ok(found),
        }
    }

    /// Which layer a chain ID ends in, and how its latest image stands. `None`: no server knows it.
    pub async fn chain(&self, chain: &ChainId) -> Result<Option<ChainStatus>, FetchError> {
        let path = format!("{}?{}=true", routes::chain(chain), routes::IMAGE_QUERY);
        let span = info_span!("ask chain", otel.kind = "client", %chain, server = tracing::field::Empty);
        let found: Option<ChainStatus> = within(span, self.status(&path, Duration::ZERO)).await?;
        match found {
            Some(status) if status.chain_id != *chain => Err(FetchError::Malformed("a status is of another chain")),
            found => Ok(found),
        }
    }

    /// The TOC of a layer; waits up to `wait_ms` on the server for its conversion.
    pub async fn toc(&self, layer: &BlobDigest, wait_ms: u64) -> Result<TocAnswer, FetchError> {
        let wait_ms = wait_ms.min(TOC_WAIT_MS_MAX);
        let mut best = None;
        let mut error = None;
        for server in self.order() {
            match self.toc_from(&server, layer, wait_ms).await {
                Ok(TocAnswer::Unknown) => best = best.or(Some(TocAnswer::Unknown)),
                // A conversion that failed here may be done there.
                Ok(TocAnswer::NotReady(status)) if status.state == LayerState::Failed => {
                    best = Some(TocAnswer::NotReady(status));
                }
                Ok(answer) => return Ok(answer),
                Err(e) => error = Some(e),
            }
        }
        best.ok_or_else(|| error.unwrap_or(FetchError::Deadline))
    }

    async fn toc_from(&self, server: &Server, layer: &BlobDigest, wait_ms: u64) -> Result<TocAnswer, FetchError> {
        let url = format!(
            "{}{}?{}={wait_ms}",
            server.base,
            routes::layer_toc(layer),
            routes::WAIT_MS_QUERY
        );
        let request = self.client().get(url).header(ACCEPT, routes::TOC_MEDIA_TYPE);
        let response = self.send(server, request, Duration::from_millis(wait_ms)).await?;
        match response.status() {
            StatusCode::OK => {
                let claimed = header(&response, routes::TOC_DIGEST_HEADER).map(str::to_owned);
                let bytes = self.noting(server, body::whole(response, TOC_SIZE_MAX, self.idle()).await)?;
                let layer = *layer;
                // Hashing and decoding a large TOC takes some 100 ms of CPU.
                tokio::task::spawn_blocking(move || check_toc(bytes, claimed.as_deref(), &layer))
                    .await
                    .map_err(|_| FetchError::Malformed("a TOC broke its decoder"))?
            }
            StatusCode::NOT_FOUND => Ok(TocAnswer::Unknown),
            StatusCode::ACCEPTED | StatusCode::UNPROCESSABLE_ENTITY | StatusCode::SERVICE_UNAVAILABLE => {
                let status: LayerStatus = body::json(response, STATUS_SIZE_MAX, self.idle()).await?;
                if status.digest != *layer {
                    return Err(FetchError::Malformed("a status is of another layer"));
                }
                Ok(TocAnswer::NotReady(Box::new(status)))
            }
            status => Err(refusal(server, status)),
        }
    }

    /// A JSON status from the first server that has it.
    async fn status<T: DeserializeOwned>(&self, path: &str, wait: Duration) -> Result<Option<T>, FetchError> {
        let mut error = None;
        let mut unknown = false;
        for server in self.order() {
            let request = self.client().get(format!("{}{path}", server.base));
            let answer = match self.send(&server, request, wait).await {
                Ok(r) if r.status() == StatusCode::NOT_FOUND => {
                    unknown = true;
                    continue;
                }
                Ok(r) if r.status() == StatusCode::OK => {
                    self.noting(&server, body::json(r, STATUS_SIZE_MAX, self.idle()).await)
                }
                Ok(r) => Err(refusal(&server, r.status())),
                Err(e) => Err(e),
            };
            match answer {
                Ok(found) => return Ok(Some(found)),
                Err(e) => error = Some(e),
            }
        }
        match error {
            _ if unknown => Ok(None),
            Some(e) => Err(e),
            None => Ok(None),
        }
    }

    /// Servers believed up, in configured order, then the others, soonest back first.
    pub(super) fn order(&self) -> Vec<Arc<Server>> {
        let now = Instant::now();
        let mut servers: Vec<_> = self.0.servers.iter().map(|s| (s.health.penalty(now), s)).collect();
        servers.sort_by_key(|(penalty, _)| *penalty);
        servers.into_iter().map(|(_, s)| Arc::clone(s)).collect()
    }

    /// Sends a request and waits for the headers. Any answer below 500 counts as a sign of health.
    pub(super) async fn send(
        &self,
        server: &Server,
        request: RequestBuilder,
        wait: Duration,
    ) -> Result<Response, FetchError> {
        let request = telemetry::propagate(self.authorized(request));
        let asked = Instant::now();
        let answer = match timeout(self.0.config.response_timeout() + wait, request.send()).await {
            Err(_) => Err(FetchError::Unreachable("it did not answer in time".into())),
            Ok(Err(e)) => Err(body::unreachable(&e)),
            Ok(Ok(response)) => Ok(response),
        };
        if answer.as_ref().is_ok_and(|r| !r.status().is_server_error()) {
            self.0.pace.answered(asked.elapsed());
            server.health.succeeded();
            // The last that answered. A span that has no field for it is not asked.
            Span::current().record("server", &server.base);
        }
        self.noting(server, answer)
    }

    /// With this node's credentials, if it has any.
    pub(super) fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match self.0.identity.now().1 {
            Some(authorization) => request.header(AUTHORIZATION, authorization),
            None => request,
        }
    }

    /// In the order of the configuration.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Server>> {
        self.0.servers.iter()
    }

    /// Counts a transport failure against the server.
    pub(super) fn noting<T>(&self, server: &Server, outcome: Result<T, FetchError>) -> Result<T, FetchError> {
        if let Err(FetchError::Unreachable(_)) = &outcome {
            server.health.failed();
        }
        outcome
    }

    /// For requests that [`Servers::send`] sends; each asks anew, for the node's identity may change.
    pub(super) fn client(&self) -> Client {
        self.0.identity.now().0
    }

    pub(super) fn config(&self) -> &FetchConfig {
        &self.0.config
    }

    pub(super) fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// Whether readers wait.
    pub fn demand(&self) -> &Demand {
        &self.0.demand
    }

    /// How far they are.
    pub fn pace(&self) -> &Pace {
        &self.0.pace
    }

    /// Where to turn when all of these fail.
    pub(super) fn originals(&self) -> &Arc<Originals> {
        &self.0.originals
    }

    pub(super) fn idle(&self) -> Duration {
        self.0.config.idle_timeout()
    }
}

/// A status that is not an answer: trouble on the server, or a no.
pub(super) fn refusal(server: &Server, status: StatusCode) -> FetchError {
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        server.health.failed();
        FetchError::Unreachable(format!("it answered {}", status.as_u16()))
    } else if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        FetchError::Unauthorized {
            status: status.as_u16(),
        }
    } else {
        FetchError::Rejected {
            status: status.as_u16(),
        }
    }
}

pub(super) fn header<'a>(response: &'a Response, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

fn check_toc(bytes: Vec<u8>, claimed: Option<&str>, layer: &BlobDigest) -> Result<TocAnswer, FetchError> {
    let encoded = EncodedToc::new(bytes);
    if claimed.is_some_and(|c| c != encoded.digest().to_string()) {
        return Err(FetchError::Malformed("a TOC differs from the digest it came with"));
    }
    let toc = Toc::decode(encoded.bytes()).map_err(|e| {
        tracing::warn!(layer = %layer, error = %e, "toc-malformed");
        FetchError::Malformed("a TOC does not decode")
    })?;
    if toc.layer_digest() != layer {
        return Err(FetchError::Malformed("a TOC is of another layer"));
    }
    Ok(TocAnswer::Ready {
        encoded,
        toc: Arc::new(toc),
    })
}

fn parse_base(text: &str) -> Result<Arc<Server>, FetchError> {
    let bad = |why: &str| FetchError::Config(format!("{text:?} {why}"));
    let url = reqwest::Url::parse(text).map_err(|e| bad(&format!("is not a URL: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(bad("is not an http or https URL"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("must not have a query or a fragment"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Not repeated: it would be in the log.
        let what = "a server's URL must not have a user or a password; use [fetch.identity]";
        return Err(FetchError::Config(what.into()));
    }
    Ok(Arc::new(Server {
        base: url.as_str().trim_end_matches('/').to_owned(),
        health: Health::default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_checked_at_the_edge() {
        let new = |urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(|u| u.to_string()).collect();
            Servers::new(&urls, &FetchConfig::default())
        };
        assert!(new(&["http://127.0.0.1:1", "https://h/prefix/"]).is_ok());
        for bad in [
            &["ftp://h"][..],
            &["not a url"],
            &["http://h/?q=1"],
            &[],
            &["http://h"; 17],
        ] {
            assert!(matches!(new(bad), Err(FetchError::Config(_))), "{bad:?}");
        }
        let error = new(&["http://node:s3cret@h"]).err().map(|e| e.to_string());
        assert!(error.is_some_and(|e| !e.contains("s3cret")));
    }

    #[test]
    fn a_failed_server_is_asked_last_and_never_left_out() {
        let urls = ["http://a", "http://b", "http://c"].map(String::from);
        let servers = Servers::new(&urls, &FetchConfig::default()).unwrap_or_else(|e| panic!("{e}"));
        let names = |s: &Servers| s.order().iter().map(|s| s.base.clone()).collect::<Vec<_>>();
        assert_eq!(names(&servers), urls);
        servers.order()[0].health.failed();
        assert_eq!(names(&servers), ["http://b", "http://c", "http://a"]);
    }
}
