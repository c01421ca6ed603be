//! A server in this process, on a free port, with a scripted origin behind it.
//!
//! In: an origin. Out: a [`Server`] and a client for it.
//! Invariant: everything is in a temporary directory and ends with the test.
//! Not here: the origin (`headstart_loadtest::origin`).
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod binary;

pub mod lazy;

use std::{net::SocketAddr, path::Path, time::Duration};

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
#[allow(unused_imports, reason = "each test binary uses its part")]
pub use headstart_loadtest::corpus::noise;
use headstart_loadtest::origin::Origin;
use headstart_server::{
    app::{self, App},
    config::{Config, UpstreamConfig},
};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// The upstream's name in every test.
pub const UPSTREAM: &str = "origin.test";
pub const REPOSITORY: &str = "team/app";

pub struct Server {
    pub app: App,
    pub address: SocketAddr,
    pub http: reqwest::Client,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

/// A configuration with short pauses, so that tests of failures are quick.
pub fn config(origin: &Origin, data_dir: &Path) -> Config {
    let mut config = Config {
        data_dir: data_dir.to_owned(),
        upstreams: vec![UpstreamConfig::new(UPSTREAM, origin.url())],
        default_upstream: None,
        ..Config::default()
    };
    config.http.drain_timeout_ms = 2_000;
    config
}

impl Server {
    pub async fn start(origin: &Origin, data_dir: &Path) -> Self {
        Self::with(config(origin, data_dir)).await
    }

    pub async fn with(config: Config) -> Self {
        let app = App::open(config).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (app, stop) = (app.clone(), stop.clone());
            async move { app::serve(app, listener, stop).await.unwrap() }
        });
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self {
            app,
            address,
            http,
            stop,
            running,
        }
    }

    /// Requests of somebody who shows `authorization`.
    pub fn anybody(&self) -> lazy::As<'_> {
        lazy::As {
            server: self,
            authorization: None,
        }
    }

    pub fn client(&self, authorization: impl Into<String>) -> lazy::As<'_> {
        lazy::As {
            server: self,
            authorization: Some(authorization.into()),
        }
    }

    /// A clean stop: returns when the index is flushed and everything is closed.
    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }

    /// `path` below `/v2/`, with `ns`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/v2/{path}?ns={UPSTREAM}", self.address)
    }

    pub fn blob_url(&self, digest: &BlobDigest) -> String {
        self.url(&format!("{REPOSITORY}/blobs/{digest}"))
    }

    pub fn manifest_url(&self, reference: impl std::fmt::Display) -> String {
        self.url(&format!("{REPOSITORY}/manifests/{reference}"))
    }

    pub async fn get(&self, url: &str) -> reqwest::Response {
        self.http.get(url).send().await.unwrap()
    }

    /// Status, and the body or why it broke off.
    pub async fn fetch(&self, url: &str) -> (u16, Result<Bytes, reqwest::Error>) {
        let (status, _, body) = answer(self.http.get(url)).await;
        (status, body)
    }

    /// Status and the code of the OCI error.
    pub async fn error(&self, url: &str) -> (u16, String) {
        error_of(self.get(url).await).await
    }
}

/// Status, head, and the body or why it broke off; status 0 when the connection did before the head was out.
pub async fn answer(request: reqwest::RequestBuilder) -> (u16, http::HeaderMap, Result<Bytes, reqwest::Error>) {
    match request.send().await {
        Ok(response) => {
            let (status, head) = (response.status().as_u16(), response.headers().clone());
            (status, head, response.bytes().await)
        }
        Err(error) => {
            assert!(!error.is_connect() && !error.is_timeout(), "{error:?}");
            (0, http::HeaderMap::new(), Err(error))
        }
    }
}

/// Whether an answer is none, or breaks off: what wrong bytes come to. Which of the two depends on whether the verdict or the
/// reader comes first.
pub fn is_cut<T>(status: u16, body: &Result<T, reqwest::Error>) -> bool {
    status >= 500 || body.is_err()
}

/// Status and the code of the OCI error.
pub async fn error_of(response: reqwest::Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    (
        status,
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned(),
    )
}

/// Runs what must end well before any time-out of the test harness.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work)
        .await
        .expect("it ends")
}

/// Until the condition holds: what is waited for happens on a thread of the server's own.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} does not come true");
}
