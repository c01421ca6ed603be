//! A node whose shim is a process: configured, started, killed; and an image of two layers mounted as a container's.

use std::ffi::CString;
use std::fs;
use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::{BlobDigest, ChainId};
use headstart_loadtest::corpus::noise;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Runtime;
use tonic::Code;

use crate::holder::ask_holder;
use crate::layer::{Item, LayerBuilder, TestLayer};
use crate::network::Network;
use crate::server::FakeServer;
use crate::support::{Client, code};

pub const SHIM: &str = env!("CARGO_BIN_EXE_headstart-shim");
/// No machine needs as long.
pub const LONG: Duration = Duration::from_secs(120);

/// What differs between nodes.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub presentation: &'static str,
    pub resend: bool,
    pub keep_with: &'static str,
}

impl Kind {
    pub const EROFS: Self = Self {
        presentation: "erofs",
        resend: false,
        keep_with: "holder",
    };
    pub const FUSE: Self = Self {
        presentation: "fuse",
        resend: false,
        keep_with: "holder",
    };
    pub const RESEND: Self = Self {
        presentation: "fuse",
        resend: true,
        keep_with: "holder",
    };
}

const RUN: &str = "export LISTEN_PID=$$; exec \"$0\" \"$@\"";

pub struct Node {
    pub dir: tempfile::TempDir,
    pub server: FakeServer,
    /// Where server and shim are, if not in the machine's own network.
    network: Option<Network>,
    pub layers: Vec<Arc<TestLayer>>,
    pub runtime: Runtime,
    /// Of the running shim, if one runs.
    pub shim: Option<Child>,
    pub container: PathBuf,
    manifest: BlobDigest,
    kind: Kind,
    pub demand_timeout_ms: u64,
    /// How long the shim waits for a server that says nothing.
    pub silence_timeout_ms: u64,
    /// Set for the next start, as a service manager would.
    pub environment: Vec<(&'static str, String)>,
    pub descriptors: Vec<OwnedFd>,
    /// What the configuration has besides.
    pub more: &'static str,
    /// From the next start on `/dev/fuse` is something else to it.
    pub without_fuse: bool,
}

/// Files `<name>0` to `<name>7` of 512 KiB, in chunks of 32 KiB.
pub fn layer(name: &str, seed: u64) -> Arc<TestLayer> {
    let files = (0..8).fold(LayerBuilder::new(), |layer, i| {
        layer.add(format!("{name}{i}"), Item::file(noise(512 << 10, seed * 100 + i)))
    });
    files.build(32 << 10)
}

impl Node {
    pub fn new(kind: Kind) -> Self {
        Self::in_network(kind, None)
    }

    pub fn in_network(kind: Kind, network: Option<Network>) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests mount: run them as root"
        );
        let dir = tempfile::tempdir().unwrap();
        let layers = vec![layer("a", 1), layer("b", 2)];
        let server = match &network {
            Some(network) => network.inside(FakeServer::start),
            None => FakeServer::start(),
        };
        let manifest = BlobDigest::of(b"manifest");
        server.serve_image(manifest, &layers);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let container = dir.path().join("container");
        fs::create_dir(&container).unwrap();
        Self {
            dir,
            server,
            network,
            layers,
            runtime,
            shim: None,
            container,
            manifest,
            kind,
            demand_timeout_ms: 60_000,
            silence_timeout_ms: 2000,
            environment: Vec::new(),
            descriptors: Vec::new(),
            more: "",
            without_fuse: false,
        }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("shim.sock")
    }

    /// Where a layer is kept.
    pub fn layer_dir(&self, at: usize) -> PathBuf {
        self.root().join("cache").join(self.layers[at].digest.hex())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// From the next start on.
    pub fn keep_with(&mut self, keep_with: &'static str) {
        self.kind.keep_with = keep_with;
    }

    /// Writes the shim's configuration.
    pub fn configure(&self) -> PathBuf {
        let Kind {
            presentation,
            resend,
            keep_with,
        } = self.kind;
        let dir = self.dir.path().display();
        // What was read of a file is little more than what was asked for: the rest stays to be fetched.
        let config = format!(
            "root_dir = '{dir}/root'\nsocket = '{dir}/shim.sock'\nservers = ['{}']\n\
             [survival]\nkeep_with = '{keep_with}'\nresend = {resend}\n[log]\nformat = 'text'\n\
             [lazy]\npresentation = '{presentation}'\nbackground_fill = false\nsmall_file_bytes_max = 4096\nreadahead_bytes = 0\n\
             kernel_readahead_kib = 32\nflush_interval_ms = 50\ndemand_timeout_ms = {}\n\
             [fetch]\nresponse_timeout_ms = {silence}\nidle_timeout_ms = {silence}\nconnect_timeout_ms = 1000\n\
             [snapshotter]\nsync_on_commit = false\n",
            self.server.url(),
            self.demand_timeout_ms,
            silence = self.silence_timeout_ms,
        );
        let path = self.dir.path().join("shim.toml");
        fs::write(&path, config + self.more).unwrap();
        path
    }

    /// Starts a shim; does not wait for it.
    pub fn spawn(&mut self) {
        assert!(self.shim.is_none());
        let path = self.configure();
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.path().join("log"))
            .unwrap();
        // The shell knows its own number, which is the shim's after `exec`.
        let (mut command, script) = match self.without_fuse {
            false => (Command::new("sh"), RUN.to_owned()),
            true => {
                let mut command = Command::new("unshare");
                command.args(["--mount", "--propagation=private", "sh"]);
                (command, format!("mount --bind /dev/null /dev/fuse && {RUN}"))
            }
        };
        command
            .args(["-c", &script, SHIM, "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .stderr(log)
            .env_remove("NOTIFY_SOCKET")
            .envs(self.environment.iter().map(|(name, value)| (*name, value)));
        if !self.descriptors.is_empty() {
            give(&mut command, &self.descriptors);
        }
        self.shim = Some(match &self.network {
            Some(network) => network.inside(|| command.spawn()).unwrap(),
            None => command.spawn().unwrap(),
        });
    }

    pub fn server_up(&mut self) {
        let server = &mut self.server;
        match &self.network {
            Some(network) => network.inside(|| server.up()),
            None => server.up(),
        }
    }

    /// Whether a new connection can be made, as the shim would.
    pub fn reaches_server(&self) -> bool {
        let address = self.server.url();
        let address = address.trim_start_matches("http://").parse().unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(200));
        self.network().inside(connect).is_ok()
    }

    pub fn network(&self) -> &Network {
        self.network.as_ref().unwrap()
    }

    /// Starts a shim and waits until it answers calls.
    pub fn start(&mut self) {
        self.spawn();
        self.until_up();
    }

    pub fn until_up(&mut self) {
        let until = Instant::now() + LONG;
        loop {
            let client = self.client();
            let answer = self
                .runtime
                .block_on(async { tokio::time::timeout(Duration::from_secs(5), client.list(&[])).await });
            if matches!(answer, Ok(Ok(_))) {
                return;
            }
            // Of a real service manager's it is not ours to know.
            let ended = self.shim.as_mut().and_then(|shim| shim.try_wait().unwrap());
            assert!(ended.is_none(), "the shim ended: {}", self.log());
            assert!(Instant::now() < until, "not up: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn client(&self) -> Client {
        let socket = self.socket();
        self.runtime.block_on(Client::connect(&socket, None))
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.shim.as_ref().unwrap().id().cast_signed()).unwrap()
    }

    pub fn kill(&mut self) {
        let mut shim = self.shim.take().unwrap();
        shim.kill().unwrap();
        shim.wait().unwrap();
    }

    /// Connections of clients that are gone end when the runtime runs; a stop would wait for them.
    pub fn hang_up(&self) {
        self.runtime
            .block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
    }

    /// SIGTERM, and the end it leads to.
    pub fn stop(&mut self) {
        self.hang_up();
        kill_process(self.pid(), Signal::TERM).unwrap();
        let mut shim = self.shim.take().unwrap();
        assert!(shim.wait().unwrap().success(), "{}", self.log());
    }

    /// Prepares the image's layers as containerd does; the chain ID of the last.
    pub fn pull(&self) -> String {
        pull(&self.runtime, &self.client(), self.manifest, &self.layers)
    }

    /// Pulls the image, and mounts it for a container.
    pub fn run_container(&self) {
        self.prepare_container(&self.pull());
    }

    /// Mounts an image that was pulled for a container.
    pub fn prepare_container(&self, chain: &str) {
        let client = self.client();
        let mounts = self.runtime.block_on(client.prepare("container", chain, &[])).unwrap();
        mount_overlay(&self.container, &mounts[0].options);
    }

    /// How the container's snapshot, which there is already, is to be mounted.
    pub fn container_options(&self) -> Vec<String> {
        let client = self.client();
        let mut mounts = self.runtime.block_on(client.mounts("container")).unwrap();
        mounts.remove(0).options
    }

    /// Mounts the container's snapshot, which there is already.
    pub fn mount_container(&self) {
        mount_overlay(&self.container, &self.container_options());
    }

    pub fn unmount_container(&self) {
        // A process that another test is starting has our files open until it runs.
        let begun = Instant::now();
        while let Err(error) = unmount(&self.container, UnmountFlags::empty()) {
            assert!(begun.elapsed() < LONG, "{error}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The container is gone, and containerd says so.
    pub fn end_container(&self) {
        self.unmount_container();
        let client = self.client();
        self.runtime.block_on(client.remove("container")).unwrap();
    }

    /// As far as the shim can tell: no process, no holder, no mounts.
    pub fn reboot(&mut self) {
        self.kill();
        ask_holder(&self.root(), b"quit");
        self.unmount_container();
        for point in self.mounts_below().iter().rev() {
            unmount(self.root().join(point), UnmountFlags::DETACH).unwrap();
        }
    }

    /// Makes every chunk one that is not here, as if power had been lost before the first flush. The shim must be dead.
    pub fn lose_cache(&self) {
        for at in 0..self.layers.len() {
            let bitmap = self.layer_dir(at).join("bitmap");
            match fs::remove_file(bitmap) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => panic!("{e}"),
                _ => {}
            }
        }
    }

    /// Path in the container, and what it must be.
    pub fn files(&self) -> Vec<(PathBuf, Arc<Vec<u8>>)> {
        files(&self.container, &self.layers)
    }

    pub fn mounts_below(&self) -> Vec<String> {
        let root = self.root().canonicalize().unwrap_or(self.root());
        let root = format!("{}/", root.display());
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|l| l.split(' ').nth(4));
        points
            .filter_map(|p| p.strip_prefix(&root))
            .map(str::to_owned)
            .collect()
    }

    /// Whether a holder listens.
    pub fn has_holder(&self) -> bool {
        ask_holder(&self.root(), b"what?").is_some()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut shim) = self.shim.take() {
            let _ = shim.kill();
            let _ = shim.wait();
        }
        // Whoever still reads gets an error now, and does not stay behind.
        ask_holder(&self.root(), b"quit");
        self.descriptors.clear();
        let _ = unmount(&self.container, UnmountFlags::DETACH);
        for point in self.mounts_below().iter().rev() {
            let _ = unmount(self.root().join(point), UnmountFlags::DETACH);
        }
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(6000);
            eprintln!("--- the shim's log ends so:\n{}", log.get(from..).unwrap_or(&log));
        }
    }
}

/// Prepares an image's layers as containerd does; the chain ID of the last.
pub fn pull(runtime: &Runtime, client: &Client, manifest: BlobDigest, layers: &[Arc<TestLayer>]) -> String {
    let diffs: Vec<_> = layers.iter().map(|l| *l.toc.diff_id()).collect();
    let mut parent = String::new();
    for (layer, chain) in layers.iter().zip(ChainId::chain(&diffs)) {
        let chain = chain.to_string();
        let (manifest, digest) = (manifest.to_string(), layer.digest.to_string());
        let labels = [
            ("containerd.io/snapshot.ref", chain.as_str()),
            ("containerd.io/snapshot/cri.manifest-digest", &manifest),
            ("containerd.io/snapshot/cri.layer-digest", &digest),
        ];
        let key = format!("extract {chain}");
        let prepared = client.prepare(&key, &parent, &labels);
        assert_eq!(code(runtime.block_on(prepared)), Code::AlreadyExists, "{chain}");
        parent = chain;
    }
    parent
}

/// Path below `root`, and what it must be.
pub fn files(root: &Path, layers: &[Arc<TestLayer>]) -> Vec<(PathBuf, Arc<Vec<u8>>)> {
    let files = layers.iter().flat_map(|l| l.items.iter());
    files
        .filter_map(|(path, item)| match &item.what {
            crate::layer::What::File(body) => {
                let path = root.join(std::str::from_utf8(path).unwrap());
                Some((path, Arc::new(body.bytes())))
            }
            _ => None,
        })
        .collect()
}

/// As containerd does.
pub fn mount_overlay(at: &Path, options: &[String]) {
    let options = CString::new(options.join(",")).unwrap();
    mount("overlay", at, "overlay", MountFlags::empty(), Some(options.as_c_str())).unwrap();
}

/// Descriptors from 3 on, as a service manager gives them.
fn give(command: &mut Command, descriptors: &[OwnedFd]) {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    let numbers: Vec<i32> = descriptors.iter().map(|d| d.as_raw_fd()).collect();
    command.env("LISTEN_FDS", numbers.len().to_string());
    command.env("LISTEN_FDNAMES", vec!["headstart"; numbers.len()].join(":"));
    // SAFETY: system calls that may be used between fork and exec, on descriptors of the parent that live until then.
    unsafe {
        command.pre_exec(move || {
            // Far away first: the places may be taken by each other.
            for (at, number) in numbers.iter().enumerate() {
                if libc::dup2(*number, 200 + at as i32) < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            for at in 0..numbers.len() as i32 {
                if libc::dup2(200 + at, 3 + at) < 0 {
                    return Err(io::Error::last_os_error());
                }
                libc::close(200 + at);
            }
            Ok(())
        });
    }
}
