//! One upstream registry, read only.
//!
//! In: repository, reference or digest, and the client's `Accept` values. Out: manifest heads, manifests, blob bodies.
//! Invariant: redirects are followed by hand, [`HOPS_MAX`] at most, never from https to http, never to an address that
//! only this machine or its link has; `Authorization` goes to the upstream's own origin alone. Every wait and every
//! body held in memory has a bound. No content coding is asked for, so bodies are the registry's bytes.
//! Not here: verification of digests, and resuming a blob (`read/`); which credentials to use ([`super::auth`]).

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use headstart_layer_format::BlobDigest;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use reqwest::{Client, Response, Url};
use tokio::{sync::Mutex, time::timeout};

use super::{
    Caller, Reference, UpstreamError,
    auth::{Challenge, Credentials, Realms, Token, Tokens, token_url},
};
use crate::{
    config::{FetchConfig, UpstreamConfig},
    metrics::Metrics,
};

/// Redirects in one request. Registries use one (to a CDN), some two.
const HOPS_MAX: usize = 5;

/// Requests that fail for want of an answer are sent once more, after this.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// A body that is read into memory gets this many times the time of a head. The time-out between two pieces alone would
/// let an upstream that sends a byte now and then hold every client of a tag for ever.
const SMALL_BODY_TIMES: u32 = 3;

/// Error and token bodies beyond this are not read.
const SMALL_BODY_MAX: usize = 64 << 10;

/// Token exchanges of one upstream that run at once; repositories share them by hash.
const EXCHANGE_LANES: usize = 16;

/// What we ask for when the client said nothing: every manifest type in use.
const ACCEPT_DEFAULT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/json;q=0.5, */*;q=0.1";

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// One registry of the configured set.
#[derive(Debug)]
pub struct Upstream {
    name: String,
    base: Url,
    http: Client,
    header_timeout: Duration,
    credentials: Option<Credentials>,
    realms: Realms,
    tokens: Tokens,
    /// The upstream has asked for Basic before, so it is sent at once.
    basic: AtomicBool,
    exchanges: [Mutex<()>; EXCHANGE_LANES],
    metrics: Metrics,
}

/// Answer to HEAD of a manifest. Any header may be missing.
#[derive(Clone, Debug)]
pub struct ManifestHead {
    pub digest: Option<BlobDigest>,
    pub media_type: Option<String>,
}

/// Answer to GET of a manifest; not verified yet.
#[derive(Clone, Debug)]
pub struct ManifestAnswer {
    pub bytes: Bytes,
    pub digest: Option<BlobDigest>,
    pub media_type: Option<String>,
}

/// Answer to GET of a blob.
#[derive(Debug)]
pub enum BlobAnswer {
    Body(BlobBody),
    /// The range asked for begins at the end of the blob, which has this size.
    Complete {
        size: u64,
    },
}

/// A blob's body from `start` on.
#[derive(Debug)]
pub struct BlobBody {
    /// 0 when the upstream ignored the range.
    pub start: u64,
    /// Size of the whole blob, when the upstream said so.
    pub size: Option<u64>,
    response: Response,
    upstream: String,
    metrics: Metrics,
}

impl BlobBody {
    /// The next bytes; `None` at the end of the body.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let chunk = self.response.chunk().await?;
        if let Some(chunk) = &chunk {
            self.metrics.upstream_bytes(&self.upstream, chunk.len() as u64);
        }
        Ok(chunk)
    }
}

impl Upstream {
    /// `name` is the canonical one. Errors are texts for the operator.
    pub fn new(config: &UpstreamConfig, name: &str, fetch: &FetchConfig, metrics: Metrics) -> Result<Self, String> {
        let base = Url::parse(&config.url).map_err(|e| format!("url {:?}: {e}", config.url))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(format!("url {:?} is not http(s)://host", config.url));
        }
        if !base.username().is_empty() || base.password().is_some() || base.query().is_some() {
            return Err("url must not carry a user, a password or a query; use [upstreams.auth]".into());
        }
        let http = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_millis(fetch.connect_timeout_ms))
            .read_timeout(Duration::from_millis(fetch.idle_timeout_ms))
            .user_agent(concat!("headstart-server/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| format!("no HTTP client: {e}"))?;
        Ok(Self {
            name: name.to_owned(),
            realms: Realms::new(base.clone(), name, &config.token_hosts),
            base,
            http,
            header_timeout: Duration::from_millis(fetch.header_timeout_ms),
            credentials: config.auth.as_ref().map(Credentials::load).transpose()?,
            tokens: Tokens::default(),
            basic: AtomicBool::new(false),
            exchanges: std::array::from_fn(|_| Mutex::new(())),
            metrics,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// HEAD of a manifest.
    pub async fn manifest_head(
        &self,
        repository: &str,
        caller: &Caller,
        reference: &Reference,
        accept: &[HeaderValue],
    ) -> Result<ManifestHead, UpstreamError> {
        let url = self.url(repository, "manifests", &reference.to_string());
        let response = self
            .fetch(Method::HEAD, repository, caller, url, accept_headers(accept))
            .await?;
        Ok(ManifestHead {
            digest: content_digest(response.headers())?,
            media_type: media_type(response.headers()),
        })
    }

    /// GET of a manifest of at most `size_max` bytes.
    pub async fn manifest(
        &self,
        repository: &str,
        caller: &Caller,
        reference: &Reference,
        accept: &[HeaderValue],
        size_max: u64,
    ) -> Result<ManifestAnswer, UpstreamError> {
        let url = self.url(repository, "manifests", &reference.to_string());
        let response = self
            .fetch(Method::GET, repository, caller, url, accept_headers(accept))
            .await?;
        let digest = content_digest(response.headers())?;
        let media_type = media_type(response.headers());
        let size_max = usize::try_from(size_max).unwrap_or(usize::MAX);
        let bytes = self
            .read_bounded(response, size_max)
            .await?
            .ok_or(UpstreamError::BadAnswer("the manifest is over the size limit"))?;
        self.metrics.upstream_bytes(&self.name, bytes.len() as u64);
        Ok(ManifestAnswer {
            bytes,
            digest,
            media_type,
        })
    }

    /// HEAD of a blob: does the repository have it, for these credentials? Its size, if the upstream says so.
    pub async fn blob_head(
        &self,
        repository: &str,
        caller: &Caller,
        digest: &BlobDigest,
    ) -> Result<Option<u64>, UpstreamError> {
        let url = self.url(repository, "blobs", &digest.to_string());
        let response = self
            .fetch(Method::HEAD, repository, caller, url, HeaderMap::new())
            .await?;
        // `Response::content_length` is that of the body, which a HEAD does not have.
        let length = response.headers().get(header::CONTENT_LENGTH);
        Ok(length.and_then(|l| l.to_str().ok()?.parse().ok()))
    }

    /// GET of a blob from byte `from` on.
    pub async fn blob(
        &self,
        repository: &str,
        caller: &Caller,
        digest: &BlobDigest,
        from: u64,
    ) -> Result<BlobAnswer, UpstreamError> {
        let url = self.url(repository, "blobs", &digest.to_string());
        let mut headers = HeaderMap::new();
        if from > 0 {
            let range = HeaderValue::from_str(&format!("bytes={from}-")).expect("digits make a header value");
            headers.insert(header::RANGE, range);
        }
        let response = match self.exchange(&Method::GET, repository, caller, &url, &headers).await? {
            r if r.status() == StatusCode::RANGE_NOT_SATISFIABLE && from > 0 => {
                return match content_range(r.headers()) {
                    Some((None, Some(size))) if size == from => Ok(BlobAnswer::Complete { size }),
                    _ => Err(UpstreamError::Status(416)),
                };
            }
            r => self.accept_status(r).await?,
        };
        let (start, size) = match response.status() {
            StatusCode::PARTIAL_CONTENT => match content_range(response.headers()) {
                Some((Some(start), size)) if start == from => (start, size),
                _ => return Err(UpstreamError::BadAnswer("206 with another range than asked")),
            },
            _ => (0, response.content_length()),
        };
        Ok(BlobAnswer::Body(BlobBody {
            start,
            size,
            response,
            upstream: self.name.clone(),
            metrics: self.metrics.clone(),
        }))
    }

    /// Parts come from parsed types, so nothing needs escaping.
    fn url(&self, repository: &str, kind: &str, last: &str) -> Url {
        let mut url = self.base.clone();
        let prefix = self.base.path().trim_end_matches('/').to_owned();
        url.set_path(&format!("{prefix}/v2/{repository}/{kind}/{last}"));
        url
    }

    /// A request and its check, once more if the upstream did not answer properly the first time.
    async fn fetch(
        &self,
        method: Method,
        repository: &str,
        caller: &Caller,
        url: Url,
        headers: HeaderMap,
    ) -> Result<Response, UpstreamError> {
        let once = || async {
            let response = self.exchange(&method, repository, caller, &url, &headers).await?;
            self.accept_status(response).await
        };
        match once().await {
            // A time-out has already used up the client's patience.
            Err(error) if error.is_transient() && error != UpstreamError::Timeout => {
                tokio::time::sleep(RETRY_PAUSE).await;
                once().await
            }
            done => done,
        }
    }

    /// A request with the authorization that the upstream wants: what we have, and if that is not it, what it asks for.
    async fn exchange(
        &self,
        method: &Method,
        repository: &str,
        caller: &Caller,
        url: &Url,
        headers: &HeaderMap,
    ) -> Result<Response, UpstreamError> {
        if *caller != Caller::Server {
            // Until credentials of clients are forwarded, nobody is served with them.
            return Err(UpstreamError::Denied { status: 401 });
        }
        let mut authorization = match self.tokens.get(repository) {
            Some(token) => Some(token.header()),
            None if self.basic.load(Ordering::Relaxed) => self.basic_header(),
            None => None,
        };
        let response = self.follow(method, url, headers, authorization.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || origin(response.url()) != origin(&self.base) {
            return Ok(response);
        }
        match Challenge::from_headers(response.headers()) {
            Some(Challenge::Basic) if self.credentials.is_some() => {
                self.basic.store(true, Ordering::Relaxed);
                let basic = self.basic_header();
                if basic == authorization {
                    return Ok(response);
                }
                authorization = basic;
            }
            Some(Challenge::Bearer { realm, service, scope }) => {
                let lane = self.lane(repository).lock().await;
                if let Some(refused) = &authorization {
                    self.tokens.forget(repository, refused);
                }
                let token = match self.tokens.get(repository) {
                    Some(token) => token,
                    None => {
                        let token_at = token_url(&realm, service.as_deref(), scope.as_deref(), repository);
                        let token = self.token(&token_at).await?;
                        self.tokens.put(repository, token.clone());
                        token
                    }
                };
                drop(lane);
                authorization = Some(token.header());
            }
            _ => return Ok(response),
        }
        drop(response);
        self.follow(method, url, headers, authorization.as_ref()).await
    }

    fn lane(&self, repository: &str) -> &Mutex<()> {
        let mut hasher = DefaultHasher::new();
        repository.hash(&mut hasher);
        &self.exchanges[(hasher.finish() % EXCHANGE_LANES as u64) as usize]
    }

    fn basic_header(&self) -> Option<HeaderValue> {
        let credentials = self.credentials.as_ref()?;
        let request = self
            .http
            .get(self.base.clone())
            .basic_auth(&credentials.username, Some(&credentials.password))
            .build()
            .ok()?;
        request.headers().get(header::AUTHORIZATION).cloned()
    }

    /// Exchanges the credentials, or nothing, for a bearer token.
    async fn token(&self, url: &Url) -> Result<Token, UpstreamError> {
        if !self.realms.allow(url) {
            tracing::warn!(
                upstream = self.name,
                realm = url.host_str(),
                "token realm is not pinned for this upstream"
            );
            return Err(UpstreamError::ForeignRealm);
        }
        let asked = Instant::now();
        let basic = self.basic_header();
        let response = self.send(&Method::GET, url, &HeaderMap::new(), basic.as_ref()).await?;
        let response = match response.status() {
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => {
                return Err(UpstreamError::Denied {
                    status: response.status().as_u16(),
                });
            }
            _ => self.accept_status(response).await?,
        };
        let body = self.read_bounded(response, SMALL_BODY_MAX).await?;
        body.and_then(|body| Token::from_answer(&body, asked))
            .ok_or(UpstreamError::BadAnswer("no token in the token answer"))
    }

    /// Sends, and follows redirects.
    async fn follow(
        &self,
        method: &Method,
        url: &Url,
        headers: &HeaderMap,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, UpstreamError> {
        let mut url = url.clone();
        for _ in 0..=HOPS_MAX {
            let own = origin(&url) == origin(&self.base);
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
    async fn send(
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
        self.metrics.upstream_request(&self.name, label, status);
        answer
    }

    /// Sorts statuses. The body of a 404 is read for its code.
    async fn accept_status(&self, response: Response) -> Result<Response, UpstreamError> {
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            404 => {
                let body = self.read_bounded(response, SMALL_BODY_MAX).await.ok().flatten();
                let name_unknown = body.is_some_and(|b| b.windows(14).any(|w| w == b"\"NAME_UNKNOWN\""));
                Err(UpstreamError::NotFound { name_unknown })
            }
            status @ (401 | 403) => Err(UpstreamError::Denied { status }),
            429 => Err(UpstreamError::TooManyRequests {
                retry_after_secs: retry_after(response.headers()),
            }),
            status => Err(UpstreamError::Status(status)),
        }
    }

    /// The whole body, or `None` if it is longer than `size_max`.
    async fn read_bounded(&self, mut response: Response, size_max: usize) -> Result<Option<Bytes>, UpstreamError> {
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

fn accept_headers(accept: &[HeaderValue]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in accept {
        headers.append(header::ACCEPT, value.clone());
    }
    if accept.is_empty() {
        headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT_DEFAULT));
    }
    headers
}

/// Seconds only; the date form is rare and needs a clock we share with the upstream.
fn retry_after(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()
}

fn content_digest(headers: &HeaderMap) -> Result<Option<BlobDigest>, UpstreamError> {
    let Some(value) = headers.get(DOCKER_CONTENT_DIGEST) else {
        return Ok(None);
    };
    let parsed = value.to_str().ok().and_then(|v| v.parse().ok());
    parsed
        .map(Some)
        .ok_or(UpstreamError::BadAnswer("a malformed Docker-Content-Digest"))
}

/// `Content-Type` without parameters.
fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let bare = value.split(';').next().unwrap_or_default().trim();
    (!bare.is_empty()).then(|| bare.to_owned())
}

/// `bytes 5-9/10` is `(Some(5), Some(10))`, `bytes */10` is `(None, Some(10))`, `bytes 5-9/*` is `(Some(5), None)`.
fn content_range(headers: &HeaderMap) -> Option<(Option<u64>, Option<u64>)> {
    let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, size) = value.strip_prefix("bytes ")?.split_once('/')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    if range == "*" {
        return Some((None, size));
    }
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    // Anything but "up to the end" would leave a hole.
    let to_the_end = size.is_none_or(|size| last.checked_add(1) == Some(size));
    (first <= last && to_the_end).then_some((Some(first), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(url: &str) -> Upstream {
        let config = UpstreamConfig::new("u", url);
        Upstream::new(&config, "u", &FetchConfig::default(), Metrics::new()).unwrap()
    }

    #[test]
    fn redirects_stay_encrypted_and_off_this_machine() {
        let upstream = upstream("https://r.example.org");
        let may = |to: &str| upstream.may_redirect(&upstream.base, &to.parse().unwrap());
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

    /// Only the pause between two pieces was bounded, so a manifest that came a byte at a time held its clients, who
    /// share one request, as long as the upstream liked.
    #[tokio::test]
    async fn a_body_that_drips_is_given_up() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _request = stream.read(&mut [0; 4096]).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
                .await
                .unwrap();
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        let fetch = FetchConfig {
            header_timeout_ms: 500,
            ..FetchConfig::default()
        };
        let upstream = Upstream::new(&UpstreamConfig::new("u", url), "u", &fetch, Metrics::new()).unwrap();
        let reference = "t".parse().unwrap();
        let answer = upstream.manifest("r", &Caller::Server, &reference, &[], 1 << 20);
        let answer = timeout(Duration::from_secs(20), answer).await.expect("it ends");
        assert_eq!(answer.unwrap_err(), UpstreamError::Timeout);
    }

    #[test]
    fn paths_keep_the_prefix_of_the_url() {
        let at = |url: &str| upstream(url).url("a/b", "manifests", "latest").to_string();
        assert_eq!(at("http://h:5000"), "http://h:5000/v2/a/b/manifests/latest");
        assert_eq!(at("http://h/mirror/"), "http://h/mirror/v2/a/b/manifests/latest");
    }

    #[test]
    fn urls_with_secrets_in_them_are_refused() {
        for bad in ["ftp://h", "http://u:p@h", "not a url", "http://h?x=1"] {
            let config = UpstreamConfig::new("u", bad);
            assert!(
                Upstream::new(&config, "u", &FetchConfig::default(), Metrics::new()).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn content_ranges_must_reach_the_end() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, HeaderValue::from_static(text));
            content_range(&headers)
        };
        assert_eq!(of("bytes 5-9/10"), Some((Some(5), Some(10))));
        assert_eq!(of("bytes */10"), Some((None, Some(10))));
        assert_eq!(of("bytes 5-9/*"), Some((Some(5), None)));
        for bad in [
            "bytes 5-8/10",
            "bytes 9-5/10",
            "items 5-9/10",
            "bytes 5-9",
            "bytes a-b/c",
        ] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
