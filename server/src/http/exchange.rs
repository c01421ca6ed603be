//! One request and its answer, as they are reported: counters, times, the access log.
//!
//! In: what is known when it begins, and what becomes known. Out: one set of metrics and at most one line.
//! Invariant: every request is reported once, however it ends. Of a request's target only path parts are logged; its
//! query and its headers never are.
//! Not here: the layers that feed this ([`super::around`]), spans ([`crate::telemetry`]).

use std::time::Instant;

use axum::extract::Query;
use http::{Method, Uri};

use super::{clients::ClientKey, request_id::RequestId, v2::V2Query, v2_path::V2Path};
use crate::{
    app::App,
    config::AccessLog,
    log::limit::ACCESS,
    metrics::{
        Held,
        names::{Level, Timing},
        route,
    },
};

/// The longest reference is a sha512 digest, with 135 characters; what is longer is none.
const REFERENCE_LEN_MAX: usize = 160;

/// How a method is reported: a client may make up any number of them, of any length.
pub fn method_name(method: &Method) -> &str {
    match method.as_str() {
        known @ ("GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "TRACE" | "CONNECT") => known,
        _ => "_OTHER",
    }
}

/// See the file's comment.
#[derive(Debug)]
pub struct Exchange {
    pub id: RequestId,
    pub route: &'static str,
    pub client: ClientKey,
    app: App,
    method: Method,
    uri: Uri,
    started: Instant,
    /// 0: none yet.
    status: u16,
    bytes: u64,
    end: End,
    _held: Held,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All of it was handed over.
    Complete,
    /// The server broke it off: what came was wrong or less than promised.
    Broken,
    /// The connection went away first.
    Left,
}

impl End {
    fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Broken => "broken",
            Self::Left => "left",
        }
    }
}

impl Exchange {
    pub fn new(app: App, id: RequestId, client: ClientKey, method: Method, uri: Uri) -> Self {
        let route = route_of(uri.path());
        let held = app.metrics.hold(Level::InProgress, &[route]);
        Self {
            id,
            route,
            client,
            app,
            method,
            uri,
            started: Instant::now(),
            status: 0,
            bytes: 0,
            end: End::Left,
            _held: held,
        }
    }

    /// The answer's head is on its way.
    pub fn head(&mut self, status: u16) {
        self.status = status;
        let seconds = self.started.elapsed().as_secs_f64();
        self.app.metrics.time(Timing::RequestHead, seconds, &[self.route]);
        self.app.metrics.request(self.route, status);
    }

    pub fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    pub fn end(&mut self, end: End) {
        self.end = end;
    }

    fn log(&self) {
        let failed = self.status >= 400 || self.end != End::Complete;
        match self.app.config.log.access {
            AccessLog::Off => return,
            AccessLog::Errors if !failed => return,
            AccessLog::Errors | AccessLog::All => {}
        }
        // Only for the line: whether and how the name resolves was the handler's business.
        let rest = self.uri.path().strip_prefix("/v2/").unwrap_or_default();
        let rest = rest.replace("%3A", ":").replace("%3a", ":");
        let (name, reference) = match V2Path::parse(&rest) {
            V2Path::Manifest { name, reference } => (name, reference),
            V2Path::Blob { name, digest } | V2Path::Referrers { name, digest } => (name, digest),
            V2Path::Tags { name } => (name, ""),
            V2Path::Base | V2Path::Other => ("", ""),
        };
        let ns = Query::<V2Query>::try_from_uri(&self.uri).ok().and_then(|q| q.0.ns);
        let source = self.app.upstreams.resolve(ns.as_deref(), name).ok().map(|r| r.source);
        let source = source.as_ref().filter(|_| reference.len() <= REFERENCE_LEN_MAX);
        tracing::info!(
            target: ACCESS,
            request_id = %self.id,
            client = %self.client,
            method = method_name(&self.method),
            route = self.route,
            upstream = source.map_or("", |s| s.upstream.as_str()),
            repository = source.map_or("", |s| s.repository.as_str()),
            reference = %source.map_or("", |_| reference).escape_debug(),
            status = self.status,
            bytes = self.bytes,
            duration_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            end = self.end.as_str(),
            "request"
        );
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.app.metrics.time(Timing::RequestTotal, seconds, &[self.route]);
        self.log();
    }
}

/// The label of a path.
pub fn route_of(path: &str) -> &'static str {
    if let Some(rest) = path.strip_prefix("/v2/") {
        return match V2Path::parse(rest) {
            V2Path::Base => route::BASE,
            V2Path::Manifest { .. } => route::MANIFESTS,
            V2Path::Blob { .. } => route::BLOBS,
            V2Path::Tags { .. } => route::TAGS,
            V2Path::Referrers { .. } => route::REFERRERS,
            V2Path::Other => route::OTHER,
        };
    }
    let Some(rest) = path.strip_prefix("/headstart/v1/") else {
        return match path {
            "/v2" => route::BASE,
            "/healthz" | "/readyz" | "/metrics" => route::PROBES,
            _ => route::OTHER,
        };
    };
    match (rest.split('/').next(), rest.rsplit('/').next()) {
        (Some("images"), Some("trace")) => route::TRACE,
        (Some("images"), _) => route::IMAGE,
        (Some("chains"), _) => route::CHAIN,
        (Some("chunks"), _) => route::CHUNKS,
        (Some("admin"), _) => route::ADMIN,
        (Some("layers"), Some("toc")) => route::TOC,
        (Some("layers"), Some("data")) => route::DATA,
        _ => route::OTHER,
    }
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::routes;

    use super::*;

    #[test]
    fn every_path_has_a_label() {
        for (path, label) in [
            ("/v2", route::BASE),
            ("/v2/", route::BASE),
            ("/v2/a/b/manifests/latest", route::MANIFESTS),
            ("/v2/a/blobs/sha256%3Aabc", route::BLOBS),
            ("/v2/a/tags/list", route::TAGS),
            ("/v2/a/referrers/sha256:abc", route::REFERRERS),
            ("/v2/_catalog", route::OTHER),
            (routes::IMAGE_TEMPLATE, route::IMAGE),
            (routes::LAYER_TOC_TEMPLATE, route::TOC),
            (routes::LAYER_DATA_TEMPLATE, route::DATA),
            (routes::CHUNKS, route::CHUNKS),
            (routes::CHAIN_TEMPLATE, route::CHAIN),
            (routes::METRICS, route::PROBES),
            (routes::HEALTHZ, route::PROBES),
            (routes::READYZ, route::PROBES),
            ("/", route::OTHER),
        ] {
            assert_eq!(route_of(path), label, "{path}");
        }
    }
}
