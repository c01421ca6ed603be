//! One request of an upstream on the wire, with its redirects.
//!
//! In: method, URL, headers, and the `Authorization` for the upstream's own origin. Out: an answer's head, sorted by
//! status; small bodies.
//! Invariant: redirects are followed by hand, [`HOPS_MAX`] at most, never from https to http, never to an address that
//! only this site, machine or link has; `Authorization` goes to the upstream's own origin alone. Every wait and every
//! body held in memory has a bound. No content coding is asked for, so bodies are the registry's bytes.
//! Not here: which authorization to use ([`super::exchange`]).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, header};
use reqwest::{RequestBuilder, Response, Url};
use tokio::time::timeout;
use tracing::Instrument as _;

use super::{
    UpstreamError,
    budget::Budget,
    connect::{Connect, Pair, Timeouts},
    dial::Dial,
    hold::{HOLD_MAX, retry_after},
};
use crate::{metrics::Metrics, telemetry};

/// Redirects in one request. Registries use one (to a CDN), some two.
const HOPS_MAX: usize = 5;
/// How requests for tokens are counted, whatever their method.
const TOKEN: &str = "TOKEN";

/// A body that is read into memory gets this many times the time of a head. The time-out between two pieces alone would
/// let an upstream that sends a byte now and then hold every client of a tag for ever.
const SMALL_BODY_TIMES: u32 = 3;

/// Error and token bodies beyond this are not read.
pub(super) const SMALL_BODY_MAX: usize = 64 << 10;

/// The wire to one origin and to where it leads.
#[derive(Debug)]
pub(super) struct Transport {
    upstream: String,
    base: Url,
    connect: Connect,
    dial: Dial,
    header_timeout: Duration,
    budget: Budget,
    metrics: Metrics,
}

impl Transport {
    /// `upstream` is the name in metrics, `base` the own origin.
    pub(super) fn new(
        upstream: &str,
        base: Url,
        connect: Connect,
        dial: Dial,
        timeouts: Timeouts,
        budget: Budget,
        metrics: Metrics,
    ) -> Self {
        Self {
            upstream: upstream.to_owned(),
            base,
            connect,
            dial,
            header_timeout: timeouts.header,
            budget,
            metrics,
        }
    }

    /// Whether `url` is at the upstream's own origin.
    pub(super) fn is_own(&self, url: &Url) -> bool {
        origin(url) == origin(&self.base)
    }

    /// Sends, and follows redirects.
    pub(super) async fn follow(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, UpstreamError> {
        let mut url = url.clone();
        for _ in 0..=HOPS_MAX {
            let own = self.is_own(&url);
            let response = self.send(method, &url, headers, authorization.filter(|_| own)).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let location = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
            let next = location.and_then(|l| without_user(url.join(l).ok()?));
            url = next
                .filter(|next| self.may_redirect(&url, next))
                .ok_or(UpstreamError::BadAnswer("a redirect to where we do not go"))?;
        }
        Err(UpstreamError::BadAnswer("too many redirects"))
    }

    /// Redirects stay encrypted, and lead to addresses that others cannot name only where the operator or the upstream's
    /// own address allows it. Names are checked when they are looked up.
    fn may_redirect(&self, from: &Url, to: &Url) -> bool {
        let encrypted = to.scheme() == "https" || (to.scheme() == "http" && from.scheme() == "http");
        encrypted && to.host_str().is_some_and(|host| self.dial.allows(host))
    }

    /// One request, one answer head.
    pub(super) async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, UpstreamError> {
        let label = if *method == Method::HEAD { "HEAD" } else { "GET" };
        self.send_as(label, method, url, headers, authorization).await
    }

    async fn send_as(
        &self,
        label: &'static str,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, UpstreamError> {
        let pair = self.pair();
        let own = self.is_own(url);
        if own {
            self.budget.request().await?;
        }
        let client = if own { &pair.own } else { &pair.away };
        let mut request = client
            .request(method.clone(), url.clone())
            .header(header::ACCEPT_ENCODING, "identity")
            .headers(headers.clone());
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value.clone());
        }
        self.head_of(request, label).await
    }

    /// A form sent to a token realm; it carries its secret itself.
    pub(super) async fn post_form(&self, url: &Url, fields: &[(&str, &str)]) -> Result<Response, UpstreamError> {
        if !url.host_str().is_some_and(|host| self.dial.allows(host)) {
            return Err(UpstreamError::BadAnswer(
                "a token realm at an address where we do not go",
            ));
        }
        let mut form = Url::parse("form:").map_err(|_| UpstreamError::BadAnswer("no form"))?;
        form.query_pairs_mut().extend_pairs(fields);
        let pair = self.pair();
        let client = if self.is_own(url) { &pair.own } else { &pair.away };
        let request = client
            .post(url.clone())
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form.query().unwrap_or_default().to_owned());
        self.head_of(request, TOKEN).await
    }

    /// A token realm is asked with a secret; where it may be was checked by name, here by address.
    pub(super) async fn get_token(
        &self,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, UpstreamError> {
        if !url.host_str().is_some_and(|host| self.dial.allows(host)) {
            return Err(UpstreamError::BadAnswer(
                "a token realm at an address where we do not go",
            ));
        }
        self.send_as(TOKEN, &Method::GET, url, &HeaderMap::new(), authorization)
            .await
    }

    /// Within which a head has to come.
    pub(super) fn header_timeout(&self) -> Duration {
        self.header_timeout
    }

    fn pair(&self) -> Arc<Pair> {
        self.connect.pair()
    }

    async fn head_of(&self, request: RequestBuilder, label: &'static str) -> Result<Response, UpstreamError> {
        let mut told = HeaderMap::new();
        let span = tracing::info_span!("upstream", otel.kind = "client", upstream = %self.upstream, method = label);
        span.in_scope(|| telemetry::propagate(&mut told));
        let started = Instant::now();
        let sent = timeout(self.header_timeout, request.headers(told).send());
        let answer = match sent.instrument(span.clone()).await {
            Ok(answer) => answer.map_err(UpstreamError::from),
            Err(_) => Err(UpstreamError::Timeout),
        };
        match &answer {
            Ok(answer) => {
                self.metrics.upstream_head(&self.upstream, started.elapsed());
                telemetry::status(&span, answer.status().as_u16());
            }
            Err(error) => telemetry::failed(&span, error),
        }
        let status = answer.as_ref().ok().map(|a| a.status().as_u16());
        self.metrics.upstream_request(&self.upstream, label, status);
        answer
    }

    /// Sorts statuses. The body of a 404 is read for its code.
    pub(super) async fn accept_status(&self, response: Response) -> Result<Response, UpstreamError> {
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            404 => {
                let body = self.read_bounded(response, SMALL_BODY_MAX).await.ok().flatten();
                let name_unknown = body.is_some_and(|b| b.windows(14).any(|w| w == b"\"NAME_UNKNOWN\""));
                Err(UpstreamError::NotFound { name_unknown })
            }
            // What another host refuses says nothing about the repository.
            status @ (401 | 403) if self.is_own(response.url()) => Err(UpstreamError::Denied { status }),
            429 => Err(UpstreamError::TooManyRequests {
                retry_after_secs: retry_after(response.headers()).map(|wait| wait.as_secs()),
            }),
            503 => Err(match retry_after(response.headers()).filter(|wait| !wait.is_zero()) {
                Some(wait) => UpstreamError::Unavailable {
                    retry_after_secs: wait.min(HOLD_MAX).as_secs(),
                },
                None => UpstreamError::Status(503),
            }),
            status => Err(UpstreamError::Status(status)),
        }
    }

    /// The whole body, or `None` if it is longer than `size_max`.
    pub(super) async fn read_bounded(
        &self,
        mut response: Response,
        size_max: usize,
    ) -> Result<Option<Bytes>, UpstreamError> {
        let read = async {
            let mut out = BytesMut::new();
            while let Some(chunk) = response.chunk().await? {
                if out.len() + chunk.len() > size_max {
                    return Ok(None);
                }
                out.extend_from_slice(&chunk);
            }
            Ok(Some(out.freeze()))
        };
        let time_max = self.header_timeout.saturating_mul(SMALL_BODY_TIMES);
        timeout(time_max, read).await.unwrap_or(Err(UpstreamError::Timeout))
    }
}

/// A user in a URL would be sent as `Authorization`.
fn without_user(mut url: Url) -> Option<Url> {
    url.set_username("").ok()?;
    url.set_password(None).ok()?;
    Some(url)
}

/// Scheme, host and port.
fn origin(url: &Url) -> (&str, Option<&str>, Option<u16>) {
    (url.scheme(), url.host_str(), url.port_or_known_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{FetchConfig, UpstreamConfig},
        upstream::site::Site,
    };

    #[test]
    fn redirects_stay_encrypted_and_off_this_machine() {
        let config = UpstreamConfig::new("u", "https://r.example.org");
        let (fetch, metrics) = (FetchConfig::default(), Metrics::new());
        let budget = Budget::new(&config, "u", &metrics).unwrap();
        let site = Site::new(&config, "u", &config.url, &fetch, &budget, &metrics).unwrap();
        let base: Url = config.url.parse().unwrap();
        let may = |to: &str| site.wire().may_redirect(&base, &to.parse().unwrap());
        assert!(may("https://cdn.example.net/x?sig=1"));
        for bad in [
            "http://cdn.example.net/x",
            "https://127.0.0.1/x",
            "https://10.0.0.1/x",
            "https://169.254.169.254/latest/meta-data",
            "https://[::1]/x",
            "https://[::ffff:127.0.0.1]/x",
            "https://0.0.0.0/x",
            "ftp://cdn.example.net/x",
        ] {
            assert!(!may(bad), "{bad}");
        }
    }
}
