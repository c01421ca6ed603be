//! A node whose shim is a process, with a scripted server and a scripted collector.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::{BlobDigest, ChainId};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;
use tonic::Code;

use crate::collector::Collector;
use crate::layer::TestLayer;
use crate::server::FakeServer;
use crate::support::{Client, code, option};

const SHIM: &str = env!("CARGO_BIN_EXE_headstart-shim");
/// No machine needs as long.
const LONG: Duration = Duration::from_secs(120);
pub const TOKEN: &str = "hunter2-the-node-s-token";

pub struct Node {
    pub server: FakeServer,
    pub collector: Collector,
    pub runtime: Runtime,
    pub client: Client,
    shim: Child,
    dir: tempfile::TempDir,
}

impl Node {
    /// `telemetry` and `lazy` are keys of those tables, `environment` is what the process finds there.
    pub fn start(telemetry: impl Fn(&Collector) -> String, lazy: &str, environment: &[(&str, String)]) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount: run them as root"
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (dir, server) = (tempfile::tempdir().unwrap(), FakeServer::start());
        let collector = runtime.block_on(Collector::start());
        fs::write(dir.path().join("token"), TOKEN).unwrap();
        let config = format!(
            "root_dir = '{0}/root'\nsocket = '{0}/shim.sock'\nservers = ['{1}']\n[survival]\nkeep_with = 'nobody'\n\
             [log]\nformat = 'json'\n[lazy]\nfree_bytes_min = 0\nsmall_file_bytes_max = 4096\nreadahead_bytes = 0\n{lazy}\n\
             [fetch.identity]\ntoken_file = '{0}/token'\n[telemetry]\n{2}\n",
            dir.path().display(),
            server.url(),
            telemetry(&collector),
        );
        fs::write(dir.path().join("shim.toml"), config).unwrap();
        let shim = Command::new(SHIM)
            .arg("--config")
            .arg(dir.path().join("shim.toml"))
            .envs(environment.iter().map(|(name, value)| (*name, value)))
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stderr(fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let client = runtime.block_on(Client::connect(&dir.path().join("shim.sock"), None));
        Self {
            server,
            collector,
            runtime,
            client,
            shim,
            dir,
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// As containerd does with an image of one layer; then where a container finds it.
    pub fn pull(&self, image: &str, layer: &Arc<TestLayer>) -> PathBuf {
        let chain = ChainId::bottom(*layer.toc.diff_id()).to_string();
        let prepared = self.prepare(image, &chain);
        assert_eq!(code(prepared), Code::AlreadyExists, "{}", self.log());
        let mounts = self.runtime.block_on(self.client.prepare(image, &chain, &[])).unwrap();
        Path::new(option(&mounts, "lowerdir").unwrap()).to_owned()
    }

    pub fn prepare(&self, image: &str, chain: &str) -> Result<Vec<headstart_shim::proto::Mount>, tonic::Status> {
        let manifest = manifest(image).to_string();
        let labels = [
            ("containerd.io/snapshot.ref", chain),
            ("containerd.io/snapshot/cri.manifest-digest", &manifest),
        ];
        let key = format!("extract-{image}");
        self.runtime.block_on(self.client.prepare(&key, "", &labels))
    }

    /// SIGTERM, and how long the end took.
    pub fn stop(&mut self) -> (ExitStatus, Duration) {
        let begun = Instant::now();
        self.terminate();
        (self.ended(), begun.elapsed())
    }

    fn terminate(&mut self) {
        kill_process(Pid::from_raw(self.shim.id().cast_signed()).unwrap(), Signal::TERM).unwrap();
    }

    fn ended(&mut self) -> ExitStatus {
        // A connection of a client that is idle ends when its runtime runs.
        until("the shim ends", || self.shim.try_wait().unwrap().is_some());
        self.shim.wait().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A test that failed: what it mounted should go.
        if self.shim.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.terminate();
            self.ended();
        }
    }
}

pub fn manifest(image: &str) -> BlobDigest {
    BlobDigest::of(image.as_bytes())
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
