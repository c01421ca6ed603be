//! `/v2/`: the read side of the OCI distribution specification.
//!
//! In: requests of container runtimes. Out: the answer of one of the parts, with the headers that every answer has.
//! Invariant: nothing is written through this API (405), and a client is challenged only where
//! that may help. Every part passes
//! [`Asking::enter`] before it looks at anything: which upstream is meant, and on whose behalf it may be read. The head of
//! an answer is there in a bounded time, whatever it waits for (`http.answer_timeout_ms`).
//! Not here: the parts ([`super::v2_manifest`], [`super::v2_blob`], [`super::v2_tags`], [`super::v2_referrers`]), fetching
//! and caching (`read/`), errors as JSON ([`super::error`]), ranges ([`super::body`]).

use std::time::{Duration, Instant};

use axum::{
    body::Body,
    extract::{
        Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    response::{IntoResponse as _, Response},
};
use headstart_layer_format::BlobDigest;
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header, request::Parts};
use serde::Deserialize;
use tokio::time::timeout_at;

use super::{
    around::AnswerBy,
    body::Representation,
    error::{ApiError, Asked, OciCode},
    identity::client_of,
    unread::drain,
    v2_path::V2Path,
};
use crate::{
    app::App,
    upstream::{Caller, ResolveError, Route},
};

pub use crate::access::Probe;

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const API_VERSION_2: HeaderValue = HeaderValue::from_static("registry/2.0");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// What is named by a digest never changes: a year, the longest that caches honour.
const CACHE_FOREVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// The same, where not everybody may read everything: `public` would let a cache between us and our clients give it to
/// others, also what was asked for with credentials (RFC 9111, section 3.5).
const CACHE_FOREVER_ONE: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");

/// What may change; whoever caches it has to ask.
pub(super) const CACHE_NEVER: HeaderValue = HeaderValue::from_static("no-cache");

/// When an upstream has not answered in time, something older is looked for on disk so long.
const OLDER_MAX: Duration = Duration::from_secs(1);

/// Headers of an answer, all but a few: the map of them grows once instead of three times.
const HEADERS: usize = 12;

/// RFC 9111 dropped the header, but the warning text is what mirrors send and people grep for.
pub(super) const WARNING_STALE: HeaderValue =
    HeaderValue::from_static("299 - \"stale: the upstream could not be asked\"");
pub(super) const WARNING_PARTIAL: HeaderValue =
    HeaderValue::from_static("299 - \"partial: the upstream could not be asked, only what was pulled is listed\"");
pub(super) const WARNING_TRUNCATED: HeaderValue =
    HeaderValue::from_static("299 - \"truncated: the upstream has more than this\"");
pub(super) const WARNING_DELETED: HeaderValue =
    HeaderValue::from_static("299 - \"deleted: the upstream no longer has this tag\"");

#[derive(Debug, Default, Deserialize)]
pub struct V2Query {
    /// The registry that the client means; containerd's mirror protocol.
    pub(super) ns: Option<String>,
    /// `tags/list`: how many, as the client wrote it.
    pub(super) n: Option<String>,
    /// `tags/list`: after which. `referrers`: after what, in the upstream's words.
    pub(super) last: Option<String>,
    /// `referrers`: of which type.
    #[serde(rename = "artifactType")]
    pub(super) artifact_type: Option<String>,
}

/// One request, resolved as far as every part needs it.
pub(super) struct Asking<'a> {
    pub(super) app: &'a App,
    pub(super) ns: Option<&'a str>,
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
    /// What the layers around the routes found out about the client.
    pub(super) extensions: &'a Extensions,
    /// Upstreams are not waited for beyond this.
    pub(super) by: Instant,
}

/// `/v2/`
pub async fn base(
    State(app): State<App>,
    query: Result<Query<V2Query>, QueryRejection>,
    method: Method,
    extensions: Extensions,
) -> Response {
    let ns = query.ok().and_then(|Query(query)| query.ns);
    let allowed = app.access.allow_ping(&client_of(&extensions)).await;
    let response = match (allowed, &method) {
        (Err(error), &Method::GET | &Method::HEAD) => ApiError::from_access(Asked::Manifest, &error).into_response(),
        (Ok(()), &Method::GET | &Method::HEAD) => {
            let mut response = Response::new(Body::from("{}"));
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        _ => unsupported().into_response(),
    };
    finish(ns.as_deref(), response)
}

/// `/v2/{*rest}`
pub async fn any(
    State(app): State<App>,
    rest: Result<Path<String>, PathRejection>,
    query: Result<Query<V2Query>, QueryRejection>,
    request: Request,
) -> Response {
    let rest = rest.ok().map(|Path(rest)| rest);
    let (parts, body) = request.into_parts();
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        drain(&parts, body);
    }
    answer(&app, rest.as_deref(), query, &parts).await
}

/// The same of a request whose path is as it is meant, without escapes.
pub async fn read(app: &App, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let query = match parts.uri.query() {
        None => Ok(Query(V2Query::default())),
        Some(_) => Query::try_from_uri(&parts.uri),
    };
    answer(app, parts.uri.path().strip_prefix("/v2/"), query, &parts).await
}

/// `rest`: what is asked for; none if it is not UTF-8.
async fn answer(
    app: &App,
    rest: Option<&str>,
    query: Result<Query<V2Query>, QueryRejection>,
    parts: &Parts,
) -> Response {
    let method = &parts.method;
    let Query(query) = match query {
        Ok(query) => query,
        Err(_) if !matches!(*method, Method::GET | Method::HEAD) => {
            return finish(None, unsupported().into_response());
        }
        Err(error) => return finish(None, ApiError::from(error).into_response()),
    };
    let Some(rest) = rest else {
        let error = ApiError::new(OciCode::NameInvalid, "the path is not UTF-8");
        return finish(query.ns.as_deref(), error.into_response());
    };
    let path = V2Path::parse(rest);
    let by = match parts.extensions.get::<AnswerBy>() {
        Some(AnswerBy(by)) => *by,
        None => Instant::now() + Duration::from_millis(app.config.http.answer_timeout_ms),
    };
    let asking = Asking {
        app,
        ns: query.ns.as_deref(),
        method,
        headers: &parts.headers,
        extensions: &parts.extensions,
        by,
    };
    if *method == Method::GET
        && let V2Path::Manifest { name, reference } = path
        && let Some(response) = asking.manifest_at_hand(name, reference)
    {
        return finish(query.ns.as_deref(), response);
    }
    // Apart, because the way is long: it would be moved with every layer that is around a request.
    let answer = Box::pin(async {
        match path {
            _ if !matches!(*method, Method::GET | Method::HEAD) => Err(unsupported()),
            V2Path::Base => {
                let (app, method, extensions) = (app.clone(), method.clone(), parts.extensions.clone());
                Ok(base(
                    State(app),
                    Ok(Query(V2Query {
                        ns: query.ns.clone(),
                        ..V2Query::default()
                    })),
                    method,
                    extensions,
                )
                .await)
            }
            V2Path::Manifest { name, reference } => asking.manifest(name, reference).await,
            V2Path::Blob { name, digest } => asking.blob(name, digest).await,
            V2Path::Tags { name } => asking.tags(name, &query).await,
            V2Path::Referrers { name, digest } => asking.referrers(name, digest, &query).await,
            V2Path::Other => Err(
                ApiError::new(OciCode::Unsupported, "this mirror does not have this endpoint")
                    .with_status(StatusCode::NOT_FOUND),
            ),
        }
    });
    // Parts that have something older to say say so by themselves.
    let answer = timeout_at((by + OLDER_MAX).into(), answer).await;
    let answer = answer.unwrap_or_else(|_| {
        let error = ApiError::new(OciCode::Unavailable, "there is no answer in time");
        Err(error.with_status(StatusCode::GATEWAY_TIMEOUT))
    });
    let response = answer.unwrap_or_else(|error| error.into_response());
    finish(query.ns.as_deref(), response)
}

impl Asking<'_> {
    /// The way in for every part: the upstream and repository that `name` means, and on whose behalf to read `what`.
    pub(super) async fn enter(&self, name: &str, what: Probe) -> Result<(Route, Caller), ApiError> {
        let route = resolve(self.app, self.ns, name)?;
        let caller = self
            .app
            .access
            .allow(&client_of(self.extensions), &route.source, &what)
            .await;
        let asked = match what {
            Probe::Blob(_) => Asked::Blob,
            Probe::Manifest(_) => Asked::Manifest,
            Probe::Repository => Asked::Repository,
        };
        let caller = caller.map_err(|error| ApiError::from_access(asked, &error))?;
        Ok((route, caller))
    }

    /// How long what is named by its digest may be kept, and by whom.
    pub(super) fn cache_forever(&self) -> HeaderValue {
        match self.app.access.is_restricted() {
            true => CACHE_FOREVER_ONE,
            false => CACHE_FOREVER,
        }
    }

    /// A body that is named by its digest.
    pub(super) fn representation(
        &self,
        route: &'static str,
        digest: &BlobDigest,
        size: u64,
        content_type: HeaderValue,
        cache: HeaderValue,
    ) -> Representation {
        let text = digest.to_string();
        let etag = quoted(&text);
        let mut headers = HeaderMap::with_capacity(HEADERS);
        headers.insert(CONTENT_DIGEST, ascii(text));
        headers.insert(header::CACHE_CONTROL, cache);
        Representation {
            size,
            etag,
            content_type,
            headers,
            route,
        }
    }
}

/// The upstream and repository that a client's words mean.
pub(super) fn resolve(app: &App, ns: Option<&str>, name: &str) -> Result<Route, ApiError> {
    app.upstreams.resolve(ns, name).map_err(|error| {
        let code = match error {
            ResolveError::UnknownUpstream => OciCode::NameUnknown,
            ResolveError::Name(_) => OciCode::NameInvalid,
        };
        ApiError::new(code, error.to_string())
    })
}

/// What is named by a digest changes with it.
pub(super) fn etag(digest: &BlobDigest) -> HeaderValue {
    quoted(&digest.to_string())
}

fn quoted(digest: &str) -> HeaderValue {
    let mut tag = String::with_capacity(digest.len() + 2);
    tag.extend(["\"", digest, "\""]);
    ascii(tag)
}

fn ascii(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("a digest is ASCII")
}

fn unsupported() -> ApiError {
    ApiError::new(OciCode::Unsupported, "this mirror is read-only")
}

/// The same of an answer that is given before anything of the request was looked at.
pub(super) fn finish_for(uri: &Uri, response: Response) -> Response {
    let query = uri.query().and_then(|_| Query::<V2Query>::try_from_uri(uri).ok());
    finish(query.and_then(|Query(query)| query.ns).as_deref(), response)
}

/// What every answer has.
fn finish(ns: Option<&str>, mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(API_VERSION, API_VERSION_2);
    // Nothing but letters that a name can have is said back.
    let named = ns.filter(|ns| !ns.is_empty() && ns.bytes().all(|byte| byte.is_ascii_graphic()));
    if let Some(ns) = named.and_then(|ns| HeaderValue::from_str(ns).ok()) {
        headers.insert(OCI_NAMESPACE, ns);
    }
    response
}
