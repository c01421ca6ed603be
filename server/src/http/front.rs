//! The way in of every request: straight to `/v2/` for what is read there over and over, through the router for all else.
//!
//! In: a request of a connection. Out: its answer, with everything that surrounds a request.
//! Invariant: both ways give the same answers, and have the same limits, names, reports and guard against panics; the
//! straight one only saves what finding the way costs, which is as much as finding a manifest in memory.
//! Not here: the routes ([`super::router`]), what surrounds them ([`super::around`]).

use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{Router, body::Body, extract::Request, response::Response};
use futures_util::FutureExt as _;
use http::Method;
use hyper::body::Incoming;
use tower::ServiceExt as _;

use super::{around::Around, error, identity, router, v2};
use crate::app::App;

/// See the file's comment. Clones share it.
#[derive(Clone, Debug)]
pub struct Front(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    app: App,
    around: Around,
    router: Router,
}

impl Front {
    pub fn new(app: App) -> Self {
        let around = Around::new(&app);
        let router = router(app.clone(), around.clone());
        Self(Arc::new(Inner { app, around, router }))
    }

    pub async fn answer(&self, request: http::Request<Incoming>) -> Response {
        match is_straight(&request) {
            // A body, should there be one, is as unread as it would be otherwise.
            true => self.straight(request.map(|_| Body::empty())).await,
            // Apart, so that what goes straight is not moved with room for it.
            false => Box::pin(self.routed(request.map(Body::new))).await,
        }
    }

    async fn routed(&self, request: Request) -> Response {
        match self.0.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    async fn straight(&self, request: Request) -> Response {
        let read = |mut request: Request| async move {
            identity::know(&mut request);
            let read = AssertUnwindSafe(v2::read(&self.0.app, request));
            read.catch_unwind().await.unwrap_or_else(error::panicked)
        };
        self.0.around.surround(request, read).await
    }
}

/// A GET below `/v2/` whose path is as it is meant, without escapes.
fn is_straight<B>(request: &http::Request<B>) -> bool {
    let rest = request.uri().path().strip_prefix("/v2/").unwrap_or_default();
    request.method() == Method::GET && !rest.is_empty() && !rest.contains('%')
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::BlobDigest;
    use http::header;

    use super::*;
    use crate::{
        config::{Config, UpstreamConfig},
        store::facts::Source,
    };

    async fn told(response: Response) -> (http::StatusCode, http::HeaderMap, bytes::Bytes) {
        let (mut head, body) = response.into_parts();
        // Another for each request.
        assert!(head.headers.remove("x-request-id").is_some());
        // The router writes down what the connection would.
        head.headers.remove(header::CONTENT_LENGTH);
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (head.status, head.headers, body)
    }

    #[tokio::test]
    async fn both_ways_say_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            data_dir: dir.path().to_owned(),
            upstreams: vec![UpstreamConfig::new("u", "http://127.0.0.1:1")],
            default_upstream: Some("u".into()),
            ..Config::default()
        };
        let app = App::open(config).await.unwrap();
        let bytes = b"what is here";
        let digest = BlobDigest::of(bytes);
        app.originals.put(&digest, bytes).unwrap();
        let source = Source {
            upstream: "u".into(),
            repository: "a/b".into(),
        };
        app.store.add_member(&source, &digest).unwrap();
        let front = Front::new(app);
        let targets = [
            format!("/v2/a/b/blobs/{digest}"),
            format!("/v2/a/b/blobs/{digest}?ns=u"),
            format!("/v2/a/b/blobs/{digest}?ns=%75"),
            format!("/v2/a/b/blobs/{digest}?ns=other"),
            format!("/v2/a/b/blobs/{digest}?ns=a&ns=b"),
            format!("/v2/a/b/blobs/{digest}?n=1&last=x&else=%zz"),
            "/v2/a/b/blobs/sha256:short".into(),
            "/v2/A/manifests/latest".into(),
            "/v2/a/manifests/-".into(),
            "/v2/_catalog".into(),
            "/v2//".into(),
            "/v2/a//b".into(),
            "/v2/a/b/blobs/uploads/".into(),
        ];
        let mut found = 0;
        for target in &targets {
            for range in [None, Some("bytes=3-5"), Some("bytes=100-")] {
                let request = || {
                    let mut request = http::Request::get(target);
                    if let Some(range) = range {
                        request = request.header(header::RANGE, range);
                    }
                    request.body(Body::empty()).unwrap()
                };
                assert!(is_straight(&request()));
                let straight = told(front.straight(request()).await).await;
                assert_eq!(straight, told(front.routed(request()).await).await, "{target}");
                found += usize::from(straight.0.is_success());
            }
        }
        // Four, whole and in part; and `/v2//`, which is as good as `/v2/`, and has no parts.
        assert_eq!(found, 2 * 4 + 3);
    }

    #[test]
    fn only_plain_reads_go_straight() {
        let straight = |method: Method, target: &str| {
            let request = http::Request::builder().method(method).uri(target);
            is_straight(&request.body(()).unwrap())
        };
        assert!(straight(Method::GET, "/v2/a/tags/list?n=%35"));
        for target in [
            "/v2",
            "/v2/",
            "/v2/a%2Fb/tags/list",
            "/v3/a",
            "/healthz",
            "/headstart/v1/chunks",
        ] {
            assert!(!straight(Method::GET, target), "{target}");
        }
        assert!(!straight(Method::HEAD, "/v2/a/tags/list") && !straight(Method::PUT, "/v2/a/tags/list"));
    }
}
