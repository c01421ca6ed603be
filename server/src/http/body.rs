//! Responses over a representation of known size: whole, one range, several ranges, not modified.
//!
//! In: the request's method and headers, a [`Representation`], and a function from a byte range to a stream.
//! Out: the response of RFC 9110 (sections 13, 14, 15.3.7): 200, 206, 206 multipart/byteranges, 304, 412 or 416; or 400.
//! Invariant: `Content-Length` is always exact, so a stream that ends early is seen by the client as a broken answer
//! and never as a complete one. Never a `Content-Encoding`.
//! Not here: where bytes come from (`read/`), the syntax of ranges ([`super::range`]) and their arithmetic
//! ([`crate::read::wants`]).

use std::{
    ops::Range,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::{Context, Poll},
};

use axum::{
    body::Body,
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use super::{
    error::{ApiError, OciCode},
    range,
};
use crate::{metrics::Metrics, read::wants::Resolved};

/// What is being served.
#[derive(Clone, Debug)]
pub struct Representation {
    pub size: u64,
    /// Quoted, strong.
    pub etag: HeaderValue,
    pub content_type: HeaderValue,
    /// Headers that go on 200 and 206 (and, without the body ones, on 304): digest, caching, ours.
    pub headers: HeaderMap,
    /// Label of the served-bytes counter.
    pub route: &'static str,
}

/// Answers `GET` or `HEAD` of `rep`. `open` is called once for each range that is really sent.
pub fn ranged_response<F, S, E>(
    method: &Method,
    request: &HeaderMap,
    mut rep: Representation,
    metrics: &Metrics,
    open: F,
) -> Response
where
    F: Fn(Range<u64>) -> S + Send + 'static,
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    *headers = std::mem::take(&mut rep.headers);
    headers.insert(header::ETAG, rep.etag.clone());
    if if_match_fails(request, &rep.etag) {
        return precondition_failed(std::mem::take(headers));
    }
    if if_none_match(request, &rep.etag) {
        if method == Method::HEAD {
            // Or hyper would write that it is 0, and a cache would believe it of the copy that it has (RFC 9110, 8.6).
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(rep.size));
        }
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // RFC 9110 section 14.2: only GET has ranges.
    let asked = range_asked(request, &rep.etag).filter(|_| method == Method::GET);
    let wants = match range::wants(asked) {
        Ok(wants) => wants,
        Err(error) => return ApiError::from(error).into_response(),
    };
    let body = match wants.resolve(rep.size) {
        Resolved::Whole => {
            headers.insert(header::CONTENT_TYPE, rep.content_type.clone());
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(rep.size));
            (method != Method::HEAD && rep.size > 0).then(|| counted(open(0..rep.size), metrics, rep.route))
        }
        Resolved::One(range) => {
            headers.insert(header::CONTENT_TYPE, rep.content_type.clone());
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
            headers.insert(header::CONTENT_RANGE, content_range(&range, rep.size));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            Some(counted(open(range), metrics, rep.route))
        }
        Resolved::Several(ranges) => {
            let parts = Multipart::new(ranges, &rep);
            headers.insert(header::CONTENT_TYPE, parts.content_type());
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(parts.len()));
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            Some(counted(parts.stream(open), metrics, rep.route))
        }
        Resolved::Unsatisfiable => {
            // What is said of the representation's age is not meant for an error.
            headers.remove(header::CACHE_CONTROL);
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
            headers.insert(header::CONTENT_RANGE, unsatisfied(rep.size));
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            None
        }
    };
    if let Some(body) = body {
        *response.body_mut() = body;
    }
    response
}

/// What there is instead is said in the head.
fn precondition_failed(mut said: HeaderMap) -> Response {
    said.remove(header::CACHE_CONTROL);
    let error = ApiError::new(OciCode::Unsupported, "If-Match names something else than what is here");
    let mut response = error.with_status(StatusCode::PRECONDITION_FAILED).into_response();
    // What the error says of its own body counts.
    said.extend(std::mem::take(response.headers_mut()));
    *response.headers_mut() = said;
    response
}

/// Whether the client wants only another representation than this (RFC 9110 section 13.1.1; strong comparison).
fn if_match_fails(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let mut tags = tags(request, header::IF_MATCH).peekable();
    let own = etag.to_str().unwrap_or_default();
    tags.peek().is_some() && !tags.any(|tag| tag == "*" || tag == own)
}

fn tags(request: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    let values = request.get_all(name).into_iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(str::trim)
}

/// Whether a cached copy of the client is this representation (RFC 9110 section 13.1.2; weak comparison).
pub fn if_none_match(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let Ok(own) = etag.to_str() else { return false };
    tags(request, header::IF_NONE_MATCH).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == own)
}

/// The `Range` of a GET, if it is to be honoured.
pub fn range_asked<'a>(request: &'a HeaderMap, etag: &HeaderValue) -> Option<&'a HeaderValue> {
    request.get(header::RANGE).filter(|_| if_range(request, etag))
}

/// Whether `Range` may be honoured (RFC 9110 section 13.1.5; strong comparison, and we give no dates).
fn if_range(request: &HeaderMap, etag: &HeaderValue) -> bool {
    request.get(header::IF_RANGE).is_none_or(|tag| tag == etag)
}

fn content_range(range: &Range<u64>, size: u64) -> HeaderValue {
    header_value(format!("bytes {}-{}/{size}", range.start, range.end - 1))
}

fn unsatisfied(size: u64) -> HeaderValue {
    header_value(format!("bytes */{size}"))
}

fn header_value(ascii: String) -> HeaderValue {
    HeaderValue::from_str(&ascii).expect("digits and ASCII punctuation make a header value")
}

/// A body that counts what it hands out.
fn counted<S, E>(stream: S, metrics: &Metrics, route: &'static str) -> Body
where
    S: Stream<Item = Result<Bytes, E>> + Send + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    Body::from_stream(Counted {
        stream: Box::pin(stream),
        bytes: 0,
        metrics: metrics.clone(),
        route,
    })
}

/// The counter is fed in steps of this many bytes, and at the end, however the end comes.
const COUNT_STEP: u64 = 1 << 20;

struct Counted<S> {
    stream: Pin<Box<S>>,
    bytes: u64,
    metrics: Metrics,
    route: &'static str,
}

impl<S> Counted<S> {
    fn settle(&mut self) {
        if self.bytes > 0 {
            self.metrics.served(self.route, std::mem::take(&mut self.bytes));
        }
    }
}

impl<S, E> Stream for Counted<S>
where
    S: Stream<Item = Result<Bytes, E>>,
{
    type Item = Result<Bytes, E>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.stream.as_mut().poll_next(cx);
        match &next {
            Poll::Ready(Some(Ok(bytes))) => {
                self.bytes += bytes.len() as u64;
                if self.bytes >= COUNT_STEP {
                    self.settle();
                }
            }
            Poll::Ready(_) => self.settle(),
            Poll::Pending => {}
        }
        next
    }
}

impl<S> Drop for Counted<S> {
    fn drop(&mut self) {
        self.settle();
    }
}

/// A multipart/byteranges body (RFC 9110 section 14.6), its length known beforehand.
struct Multipart {
    ranges: Vec<Range<u64>>,
    frame: Frame,
}

/// What stands between the parts. It is made when its part's turn comes: of a thousand parts it would be more than a
/// request may keep in memory.
struct Frame {
    boundary: String,
    content_type: HeaderValue,
    size: u64,
}

impl Frame {
    fn head(&self, part: usize, range: &Range<u64>) -> String {
        let lead = if part == 0 { "" } else { "\r\n" };
        let boundary = &self.boundary;
        let content_type = self.content_type.to_str().unwrap_or("application/octet-stream");
        let (first, last, size) = (range.start, range.end - 1, self.size);
        format!(
            "{lead}--{boundary}\r\ncontent-type: {content_type}\r\ncontent-range: bytes {first}-{last}/{size}\r\n\r\n"
        )
    }

    fn tail(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }
}

impl Multipart {
    fn new(ranges: Vec<Range<u64>>, rep: &Representation) -> Self {
        let frame = Frame {
            boundary: boundary(),
            content_type: rep.content_type.clone(),
            size: rep.size,
        };
        Self { ranges, frame }
    }

    fn content_type(&self) -> HeaderValue {
        header_value(format!("multipart/byteranges; boundary={}", self.frame.boundary))
    }

    fn len(&self) -> u64 {
        let ranges = self.ranges.iter().enumerate();
        let parts: u64 = ranges
            .map(|(part, range)| self.frame.head(part, range).len() as u64 + range.end - range.start)
            .sum();
        parts + self.frame.tail().len() as u64
    }

    /// Parts are opened one after the other, so only one is read at a time.
    fn stream<F, S, E>(self, open: F) -> impl Stream<Item = Result<Bytes, E>> + Send + 'static
    where
        F: Fn(Range<u64>) -> S + Send + 'static,
        S: Stream<Item = Result<Bytes, E>> + Send + 'static,
        E: Send + 'static,
    {
        let Self { ranges, frame } = self;
        let tail = Bytes::from(frame.tail());
        stream::iter(ranges.into_iter().enumerate())
            .map(move |(part, range)| {
                let head = Bytes::from(frame.head(part, &range));
                stream::iter([Ok(head)]).chain(open(range))
            })
            .map(Ok::<_, E>)
            .try_flatten()
            .chain(stream::iter([Ok(tail)]))
    }
}

/// Unique enough not to occur in a part by accident; clients use the lengths anyway.
fn boundary() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos());
    format!("headstart-{nanos:032x}-{:016x}", NEXT.fetch_add(1, Ordering::Relaxed))
}
