//! A node: a directory, a mount, and a runtime of its own, so that tests can read files like any process does.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;
use headstart_shim::counters::Counters;
use headstart_shim::fetch::{FetchConfig, Servers};
use headstart_shim::layers::{LayerProgress, LayersError, LazyConfig, NodeLayers, Presented};
use headstart_shim::profile::{PrefetchConfig, Starts};
use tokio::runtime::Runtime;

use super::{FakeServer, TestLayer};

#[derive(Debug)]
pub struct Node {
    pub layers: NodeLayers,
    runtime: Runtime,
}

/// Short enough that tests of failures are quick, long enough for a busy machine to do the right thing in.
pub const DEMAND_TIMEOUT: Duration = Duration::from_secs(3);

pub fn lazy_config() -> LazyConfig {
    LazyConfig {
        presentation: crate::PRESENTATION,
        demand_timeout_ms: DEMAND_TIMEOUT.as_millis() as u64,
        // Tests count what is fetched, and when.
        background_fill: false,
        // They run where there may be little room.
        free_bytes_min: 0,
        ..LazyConfig::default()
    }
}

pub fn fetch_config() -> FetchConfig {
    FetchConfig {
        response_timeout_ms: 1000,
        idle_timeout_ms: 1000,
        ..FetchConfig::default()
    }
}

/// For tests whose servers are silent on purpose, and that no slow machine may upset.
pub fn patient_fetch() -> FetchConfig {
    FetchConfig {
        response_timeout_ms: 60_000,
        idle_timeout_ms: 60_000,
        ..FetchConfig::default()
    }
}

impl Node {
    pub fn open(root: &Path, servers: &[&FakeServer]) -> Self {
        let urls: Vec<String> = servers.iter().map(|s| s.url()).collect();
        Self::open_with(root, &urls, lazy_config()).unwrap()
    }

    pub fn open_with(root: &Path, urls: &[String], config: LazyConfig) -> Result<Self, LayersError> {
        Self::open_as(root, urls, config, &fetch_config())
    }

    pub fn open_as(root: &Path, urls: &[String], config: LazyConfig, fetch: &FetchConfig) -> Result<Self, LayersError> {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount: run them as root"
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let servers = Servers::new(urls, fetch)?;
        let layers = runtime.block_on(NodeLayers::open(root, &config, servers))?;
        Ok(Self { layers, runtime })
    }

    pub fn present(&self, layer: &BlobDigest) -> Result<Presented, LayersError> {
        let deadline = Instant::now() + Duration::from_secs(20);
        self.runtime.block_on(self.layers.present(layer, deadline))
    }

    pub fn present_within(&self, layer: &BlobDigest, time: Duration) -> Result<Presented, LayersError> {
        self.runtime.block_on(self.layers.present(layer, Instant::now() + time))
    }

    /// Presents, and gives the directory.
    pub fn show(&self, layer: &Arc<TestLayer>) -> PathBuf {
        self.present(&layer.digest).unwrap().lowerdir
    }

    pub fn release(&self, layer: &BlobDigest) {
        self.runtime.block_on(self.layers.release(layer));
    }

    /// Waits until `done` is true of a layer.
    pub fn until(&self, layer: &BlobDigest, what: &str, done: impl Fn(&LayerProgress) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let layers = self.layers.status().layers;
            let layer = layers.iter().find(|l| l.digest == *layer).unwrap();
            if done(layer) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {layer:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn counters(&self) -> Arc<Counters> {
        self.layers.status().counters
    }

    /// What follows profiles and teaches them, on this node.
    pub fn starts(&self, urls: &[String], config: &PrefetchConfig) -> Starts {
        let servers = Servers::new(urls, &patient_fetch()).unwrap();
        self.runtime
            .block_on(async { Starts::new(config, servers, self.layers.clone()) })
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// A clean stop.
    pub fn stop(self) {}
}

impl Drop for Node {
    fn drop(&mut self) {
        self.runtime.block_on(self.layers.shutdown());
    }
}
