//! `/v2/`: the read side of the OCI distribution specification.
//!
//! In: requests of container runtimes. Out: manifests and blobs with exactly the headers that those expect.
//! Invariant: nothing is written through this API (405), and no answer challenges for credentials.
//! Not here: fetching and caching (`read/`), errors as JSON ([`super::error`]), ranges ([`super::body`]).

use axum::{
    body::Body,
    extract::{Path, Query, State, rejection::QueryRejection},
    response::{IntoResponse as _, Response},
};
use headstart_layer_format::BlobDigest;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use serde::Deserialize;

use super::{
    body::{Representation, ranged_response},
    error::{ApiError, Asked, OciCode},
    v2_path::V2Path,
};
use crate::{
    app::App,
    metrics::route,
    read::manifests::Manifest,
    upstream::{Caller, NameError, Reference, ResolveError, Route},
};

const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");

/// What is named by a digest never changes: a year, the longest that caches honour.
const CACHE_FOREVER: HeaderValue = HeaderValue::from_static("public, max-age=31536000, immutable");

/// Tags may move; whoever caches them has to ask.
const CACHE_NEVER: HeaderValue = HeaderValue::from_static("no-cache");

/// RFC 9111 dropped the header, but the warning text is what mirrors send and people grep for.
const WARNING_STALE: HeaderValue = HeaderValue::from_static("299 - \"stale: the upstream could not be asked\"");

#[derive(Debug, Deserialize)]
pub struct V2Query {
    /// The registry that the client means; containerd's mirror protocol.
    ns: Option<String>,
}

/// `/v2/`
pub async fn base(State(app): State<App>, method: Method) -> Response {
    let response = match method {
        Method::GET | Method::HEAD => {
            let mut response = Response::new(Body::from("{}"));
            let json = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
            response
        }
        _ => unsupported().into_response(),
    };
    finish(&app, route::BASE, None, response)
}

/// `/v2/{*rest}`
pub async fn any(
    State(app): State<App>,
    Path(rest): Path<String>,
    query: Result<Query<V2Query>, QueryRejection>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(error) => return finish(&app, route::OTHER, None, ApiError::from(error).into_response()),
    };
    let path = V2Path::parse(&rest);
    let label = match path {
        V2Path::Manifest { .. } => route::MANIFESTS,
        V2Path::Blob { .. } => route::BLOBS,
        _ => route::OTHER,
    };
    let request = Request {
        app: &app,
        ns: query.ns.as_deref(),
        method: &method,
        headers: &headers,
        caller: Caller::Server,
    };
    let answer = match path {
        _ if !matches!(method, Method::GET | Method::HEAD) => Err(unsupported()),
        V2Path::Base => return base(State(app), method).await,
        V2Path::Manifest { name, reference } => request.manifest(name, reference).await,
        V2Path::Blob { name, digest } => request.blob(name, digest).await,
        V2Path::Tags { name } => request.unsupported_list(name),
        V2Path::Other => Err(
            ApiError::new(OciCode::Unsupported, "this mirror does not have this endpoint")
                .with_status(StatusCode::NOT_FOUND),
        ),
    };
    let response = answer.unwrap_or_else(|error| error.into_response());
    finish(&app, label, query.ns.as_deref(), response)
}

struct Request<'a> {
    app: &'a App,
    ns: Option<&'a str>,
    method: &'a Method,
    headers: &'a HeaderMap,
    caller: Caller,
}

impl Request<'_> {
    fn route(&self, name: &str) -> Result<Route, ApiError> {
        self.app.upstreams.resolve(self.ns, name).map_err(|error| {
            let code = match error {
                ResolveError::UnknownUpstream => OciCode::NameUnknown,
                ResolveError::Name(_) => OciCode::NameInvalid,
            };
            ApiError::new(code, error.to_string())
        })
    }

    async fn manifest(&self, name: &str, reference: &str) -> Result<Response, ApiError> {
        let route = self.route(name)?;
        let reference: Reference = reference.parse().map_err(|error: NameError| {
            let code = match error {
                NameError::BadDigest(_) => OciCode::DigestInvalid,
                _ => OciCode::TagInvalid,
            };
            ApiError::new(code, error.to_string())
        })?;
        let accept: Vec<_> = self.headers.get_all(header::ACCEPT).iter().cloned().collect();
        let manifest = self
            .app
            .manifests
            .get(&route.source, &self.caller, &reference, &accept)
            .await;
        let manifest = manifest.map_err(|error| ApiError::from_read(Asked::Manifest, &error))?;
        let cache = match reference {
            Reference::Digest(_) => CACHE_FOREVER,
            Reference::Tag(_) => CACHE_NEVER,
        };
        self.manifest_response(manifest, cache)
    }

    fn manifest_response(&self, manifest: Manifest, cache: HeaderValue) -> Result<Response, ApiError> {
        let content_type = HeaderValue::from_str(&manifest.media_type)
            .map_err(|_| ApiError::new(OciCode::ManifestInvalid, "the upstream's Content-Type is malformed"))?;
        let mut representation =
            self.representation(&manifest.digest, manifest.bytes.len() as u64, content_type, cache);
        representation.route = route::MANIFESTS;
        if manifest.stale {
            representation.headers.insert(header::WARNING, WARNING_STALE);
        }
        let bytes = manifest.bytes;
        let open = move |range: std::ops::Range<u64>| {
            // A manifest is in memory, so its offsets fit `usize`.
            let part = bytes.slice(range.start as usize..range.end as usize);
            futures_util::stream::iter([Ok::<_, std::convert::Infallible>(part)])
        };
        Ok(ranged_response(
            self.method,
            self.headers,
            &representation,
            &self.app.metrics,
            open,
        ))
    }

    async fn blob(&self, name: &str, digest: &str) -> Result<Response, ApiError> {
        let route = self.route(name)?;
        let digest: BlobDigest = digest
            .parse()
            .map_err(|e: headstart_layer_format::DigestError| ApiError::new(OciCode::DigestInvalid, e.to_string()))?;
        let failed = |error| ApiError::from_read(Asked::Blob, &error);
        let octets = HeaderValue::from_static("application/octet-stream");
        if self.method == Method::HEAD {
            let size = self
                .app
                .blobs
                .size(&route.source, &self.caller, &digest)
                .await
                .map_err(failed)?;
            let representation = self.representation(&digest, size, octets, CACHE_FOREVER);
            let nothing = |_| futures_util::stream::empty::<Result<bytes::Bytes, std::convert::Infallible>>();
            return Ok(ranged_response(
                self.method,
                self.headers,
                &representation,
                &self.app.metrics,
                nothing,
            ));
        }
        let blob = self
            .app
            .blobs
            .open(&route.source, &self.caller, &digest)
            .await
            .map_err(failed)?;
        let representation = self.representation(&digest, blob.size(), octets, CACHE_FOREVER);
        let open = move |range| blob.stream(range);
        Ok(ranged_response(
            self.method,
            self.headers,
            &representation,
            &self.app.metrics,
            open,
        ))
    }

    fn representation(
        &self,
        digest: &BlobDigest,
        size: u64,
        content_type: HeaderValue,
        cache: HeaderValue,
    ) -> Representation {
        let ascii = |text: String| HeaderValue::from_str(&text).expect("a digest is ASCII");
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_DIGEST, ascii(digest.to_string()));
        headers.insert(header::CACHE_CONTROL, cache);
        Representation {
            size,
            etag: ascii(format!("\"{digest}\"")),
            content_type,
            headers,
            route: route::BLOBS,
        }
    }

    /// Listing is the upstream's business; runtimes do not ask mirrors for it.
    fn unsupported_list(&self, name: &str) -> Result<Response, ApiError> {
        self.route(name)?;
        let error = ApiError::new(OciCode::Unsupported, "this mirror does not list tags");
        Err(error.with_status(StatusCode::NOT_FOUND))
    }
}

fn unsupported() -> ApiError {
    ApiError::new(OciCode::Unsupported, "this mirror is read-only")
}

/// What every answer has.
fn finish(app: &App, label: &'static str, ns: Option<&str>, mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    if let Some(ns) = ns.and_then(|ns| HeaderValue::from_str(ns).ok()) {
        headers.insert(OCI_NAMESPACE, ns);
    }
    app.metrics.request(label, response.status().as_u16());
    response
}
