//! One request answered as a registry of the distribution project does, unless a fault says otherwise.
//!
//! In: a request. Out: a response. Invariant: heads are those of a real registry (digest, ETag, ranges, cache, API
//! version, OCI error bodies), so that a client that works here works there.
//! Not here: pushing; content comes in by function calls.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use http::{HeaderMap, Method, header};
use serde_json::json;

use super::accept::{Given, given};
use super::auth::Auth;
use super::body::body;
use super::calls::{Call, Listener, Record};
use super::fault::{self, Fault, Subject};
use super::listen::Link;
use super::state::{Piece, State};

/// What a request asks for.
enum Asked<'a> {
    Ping,
    Token,
    Manifest { repository: &'a str, reference: &'a str },
    Blob { repository: &'a str, digest: &'a str },
    Tags { repository: &'a str },
    Referrers { repository: &'a str, digest: &'a str },
    Nothing,
}

fn parse(path: &str) -> Asked<'_> {
    let rest = match path {
        "/token" => return Asked::Token,
        "/v2" | "/v2/" => return Asked::Ping,
        _ => match path.strip_prefix("/v2/") {
            Some(rest) => rest,
            None => return Asked::Nothing,
        },
    };
    if let Some((repository, reference)) = rest.rsplit_once("/manifests/") {
        Asked::Manifest { repository, reference }
    } else if let Some((repository, digest)) = rest.rsplit_once("/blobs/") {
        Asked::Blob { repository, digest }
    } else if let Some(repository) = rest.strip_suffix("/tags/list") {
        Asked::Tags { repository }
    } else if let Some((repository, digest)) = rest.rsplit_once("/referrers/") {
        Asked::Referrers { repository, digest }
    } else {
        Asked::Nothing
    }
}

/// Answers, or `Err` to drop the connection at once.
pub(super) async fn answer(
    state: Arc<State>,
    listener: Listener,
    request: Request,
    link: Arc<Link>,
) -> Result<Response, Dropped> {
    let (request, body) = request.into_parts();
    let path = request.uri.path().to_owned();
    let query = request.uri.query().map(str::to_owned);
    let text = |name| {
        let value = request.headers.get(name)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let accept = request.headers.get_all(header::ACCEPT).iter();
    let record = state.calls.begin(Call {
        listener,
        method: request.method.to_string(),
        path: path.clone(),
        query: query.clone(),
        host: text(header::HOST),
        range: text(header::RANGE),
        accept: accept
            .map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
            .collect(),
        accept_encoding: text(header::ACCEPT_ENCODING),
        authorization: text(header::AUTHORIZATION),
        traceparent: request
            .headers
            .get("traceparent")
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned),
        digest: None,
        status: 0,
        body_sent: 0,
        complete: false,
    });
    let exchange = Exchange {
        state: &state,
        method: &request.method,
        headers: &request.headers,
        authorization: text(header::AUTHORIZATION),
        record: record.clone(),
        link,
    };
    let response = match listener {
        Listener::Cdn => exchange.cdn(&path, query.as_deref()).await?,
        // The only body that the origin reads.
        Listener::Registry if path == "/token" && request.method == Method::POST => {
            let form = axum::body::to_bytes(body, FORM_SIZE_MAX).await.unwrap_or_default();
            exchange.refreshed(&String::from_utf8_lossy(&form)).await?
        }
        Listener::Registry => exchange.registry(&path, query.as_deref()).await?,
    };
    record.answered(response.status().as_u16());
    Ok(response)
}

/// Form of a token request, at most.
const FORM_SIZE_MAX: usize = 64 << 10;

/// The connection is to be dropped without an answer.
#[derive(Debug, thiserror::Error)]
#[error("dropped on purpose")]
pub(super) struct Dropped;

struct Exchange<'a> {
    state: &'a State,
    method: &'a Method,
    headers: &'a HeaderMap,
    authorization: Option<String>,
    record: Arc<Record>,
    link: Arc<Link>,
}

/// Content found, about to be sent.
struct Found {
    digest: BlobDigest,
    media_type: String,
    bytes: Bytes,
    is_blob: bool,
}

impl Exchange<'_> {
    async fn registry(&self, path: &str, query: Option<&str>) -> Result<Response, Dropped> {
        let asked = parse(path);
        if self.method != Method::GET && self.method != Method::HEAD {
            return Ok(self.error(405, "UNSUPPORTED", "the origin is read-only"));
        }
        let repository = match asked {
            Asked::Manifest { repository, .. }
            | Asked::Blob { repository, .. }
            | Asked::Tags { repository }
            | Asked::Referrers { repository, .. } => Some(repository),
            _ => None,
        };
        if !matches!(asked, Asked::Token) && !self.state.allows(self.authorization.as_deref(), repository) {
            // Faults on a refused request are kept for the one that comes with credentials.
            return Ok(self.unauthorized(repository));
        }
        let found = match asked {
            Asked::Manifest { repository, reference } => self.manifest(repository, reference),
            Asked::Blob { repository, digest } => self.state.blob(repository, digest),
            _ => None,
        };
        let digest = found.as_ref().map(|f| f.0);
        let faults = self.faults(path, digest.as_ref(), false).await?;
        if let Some(early) = self.early(&faults) {
            return Ok(early);
        }
        Ok(match (asked, found) {
            (Asked::Ping, _) => self.json(200, "{}".into()),
            (Asked::Token, _) => self.token(query.unwrap_or_default()),
            (Asked::Tags { repository }, _) => self.tags(repository, query.unwrap_or_default()),
            (Asked::Referrers { repository, digest }, _) if self.state.has_referrers() => {
                self.referrers(repository, digest, query.unwrap_or_default())
            }
            (Asked::Referrers { .. }, _) => self.error(404, "NOT_FOUND", "no such route"),
            (Asked::Blob { .. }, Some((digest, ..))) if self.state.redirects() => self.redirect(&digest),
            (Asked::Blob { .. }, Some((digest, media_type, bytes))) => self.content(
                Found {
                    digest,
                    media_type,
                    bytes,
                    is_blob: true,
                },
                faults,
            ),
            (Asked::Manifest { .. }, Some((digest, media_type, bytes))) => self.content(
                Found {
                    digest,
                    media_type,
                    bytes,
                    is_blob: false,
                },
                faults,
            ),
            (Asked::Blob { .. }, None) => self.error(404, "BLOB_UNKNOWN", "blob unknown to registry"),
            (Asked::Manifest { .. }, None) => self.error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
            (Asked::Nothing, _) => self.error(404, "NOT_FOUND", "no such route"),
        })
    }

    /// By tag or digest, if the client's words let it be given.
    fn manifest(&self, repository: &str, reference: &str) -> Option<Piece> {
        let found = self.state.manifest(repository, reference)?;
        if !self.state.is_strict() {
            return Some(found);
        }
        match given(self.headers, !reference.contains(':'), &found.1, &found.2) {
            Given::AsItIs => Some(found),
            Given::Child(digest) => self.state.manifest(repository, &digest.to_string()),
            Given::Nothing => None,
        }
    }

    /// The other host: signed URLs, no names, and no patience with credentials.
    async fn cdn(&self, path: &str, query: Option<&str>) -> Result<Response, Dropped> {
        let found = path.strip_prefix("/cdn/").and_then(|d| self.state.cdn_blob(d));
        let faults = self.faults(path, found.as_ref().map(|f| &f.0), true).await?;
        if let Some(early) = self.early(&faults) {
            return Ok(early);
        }
        if self.authorization.is_some() {
            return Ok(self.error(400, "InvalidArgument", "only one auth mechanism allowed"));
        }
        if query != Some(self.state.signature().as_str()) {
            return Ok(self.error(403, "AccessDenied", "request has expired"));
        }
        Ok(match found {
            None => self.error(404, "NoSuchKey", "no such key"),
            Some((digest, media_type, bytes)) => self.content(
                Found {
                    digest,
                    media_type,
                    bytes,
                    is_blob: true,
                },
                faults,
            ),
        })
    }

    /// Takes the faults of this request, and acts out those that come before any answer.
    async fn faults(&self, path: &str, digest: Option<&BlobDigest>, cdn: bool) -> Result<Vec<Fault>, Dropped> {
        if let Some(digest) = digest {
            self.record.about(*digest);
        }
        let subject = Subject {
            path,
            digest,
            cdn,
            head: self.method == Method::HEAD,
        };
        let faults = fault::take(&mut self.state.rules(), &subject);
        for f in &faults {
            match f {
                Fault::DelayHeaders(pause) => tokio::time::sleep(*pause).await,
                Fault::HoldHead { gate } => gate.passed().await,
                Fault::ResetAtOnce => {
                    self.link.reset_at_end();
                    return Err(Dropped);
                }
                _ => {}
            }
        }
        Ok(faults)
    }

    /// Faults that answer instead of the content.
    fn early(&self, faults: &[Fault]) -> Option<Response> {
        faults.iter().find_map(|f| match f {
            Fault::Status { code, retry_after_secs } => {
                let mut response = self.error(*code, code_of(*code), "the origin was told to say so");
                if let Some(secs) = retry_after_secs {
                    response.headers_mut().insert(header::RETRY_AFTER, (*secs).into());
                }
                for f in faults {
                    if let Fault::Header { name, value } = f {
                        let value = value.parse().expect("the test's own value");
                        response.headers_mut().insert(*name, value);
                    }
                }
                Some(response)
            }
            Fault::Redirect { location } => {
                Some(self.built(base(307).header(header::LOCATION, location), Body::empty()))
            }
            _ => None,
        })
    }

    fn content(&self, found: Found, faults: Vec<Fault>) -> Response {
        let size = found.bytes.len() as u64;
        let has = |test: fn(&Fault) -> bool| faults.iter().any(test);
        let etag = format!("\"{}\"", found.digest);
        let asked = self.headers.get(header::IF_NONE_MATCH).map(|v| v.as_bytes());
        if asked == Some(etag.as_bytes()) {
            return self.built(base(304).header(header::ETAG, etag), Body::empty());
        }
        let ranged = found.is_blob && self.method == Method::GET && !has(|f| matches!(f, Fault::IgnoreRange));
        let mut range = match self.headers.get(header::RANGE).filter(|_| ranged) {
            None => Ok(None),
            Some(value) => range_of(&String::from_utf8_lossy(value.as_bytes()), size),
        };
        if let (Ok(Some(r)), Some(bytes)) = (&mut range, faults.iter().find_map(Fault::short_range)) {
            r.end = r.end.min(r.start + bytes);
        }
        let total = match has(|f| matches!(f, Fault::NoTotal)) {
            true => "*".to_owned(),
            false => size.to_string(),
        };
        let mut builder = match &range {
            Ok(None) => base(200),
            Ok(Some(r)) => base(206).header(
                header::CONTENT_RANGE,
                format!("bytes {}-{}/{total}", r.start, r.end - 1),
            ),
            Err(Unsatisfiable) => {
                let mut response = self.error(416, "RANGE_INVALID", "invalid content range");
                let value = format!("bytes */{size}").parse().expect("ascii");
                response.headers_mut().insert(header::CONTENT_RANGE, value);
                return response;
            }
        };
        let range = range.ok().flatten().unwrap_or(0..size);
        let mut media_type = found.media_type.as_str();
        for f in &faults {
            if let Fault::ContentType(other) = f {
                media_type = other;
            }
        }
        builder = builder
            .header(header::CONTENT_TYPE, media_type)
            .header(header::ETAG, etag);
        for f in &faults {
            if let Fault::Header { name, value } = f {
                builder = builder.header(*name, value);
            }
        }
        if found.is_blob {
            builder = builder
                .header(header::ACCEPT_RANGES, "bytes")
                .header(header::CACHE_CONTROL, "max-age=31536000");
        }
        if has(|f| matches!(f, Fault::WrongDigestHeader)) {
            builder = builder.header("docker-content-digest", BlobDigest::of(b"something else").to_string());
        } else if !has(|f| matches!(f, Fault::NoDigestHeader)) {
            builder = builder.header("docker-content-digest", found.digest.to_string());
        }
        if !has(|f| matches!(f, Fault::NoLength)) {
            builder = builder.header(header::CONTENT_LENGTH, range.end - range.start);
        }
        if self.method == Method::HEAD {
            return self.built(builder, Body::empty());
        }
        let body = body(found.bytes, range, faults, self.record.clone(), self.link.clone());
        self.built(builder, body)
    }

    fn token(&self, query: &str) -> Response {
        let auth = self.state.auth();
        if matches!(
            auth,
            Auth::Anonymous | Auth::Basic { .. } | Auth::Identity { .. } | Auth::Users { bearer: false, .. }
        ) {
            return self.error(404, "NOT_FOUND", "no token service here");
        }
        let scopes: Vec<String> = query
            .split('&')
            .filter_map(|pair| pair.strip_prefix("scope="))
            .map(percent_decoded)
            .collect();
        let Some(scope) = auth.scope(self.authorization.as_deref(), &scopes.join(" ")) else {
            return self.error(401, "UNAUTHORIZED", "incorrect username or password");
        };
        let token = self.state.give_token(&scope);
        self.json(
            200,
            json!({ "token": token, "access_token": token, "expires_in": 300 }).to_string(),
        )
    }

    /// The OAuth2 form of a token request.
    async fn refreshed(&self, form: &str) -> Result<Response, Dropped> {
        let faults = self.faults("/token", None, false).await?;
        if let Some(early) = self.early(&faults) {
            return Ok(early);
        }
        let field = |name: &str| {
            let pairs = form.split('&').filter_map(|pair| pair.split_once('='));
            pairs
                .filter(|(n, _)| *n == name)
                .map(|(_, v)| percent_decoded(v))
                .next()
        };
        let Auth::Identity { refresh_token } = self.state.auth() else {
            return Ok(self.error(404, "NOT_FOUND", "no such token service here"));
        };
        let good =
            field("grant_type").as_deref() == Some("refresh_token") && field("refresh_token") == Some(refresh_token);
        if !good {
            return Ok(self.error(401, "UNAUTHORIZED", "incorrect refresh token"));
        }
        let token = self.state.give_token(&field("scope").unwrap_or_default());
        Ok(self.json(200, json!({ "access_token": token, "expires_in": 300 }).to_string()))
    }

    /// At most a page, with a relative link to the next.
    fn tags(&self, repository: &str, query: &str) -> Response {
        let last = parameter(query, "last").unwrap_or_default();
        let Some(rest) = self.state.tags(repository, &last) else {
            return self.error(404, "NAME_UNKNOWN", "repository name not known to registry");
        };
        let page = self.page(query);
        let shown = &rest[..rest.len().min(page)];
        let json = json!({ "name": repository, "tags": shown }).to_string();
        let next = (shown.len() < rest.len()).then(|| shown.last()).flatten();
        let link = next.map(|last| format!("</v2/{repository}/tags/list?last={last}&n={page}>; rel=\"next\""));
        self.linked(json, link)
    }

    /// Unfiltered, whatever was asked for, which the specification allows.
    fn referrers(&self, repository: &str, digest: &str, query: &str) -> Response {
        let all = self.state.referrers(repository, digest);
        let from = parameter(query, "from").and_then(|n| n.parse().ok()).unwrap_or(0);
        let from = all.len().min(from);
        let to = all.len().min(from.saturating_add(self.page(query)));
        let json = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": all[from..to] }).to_string();
        let link = (to < all.len()).then(|| format!("</v2/{repository}/referrers/{digest}?from={to}>; rel=\"next\""));
        let mut response = self.linked(json, link);
        let kind = OCI_INDEX.parse().expect("ascii");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }

    fn page(&self, query: &str) -> usize {
        let asked = parameter(query, "n").and_then(|n| n.parse().ok());
        asked.unwrap_or(usize::MAX).min(self.state.page_max())
    }

    fn linked(&self, json: String, link: Option<String>) -> Response {
        let mut response = self.json(200, json);
        if let Some(link) = link.and_then(|link| link.parse().ok()) {
            response.headers_mut().insert(header::LINK, link);
        }
        response
    }

    fn redirect(&self, digest: &BlobDigest) -> Response {
        self.built(
            base(307).header(header::LOCATION, self.state.cdn_url(digest)),
            Body::empty(),
        )
    }

    fn unauthorized(&self, repository: Option<&str>) -> Response {
        let mut response = self.error(401, "UNAUTHORIZED", "authentication required");
        if let Some(challenge) = self.state.challenge(repository)
            && let Ok(value) = challenge.parse()
        {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
        }
        response
    }

    fn error(&self, status: u16, code: &str, message: &str) -> Response {
        let body = json!({ "errors": [{ "code": code, "message": message, "detail": null }] });
        self.json(status, body.to_string())
    }

    fn json(&self, status: u16, text: String) -> Response {
        let builder = base(status)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_LENGTH, text.len());
        if self.method == Method::HEAD {
            return self.built(builder, Body::empty());
        }
        self.record.sent(text.len() as u64);
        self.record.completed();
        self.built(builder, Body::from(text))
    }

    fn built(&self, builder: http::response::Builder, body: Body) -> Response {
        builder.body(body).expect("the origin's own heads are well formed")
    }
}

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A parameter of a query that needs no decoding.
fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(n, _)| *n == name).map(|(_, value)| value.to_owned())
}

fn base(status: u16) -> http::response::Builder {
    Response::builder()
        .status(status)
        .header("docker-distribution-api-version", "registry/2.0")
}

fn code_of(status: u16) -> &'static str {
    match status {
        401 => "UNAUTHORIZED",
        403 => "DENIED",
        404 => "NOT_FOUND",
        429 => "TOOMANYREQUESTS",
        _ => "UNKNOWN",
    }
}

struct Unsatisfiable;

/// One range, resolved; `None` to send everything (several ranges, other units, nonsense), as RFC 9110 14.2 allows.
fn range_of(value: &str, size: u64) -> Result<Option<Range<u64>>, Unsatisfiable> {
    let Some(spec) = value.strip_prefix("bytes=").filter(|s| !s.contains(',')) else {
        return Ok(None);
    };
    let Some((first, last)) = spec.trim().split_once('-') else {
        return Ok(None);
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        // `500-0` too is 416, as Go's file server says.
        (Ok(first), Ok(last)) => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.is_empty() => first..size,
        (Err(_), Ok(suffix)) if first.is_empty() => size.saturating_sub(suffix)..size,
        _ => return Ok(None),
    };
    if range.start >= range.end {
        Err(Unsatisfiable)
    } else {
        Ok(Some(range))
    }
}

fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match escaped {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_resolve_as_in_rfc_9110() {
        let of = |v: &str| range_of(v, 2000).map_err(|_| ());
        assert_eq!(of("bytes=500-1499"), Ok(Some(500..1500)));
        assert_eq!(of("bytes=500-"), Ok(Some(500..2000)));
        assert_eq!(of("bytes=-500"), Ok(Some(1500..2000)));
        assert_eq!(of("bytes=1000-5000"), Ok(Some(1000..2000)));
        assert_eq!(of("bytes=2000-"), Err(()));
        assert_eq!(of("bytes=-0"), Err(()));
        assert_eq!(of("bytes=500-0"), Err(()));
        assert_eq!(of("bytes=0-1,5-6"), Ok(None));
        assert_eq!(of("items=0-1"), Ok(None));
        assert_eq!(
            percent_decoded("repository%3Aa%2Fb%3Apull+x%"),
            "repository:a/b:pull x%"
        );
    }
}
