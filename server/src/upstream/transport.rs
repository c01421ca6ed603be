//! One request of an upstream on the wire, with its redirects.
//!
//! In: method, URL, headers, and the `Authorization` for the upstream's own origin. Out: an answer's head, sorted by
//! status; small bodies.
//! Invariant: redirects are followed by hand, [`HOPS_MAX`] at most, never from https to http, never to an address that
//! only this machine or its link has; `Authorization` goes to the upstream's own origin alone. Every wait and every
//! body held in memory has a bound. No content coding is asked for, so bodies are the registry's bytes.
//! Not here: which authorization to use ([`super::exchange`]).

use std::{net::IpAddr, time::Duration};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, header};
use reqwest::{Client, Response, Url};
use tokio::time::timeout;

use super::UpstreamError;
use crate::{config::FetchConfig, metrics::Metrics};

/// Redirects in one request. Registries use one (to a CDN), some two.
const HOPS_MAX: usize = 5;

/// A body that is read into memory gets this many times the time of a head. The time-out between two pieces alone would
/// let an upstream that sends a byte now and then hold every client of a tag for ever.
const SMALL_BODY_TIMES: u32 = 3;

/// Error and token bodies beyond this are not read.
pub(super) const SMALL_BODY_MAX: usize = 64 << 10;

/// The wire to one origin and to where it redirects.
#[derive(Debug)]
pub(super) struct Transport {
    upstream: String,
    base: Url,
    http: Client,
    header_timeout: Duration,
    metrics: Metrics,
}

impl Transport {
    /// `upstream` is the name in metrics, `base` the own origin.
    pub(super) fn new(upstream: &str, base: Url, fetch: &FetchConfig, metrics: Metrics) -> Result<Self, String> {
        let http = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_millis(fetch.connect_timeout_ms))
            .read_timeout(Duration::from_millis(fetch.idle_timeout_ms))
            .user_agent(concat!("headstart-server/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| format!("no HTTP client: {e}"))?;
        Ok(Self {
            upstream: upstream.to_owned(),
            base,
            http,
            header_timeout: Duration::from_millis(fetch.header_timeout_ms),
            metrics,
        })
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
            let next = location.and_then(|l| url.join(l).ok());
            url = next
                .filter(|next| self.may_redirect(&url, next))
                .ok_or(UpstreamError::BadAnswer("a redirect to where we do not go"))?;
        }
        Err(UpstreamError::BadAnswer("too many redirects"))
    }

    /// Redirects stay encrypted, and lead to addresses of this machine or link only from an upstream that has such an
    /// address itself. (Names that *resolve* to such addresses are not seen here.)
    fn may_redirect(&self, from: &Url, to: &Url) -> bool {
        let encrypted = to.scheme() == "https" || (to.scheme() == "http" && from.scheme() == "http");
        encrypted && (!is_local(to) || is_local(&self.base))
    }

    /// One request, one answer head.
    pub(super) async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, UpstreamError> {
        let mut request = self
            .http
            .request(method.clone(), url.clone())
            .header(header::ACCEPT_ENCODING, "identity")
            .headers(headers.clone());
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value.clone());
        }
        let answer = match timeout(self.header_timeout, request.send()).await {
            Ok(answer) => answer.map_err(UpstreamError::from),
            Err(_) => Err(UpstreamError::Timeout),
        };
        let label = if *method == Method::HEAD { "HEAD" } else { "GET" };
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
                retry_after_secs: retry_after(response.headers()),
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

/// Scheme, host and port.
fn origin(url: &Url) -> (&str, Option<&str>, Option<u16>) {
    (url.scheme(), url.host_str(), url.port_or_known_default())
}

/// Loopback, link-local and unspecified addresses, and the name of the first.
fn is_local(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return true };
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
        Ok(IpAddr::V6(ip)) => match ip.to_ipv4_mapped() {
            Some(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
            None => ip.is_loopback() || ip.is_unicast_link_local() || ip.is_unspecified(),
        },
        Err(_) => host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost"),
    }
}

/// Seconds only; the date form is rare and needs a clock we share with the upstream.
fn retry_after(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_encrypted_and_off_this_machine() {
        let base: Url = "https://r.example.org".parse().unwrap();
        let transport = Transport::new("u", base.clone(), &FetchConfig::default(), Metrics::new()).unwrap();
        let may = |to: &str| transport.may_redirect(&base, &to.parse().unwrap());
        assert!(may("https://cdn.example.net/x?sig=1"));
        for bad in [
            "http://cdn.example.net/x",
            "https://127.0.0.1/x",
            "https://localhost/x",
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
