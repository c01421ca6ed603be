//! One upstream registry, read only.
//!
//! In: repository, reference or digest, on whose behalf, and the client's `Accept` values. Out: manifest heads,
//! manifests, blob bodies, and how the upstream does.
//! Invariant: every answer is checked for shape (status, range, size bound) before it is handed on; nothing is
//! believed about the bytes.
//! Not here: verification of digests, and resuming a blob (`read/`); the wire ([`super::transport`]) and authorization
//! ([`super::exchange`]).

use std::{
    ops::Range,
    sync::Mutex,
    time::{Duration, Instant},
};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::{Response, Url};

use super::{
    Caller, Reference, UpstreamError,
    answer::{ContentRange, ManifestAnswer, ManifestHead, accept_headers, content_digest, content_length, media_type},
    body::{BlobAnswer, BlobBody, Flow, Pace, RangeAnswer},
    breaker::Breaker,
    budget::{Budget, Place},
    site::{Ask, Site},
};
use crate::{
    config::{FetchConfig, HoldMode, UpstreamConfig},
    metrics::Metrics,
};

/// Requests that fail for want of an answer are sent once more, after this.
pub(super) const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// An upstream that makes a mess of ranges.
pub(super) const OTHER_RANGE: UpstreamError = UpstreamError::BadAnswer("206 with another range than asked");

/// How an upstream does, judged by its latest answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answered properly (which may have been a no), last at `since`.
    Good { since: Instant },
    /// Nobody has asked it yet.
    Unknown,
    /// The latest request, or so many that we stopped asking, brought no proper answer; or it is offline by decision.
    Down,
}

/// One registry of the configured set.
#[derive(Debug)]
pub struct Upstream {
    name: String,
    /// Its own URL, then its mirrors.
    sites: Vec<Site>,
    offline: bool,
    hold_mode: HoldMode,
    budget: Budget,
    health: Mutex<Health>,
    metrics: Metrics,
    pace: Pace,
}

/// An answer, and what came with it.
pub(super) struct Answer {
    response: Response,
    place: Place,
    breaker: Breaker,
}

impl Answer {
    pub(super) fn head(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }
}

impl Upstream {
    /// `name` is the canonical one. Errors are texts for the operator.
    pub fn new(config: &UpstreamConfig, name: &str, fetch: &FetchConfig, metrics: Metrics) -> Result<Self, String> {
        let budget = Budget::new(config, name, &metrics)?;
        let urls = std::iter::once(&config.url).chain(&config.fallback_urls);
        let sites = urls.map(|url| Site::new(config, name, url, fetch, &budget, &metrics));
        Ok(Self {
            name: name.to_owned(),
            sites: sites.collect::<Result<_, _>>()?,
            offline: config.offline || fetch.offline,
            hold_mode: config.hold_until_verified,
            budget,
            health: Mutex::new(Health::Unknown),
            metrics,
            pace: Pace::new(fetch),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether what it sends is believed before it is verified.
    pub fn hold_mode(&self) -> HoldMode {
        self.hold_mode
    }

    pub fn health(&self) -> Health {
        if self.offline || self.sites.iter().all(|site| site.breaker().is_open()) {
            return Health::Down;
        }
        *self.health.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// HEAD of a manifest.
    pub async fn manifest_head(
        &self,
        repository: &str,
        caller: &Caller,
        reference: &Reference,
        accept: &[HeaderValue],
    ) -> Result<ManifestHead, UpstreamError> {
        let path = format!("{repository}/manifests/{reference}");
        let ask = Ask::new(Method::HEAD, repository, caller, path).with(accept_headers(accept));
        let response = self.fetch(&ask).await?.response;
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
        let path = format!("{repository}/manifests/{reference}");
        let ask = Ask::new(Method::GET, repository, caller, path).with(accept_headers(accept));
        let answer = self.fetch(&ask).await?;
        let digest = content_digest(answer.response.headers())?;
        let media_type = media_type(answer.response.headers());
        let bytes = self
            .small_body(answer, size_max, "the manifest is over the size limit")
            .await?;
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
        let path = format!("{repository}/blobs/{digest}");
        let response = self
            .fetch(&Ask::new(Method::HEAD, repository, caller, path))
            .await?
            .response;
        let size = || content_length(response.headers());
        Ok(response.status().is_success().then(size).flatten())
    }

    /// GET of a blob from byte `from` on; from 0 where the upstream gives another part than was asked for.
    pub async fn blob(
        &self,
        repository: &str,
        caller: &Caller,
        digest: &BlobDigest,
        from: u64,
    ) -> Result<BlobAnswer, UpstreamError> {
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let answer = self.blob_part(repository, caller, digest, range).await?;
        let range = ContentRange::from_headers(answer.response.headers());
        match (answer.response.status(), range) {
            (StatusCode::PARTIAL_CONTENT, Some(ContentRange::Part { first, last, size }))
                if from > 0 && first == from && size.is_none_or(|size| last + 1 == size) =>
            {
                Ok(BlobAnswer::Body(self.body(answer, from, Some(last + 1), size)))
            }
            // Anything but "up to the end" would leave a hole. Nobody has to give what was asked for (RFC 9110, 15.3.7).
            (StatusCode::PARTIAL_CONTENT, _) if from > 0 => {
                drop(answer);
                Box::pin(self.blob(repository, caller, digest, 0)).await
            }
            (StatusCode::PARTIAL_CONTENT, _) => Err(OTHER_RANGE),
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(ContentRange::Unsatisfied { size }))
                if from > 0 && size == from =>
            {
                Ok(BlobAnswer::Complete { size })
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => Err(UpstreamError::Status(416)),
            _ => {
                let size = answer.response.content_length();
                Ok(BlobAnswer::Body(self.body(answer, 0, size, size)))
            }
        }
    }

    /// GET of the bytes `range` of a blob, which must not be empty; of the whole where the upstream gives another part, or does
    /// not say of how much it is one.
    pub async fn blob_range(
        &self,
        repository: &str,
        caller: &Caller,
        digest: &BlobDigest,
        range: Range<u64>,
    ) -> Result<RangeAnswer, UpstreamError> {
        let Some(last) = range.end.checked_sub(1).filter(|last| range.start <= *last) else {
            return Err(UpstreamError::Status(416));
        };
        let asked = Some(format!("bytes={}-{last}", range.start));
        let answer = self.blob_part(repository, caller, digest, asked).await?;
        let answered = ContentRange::from_headers(answer.response.headers());
        match (answer.response.status(), answered) {
            (
                StatusCode::PARTIAL_CONTENT,
                Some(ContentRange::Part {
                    first,
                    last,
                    size: Some(size),
                }),
            ) if first == range.start && last + 1 >= range.end.min(size) => {
                let end = range.end.min(last + 1);
                Ok(RangeAnswer::Part(self.body(answer, first, Some(end), Some(size))))
            }
            (StatusCode::PARTIAL_CONTENT, _) => {
                drop(answer);
                match self.blob(repository, caller, digest, 0).await? {
                    BlobAnswer::Body(body) => Ok(RangeAnswer::Whole(body)),
                    BlobAnswer::Complete { .. } => Err(OTHER_RANGE),
                }
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(ContentRange::Unsatisfied { size })) if size <= range.start => {
                Ok(RangeAnswer::PastEnd { size })
            }
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => Err(UpstreamError::Status(416)),
            _ => {
                let size = answer.response.content_length();
                Ok(RangeAnswer::Whole(self.body(answer, 0, size, size)))
            }
        }
    }

    /// The upstream's URL of `kind` (`tags`, `referrers`, ...) and its `last` part.
    pub(super) fn url(&self, repository: &str, kind: &str, last: &str) -> Url {
        self.own_site().url(&format!("{repository}/{kind}/{last}"), None)
    }

    /// What follows `/v2/` in a URL of this upstream's own.
    pub(super) fn own_path<'u>(&self, url: &'u Url) -> Option<&'u str> {
        self.own_site().path_of(url)
    }

    /// Head and body of a small answer. `url` must be below this upstream's own `/v2/`.
    pub(super) async fn get_small(
        &self,
        repository: &str,
        caller: &Caller,
        url: Url,
        headers: HeaderMap,
        size_max: u64,
    ) -> Result<(HeaderMap, Bytes), UpstreamError> {
        let path = self
            .own_path(&url)
            .ok_or(UpstreamError::BadAnswer("a link to where we do not go"))?;
        let mut ask = Ask::new(Method::GET, repository, caller, path.to_owned()).with(headers);
        ask.query = url.query().map(str::to_owned);
        let answer = self.fetch(&ask).await?;
        let headers = answer.response.headers().clone();
        let bytes = self
            .small_body(answer, size_max, "the answer is over the size limit")
            .await?;
        Ok((headers, bytes))
    }

    pub(super) async fn blob_part(
        &self,
        repository: &str,
        caller: &Caller,
        digest: &BlobDigest,
        range: Option<String>,
    ) -> Result<Answer, UpstreamError> {
        let mut ask = Ask::new(Method::GET, repository, caller, format!("{repository}/blobs/{digest}"));
        if let Some(value) = range.and_then(|r| HeaderValue::try_from(r).ok()) {
            ask.headers.insert(header::RANGE, value);
        }
        // Tries of blobs are counted where they are resumed.
        self.ask(&ask, 1).await
    }

    fn body(&self, answer: Answer, start: u64, end: Option<u64>, size: Option<u64>) -> BlobBody {
        let flow = Flow {
            upstream: self.name.clone(),
            breaker: answer.breaker,
            budget: self.budget.clone(),
            metrics: self.metrics.clone(),
            pace: self.pace,
            place: answer.place,
        };
        BlobBody::new(answer.response, start, end, size, flow)
    }

    async fn small_body(&self, answer: Answer, size_max: u64, too_large: &'static str) -> Result<Bytes, UpstreamError> {
        let size_max = usize::try_from(size_max).unwrap_or(usize::MAX);
        let bytes = self.own_site().wire().read_bounded(answer.response, size_max).await;
        match &bytes {
            Ok(_) => answer.breaker.succeeded(),
            Err(_) => answer.breaker.failed(),
        }
        self.judge(bytes.as_ref().err());
        let bytes = bytes?.ok_or(UpstreamError::BadAnswer(too_large))?;
        self.metrics.upstream_bytes(&self.name, bytes.len() as u64);
        Ok(bytes)
    }

    /// A request and its check, once more if the upstream did not answer properly the first time.
    pub(super) async fn fetch(&self, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let answer = self.ask(ask, 2).await?;
        match answer.response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => Err(UpstreamError::Status(416)),
            _ => Ok(answer),
        }
    }

    /// A request at the upstream itself and, while that is out of order, at its mirrors; `tries` at each.
    async fn ask(&self, ask: &Ask<'_>, tries: u32) -> Result<Answer, UpstreamError> {
        if self.offline {
            return Err(UpstreamError::Offline);
        }
        let place = self.budget.place().await?;
        // Only the upstream itself knows what a client may see.
        let sites_max = if *ask.caller == Caller::Server { usize::MAX } else { 1 };
        let mut failure = None;
        for site in self.sites.iter().take(sites_max) {
            match at(site, ask, tries).await {
                Ok(response) => {
                    self.judge(None);
                    let breaker = site.breaker().clone();
                    return Ok(Answer {
                        response,
                        place,
                        breaker,
                    });
                }
                // What the upstream itself said counts; a mirror's no does not.
                Err(error) if error.is_outage() || failure.is_some() => {
                    failure.get_or_insert(error);
                }
                Err(no) => {
                    self.judge(None);
                    return Err(no);
                }
            }
        }
        let failure = failure.unwrap_or(UpstreamError::Offline);
        self.judge(Some(&failure));
        Err(failure)
    }

    /// Whether no redirect led to where the answer is from.
    pub(super) fn is_own(&self, answer: &Answer) -> bool {
        self.sites.iter().any(|site| site.wire().is_own(answer.response.url()))
    }

    fn own_site(&self) -> &Site {
        &self.sites[0]
    }

    fn judge(&self, failure: Option<&UpstreamError>) {
        let health = match failure {
            Some(error) if error.is_failure() || matches!(error, UpstreamError::Unavailable { .. }) => Health::Down,
            // Says nothing new of the upstream.
            Some(_) => return,
            None => Health::Good { since: Instant::now() },
        };
        *self.health.lock().unwrap_or_else(|e| e.into_inner()) = health;
    }
}

/// A request at one site.
async fn at(site: &Site, ask: &Ask<'_>, tries: u32) -> Result<Response, UpstreamError> {
    let mut left = tries;
    loop {
        left -= 1;
        let pass = site.breaker().admit()?;
        let error = match site.accepted(ask).await {
            Ok(response) => {
                if ask.method == Method::HEAD {
                    pass.succeeded();
                } else {
                    pass.alive();
                }
                return Ok(response);
            }
            Err(error) => error,
        };
        // A time-out has already used up the client's patience.
        if left > 0 && error.is_transient() && error != UpstreamError::Timeout {
            drop(pass);
            tokio::time::sleep(error.pause(RETRY_PAUSE)).await;
            continue;
        }
        match &error {
            e if e.is_failure() && matches!(ask.caller, Caller::Client(_)) => pass.failed_for_a_client(),
            e if e.is_failure() => pass.failed(),
            UpstreamError::NotFound { .. } | UpstreamError::Denied { .. } | UpstreamError::Status(_) => {
                pass.succeeded()
            }
            _ => drop(pass),
        }
        return Err(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(upstream.health(), Health::Unknown);
        let reference = "t".parse().unwrap();
        let answer = upstream.manifest("r", &Caller::Server, &reference, &[], 1 << 20);
        let answer = tokio::time::timeout(Duration::from_secs(20), answer)
            .await
            .expect("it ends");
        assert_eq!(answer.unwrap_err(), UpstreamError::Timeout);
        assert_eq!(upstream.health(), Health::Down);
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
}
