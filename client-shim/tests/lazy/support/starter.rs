//! A node that has an image prepared from the real server, and starts of it: what the prefetch and the trace come to.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use headstart_layer_format::api::ImageStatus;
use headstart_layer_format::profile::{Origin, Profile};
use headstart_loadtest::corpus::SyntheticImage;
use headstart_shim::fetch::{FetchConfig, Servers};
use headstart_shim::layers::LazyConfig;
use headstart_shim::profile::state::{ImagePrefetch, Progress, Telling};
use headstart_shim::profile::{PrefetchConfig, Starts};

use super::Node;
use super::node::{fetch_config, lazy_config, patient_fetch};

pub struct Starter {
    pub node: Node,
    pub starts: Starts,
    pub status: ImageStatus,
    /// The image's layers, as they are shown.
    pub dirs: Vec<PathBuf>,
    url: String,
    _root: tempfile::TempDir,
}

impl Starter {
    pub fn prepare(url: &str, image: &SyntheticImage, config: &PrefetchConfig) -> Self {
        Self::prepare_with(url, image, config, (lazy_config(), fetch_config()))
    }

    /// Over a link on which everything takes its time.
    pub fn prepare_slowly(url: &str, image: &SyntheticImage, config: &PrefetchConfig) -> Self {
        let lazy = LazyConfig {
            demand_timeout_ms: 60_000,
            ..lazy_config()
        };
        Self::prepare_with(url, image, config, (lazy, patient_fetch()))
    }

    fn prepare_with(
        url: &str,
        image: &SyntheticImage,
        config: &PrefetchConfig,
        (lazy, fetch): (LazyConfig, FetchConfig),
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        let urls = [url.to_owned()];
        let node = Node::open_as(root.path(), &urls, lazy, &fetch).unwrap();
        let starts = node.starts(&urls, config);
        let mut starter = Self {
            status: status(&node, url, image),
            dirs: Vec::new(),
            node,
            starts,
            url: url.to_owned(),
            _root: root,
        };
        starter.show();
        starter
    }

    /// Another image on the same node, which is meant from now on.
    pub fn prepare_next(&mut self, image: &SyntheticImage) {
        self.status = status(&self.node, &self.url, image);
        self.show();
    }

    fn show(&mut self) {
        self.starts.prepared(&self.status);
        let layers = self.status.layers.iter();
        let shown = layers.map(|l| self.node.present(&l.digest).unwrap().lowerdir);
        self.dirs = shown.collect();
    }

    /// A container is created: what is read from now on is its start.
    pub fn container(&self, container: &str) {
        let layers: Vec<_> = self.status.layers.iter().map(|l| l.digest).collect();
        self.starts.container(container, &self.status.manifest_digest, &layers);
    }

    pub fn until(&self, what: &str, done: impl Fn(&ImagePrefetch) -> bool) -> ImagePrefetch {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let now = self.starts.status().into_iter().next().unwrap();
            if done(&now) {
                return now;
            }
            assert!(Instant::now() < deadline, "{what}: {now:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How the prefetch ended.
    pub fn ended(&self) -> ImagePrefetch {
        self.until("the prefetch ends", |p| {
            !matches!(p.progress, Progress::Waiting | Progress::Streaming)
        })
    }

    /// The container goes.
    pub fn told(&self, container: &str) -> ImagePrefetch {
        self.starts.over(container);
        self.until("the trace is told", |p| {
            !matches!(p.trace, Telling::None | Telling::Recording)
        })
    }
}

pub fn status(node: &Node, url: &str, image: &SyntheticImage) -> ImageStatus {
    let servers = Servers::new(&[url.to_owned()], &patient_fetch()).unwrap();
    let status = node.block_on(servers.image(&image.manifest_digest, 25_000));
    status.unwrap().unwrap()
}

/// A start is over when the test says so, however slow the machine.
pub fn patient() -> PrefetchConfig {
    PrefetchConfig {
        trace_quiet_ms: 120_000,
        trace_max_ms: 120_000,
        trace_interval_ms: 0,
        explore: false,
        ..PrefetchConfig::default()
    }
}

pub fn learned(status: ImageStatus) -> Profile {
    let profile = status.profile.unwrap();
    assert_eq!(profile.origin, Origin::Learned);
    profile
}
