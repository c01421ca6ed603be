//! The real server in this process, with an image that it has converted from a scripted registry.

use std::sync::Arc;

use headstart_layer_format::api::LayerState;
use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::Origin;
use headstart_server::app::{App, serve};
use headstart_server::config::{Config, UpstreamConfig};
use headstart_shim::fetch::{FetchConfig, Servers};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

#[derive(Debug)]
pub struct Converted {
    pub url: String,
    pub origin: Arc<Origin>,
    running: Option<(Runtime, JoinHandle<bool>)>,
    stop: CancellationToken,
    _data: tempfile::TempDir,
}

impl Converted {
    /// Every layer of `image` is ready when this returns. It is `team/app:v1` of `origin`.
    pub fn start(image: &SyntheticImage) -> Self {
        Self::start_with(image, |_| ())
    }

    /// With another configuration.
    pub fn start_with(image: &SyntheticImage, change: impl FnOnce(&mut Config)) -> Self {
        let origin = Arc::new(Origin::with_image("team/app", "v1", image));
        let data = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let mut config = Config {
            data_dir: data.path().to_owned(),
            default_upstream: Some("origin".into()),
            upstreams: vec![UpstreamConfig::new("origin", origin.url())],
            ..Config::default()
        };
        change(&mut config);
        let stop = CancellationToken::new();
        let (app, listener) = runtime.block_on(async {
            let app = App::open(config).await.unwrap();
            (app, tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap())
        });
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stopped = stop.clone();
        let served = runtime.spawn(async move { serve(app, listener, stopped).await.is_ok() });
        let server = Self {
            url,
            origin,
            running: Some((runtime, served)),
            stop,
            _data: data,
        };
        server.convert(image, "v1");
        server
    }

    /// Another build, which is `team/app` under this tag from now on.
    pub fn next(&self, image: &SyntheticImage, tag: &str) {
        image.push(&self.origin, "team/app", tag);
        self.convert(image, tag);
    }

    /// A client's first request starts the conversion of all layers; a node waits for it.
    fn convert(&self, image: &SyntheticImage, tag: &str) {
        let (runtime, _) = self.running.as_ref().unwrap();
        let status = runtime.block_on(async {
            let manifest = format!("{}/v2/team/app/manifests/{tag}?ns=origin", self.url);
            let answer = reqwest::get(manifest).await.unwrap();
            assert_eq!(answer.status(), 200);
            let servers = Servers::new(std::slice::from_ref(&self.url), &FetchConfig::default()).unwrap();
            servers.image(&image.manifest_digest, 25_000).await.unwrap().unwrap()
        });
        assert!(status.layers.iter().all(|l| l.state == LayerState::Ready), "{status:?}");
    }

    /// The server dies, the registry does not.
    pub fn down(&mut self) {
        self.stop.cancel();
        if let Some((runtime, served)) = self.running.take() {
            assert!(runtime.block_on(served).unwrap());
        }
    }
}
