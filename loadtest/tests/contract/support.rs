//! A registry with small runnable images, a server that has converted them, and nodes.
//!
//! In: how many layers, which containerd. Out: a [`Bench`], and [`Node`]s on it that pull, run and forget.
//! Invariant: everything is below one work directory and ends with it; each file of an image has bytes that are known here.
//! Not here: what is asserted.

use std::{
    collections::BTreeMap,
    future::Future,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use headstart_layer_format::BlobDigest;
use headstart_loadtest::{
    corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, Rng, SyntheticImage, SyntheticLayer},
    origin::{Auth, Origin},
    playground::{
        binaries::Binaries,
        command,
        containerd::{Containerd, Release, Setup, Snapshotter},
        debian_tree::{DebianTree, Suite},
        mounts,
        proxy::Proxy,
        runtime,
        shim::Shim,
        site::Site,
        tools,
        workdir::WorkDir,
    },
};
use tokio::sync::Mutex;

pub const REGISTRY: &str = "contract.test";
/// What sandboxes run.
pub const PAUSE: &str = "contract.test/pause:v1";
/// Namespaces beside CRI's, which keeps names of its own for what it sees in its.
pub const ONE: &str = "headstart-one";
pub const OTHER: &str = "headstart-other";
/// No machine needs this long for anything here.
const LONG: Duration = Duration::from_secs(180);

static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

pub struct Bench {
    pub origin: Origin,
    pub proxy: Proxy,
    pub binaries: Binaries,
    pub forky: DebianTree,
    pub work: WorkDir,
}

pub fn with_bench<F: Future<Output = ()>>(test: impl FnOnce(Bench) -> F) {
    runtime::block_on(async {
        let _turn = ONE_AT_A_TIME.lock().await;
        tools::require_root().unwrap();
        let site = Site::of_this_executable().unwrap();
        let work = WorkDir::create().unwrap();
        let binaries = Binaries::in_dir(&site.profile_dir).unwrap();
        let forky = DebianTree::open(Suite::Forky, &site, &work).await.unwrap();
        let origin = Origin::start(Auth::Anonymous);
        let upstream = origin.url();
        let proxy = Proxy::start(&work, "proxy", &binaries.server, (REGISTRY, &upstream));
        let proxy = proxy.await.unwrap();
        test(Bench {
            origin,
            proxy,
            binaries,
            forky,
            work,
        })
        .await;
    });
    // Ours alone, and in use no longer; containerd leaves a namespace's groups behind.
    for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        for namespace in [ONE, OTHER] {
            let _ = std::fs::remove_dir(controller.path().join(namespace));
        }
    }
}

/// An image, and what its data files hash to.
#[derive(Clone)]
pub struct Runnable {
    pub image: SyntheticImage,
    pub reference: String,
    /// By path.
    pub sums: BTreeMap<String, BlobDigest>,
}

impl Bench {
    /// An image of `layers` layers (the first has the programs) in the registry, converted by the server.
    pub async fn image(&self, name: &str, layers: usize) -> Runnable {
        self.image_with(name, layers, None).await
    }

    /// The same with one more layer on top.
    pub async fn image_with(&self, name: &str, layers: usize, top: Option<SyntheticLayer>) -> Runnable {
        let runnable = runnable(name, layers, top, None);
        runnable.image.push(&self.origin, name, "v1");
        self.converted(name, &runnable.image.manifest_digest).await;
        runnable
    }

    /// What sandboxes run; pulled like any other image.
    pub async fn pause(&self) {
        let pause = runnable("pause", 1, None, Some(&["/bin/sleep", "1000000"]));
        pause.image.push(&self.origin, "pause", "v1");
        self.converted("pause", &pause.image.manifest_digest).await;
    }

    async fn converted(&self, name: &str, manifest: &BlobDigest) {
        let path = format!("/v2/{name}/manifests/v1?ns={REGISTRY}");
        let accept = "application/vnd.oci.image.manifest.v1+json";
        let (status, _) = self.proxy.get(&path, accept).await.unwrap();
        assert_eq!(status, 200, "{path}");
        let deadline = Instant::now() + LONG;
        while !self
            .proxy
            .image(manifest, 5000)
            .await
            .unwrap()
            .is_some_and(|s| s.is_ready())
        {
            assert!(Instant::now() < deadline, "{name} is never ready");
        }
    }

    /// 1.7, which few tests ask for.
    pub async fn trixie(&self) -> Release {
        let site = Site::of_this_executable().unwrap();
        Release::Trixie(DebianTree::open(Suite::Trixie, &site, &self.work).await.unwrap())
    }

    pub fn forky(&self) -> Release {
        Release::Forky {
            forky: self.forky.clone(),
            part_bytes: 0,
        }
    }

    /// A shim and a containerd. `annotations`: whether CRI tells layer digests. `more`: of the shim's configuration.
    pub async fn node(&self, name: &str, release: Release, annotations: bool, more: &str) -> Node {
        let hosts_dir = self.work.dir(format!("{name}.certs.d")).unwrap();
        self.work.dir(format!("{name}.certs.d/_default")).unwrap();
        let hosts = format!(
            "[host.\"{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
            self.proxy.url()
        );
        let file = format!("{name}.certs.d/_default/hosts.toml");
        self.work.write(file, &hosts).unwrap();
        let (shim_name, server) = (format!("{name}-shim"), self.proxy.url());
        let shim = Shim::start(&self.work, &shim_name, &self.binaries.shim, &server, more);
        let shim = shim.await.unwrap_or_else(|e| panic!("failed to {e}"));
        let snapshotter = Snapshotter::Headstart {
            socket: shim.socket.clone(),
            annotations,
        };
        let setup = Setup {
            release,
            snapshotter: &snapshotter,
            hosts_dir: &hosts_dir,
            sandbox_image: Some(PAUSE),
        };
        let containerd = Containerd::start_setup(&self.work, name, setup).await;
        Node {
            containerd: containerd.unwrap_or_else(|e| panic!("failed to {e}")),
            shim,
            hosts_dir,
            work: self.work.clone(),
            name: name.to_owned(),
        }
    }
}

/// Fields are dropped in order: containerd first.
pub struct Node {
    pub containerd: Containerd,
    pub shim: Shim,
    hosts_dir: PathBuf,
    work: WorkDir,
    name: String,
}

impl Node {
    pub async fn ctr(&self, namespace: &str, args: &[&str]) -> Result<String, String> {
        let mut ctr = self.containerd.ctr_in(namespace);
        ctr.args(args);
        self.finish(ctr).await
    }

    async fn finish(&self, ctr: Command) -> Result<String, String> {
        let name = format!("{}-ctr", self.name);
        let run = command::run(&name, ctr, &self.work);
        let done = tokio::time::timeout(LONG, run).await.map_err(|_| "took too long")?;
        let output = done.map_err(|e| e.to_string())?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// `ctr images pull`, unpacking for us.
    pub async fn pull(&self, namespace: &str, reference: &str, more: &[&str]) -> Result<String, String> {
        let mut ctr = self.containerd.ctr_in(namespace);
        ctr.args(["images", "pull", "--snapshotter", "headstart", "--hosts-dir"]);
        ctr.arg(&self.hosts_dir).args(more).arg(reference);
        self.finish(ctr).await
    }

    /// Runs `script` in a container of its own; what it prints.
    pub async fn run(
        &self,
        namespace: &str,
        reference: &str,
        id: &str,
        more: &[&str],
        script: &str,
    ) -> Result<String, String> {
        let mut ctr = self.containerd.ctr_in(namespace);
        ctr.args(["run", "--rm", "--snapshotter", "headstart", "--fifo-dir"]);
        ctr.arg(self.containerd.dir.join("fifo"));
        ctr.arg("--runc-root").arg(self.containerd.dir.join("runc"));
        ctr.args(more).arg(reference).arg(id).args(["/bin/sh", "-c", script]);
        self.finish(ctr).await
    }

    /// The shim's lines about layers that are not lazy.
    pub fn declines(&self) -> Vec<String> {
        let log = self.shim.log_text();
        log.lines()
            .filter(|l| l.contains("lazy_declined"))
            .map(str::to_owned)
            .collect()
    }

    /// Names of this node's snapshots in a namespace.
    pub async fn snapshots(&self, namespace: &str) -> Vec<String> {
        let list = self
            .ctr(namespace, &["snapshots", "--snapshotter", "headstart", "list"])
            .await
            .unwrap();
        let names = list.lines().skip(1).filter_map(|l| l.split_whitespace().next());
        names.map(str::to_owned).collect()
    }

    /// Asserts that every layer of the image is a lazy snapshot.
    pub async fn assert_lazy(&self, namespace: &str, image: &Runnable) {
        assert_eq!(self.declines(), [""; 0]);
        for chain in image.image.chain_ids() {
            let args = ["snapshots", "--snapshotter", "headstart", "info", &chain.to_string()];
            let info = self.ctr(namespace, &args).await.unwrap();
            assert!(
                info.contains("\"containerd.io/snapshot/remote\": \"headstart\""),
                "{info}"
            );
        }
    }

    /// Which of the image's layers containerd has fetched whole.
    pub async fn fetched(&self, namespace: &str, image: &Runnable) -> Vec<BlobDigest> {
        let content = self.ctr(namespace, &["content", "list", "--quiet"]).await.unwrap();
        let layers = image.image.layers.iter().map(|l| l.digest);
        layers.filter(|d| content.contains(&d.to_string())).collect()
    }

    /// Snapshots on the shim's disk, whatever containerd knows of them.
    pub fn snapshot_dirs(&self) -> usize {
        std::fs::read_dir(self.shim.root.join("snapshots")).map_or(0, Iterator::count)
    }

    /// Mounts of layers: everything below the shim's root but what every shim has.
    pub fn mounts(&self) -> usize {
        mounts::below(&self.shim.root).len()
    }

    /// Waits for the shim to have nothing left but what it had on an empty node.
    pub async fn until_empty(&self, mounts: usize) {
        let deadline = Instant::now() + LONG;
        loop {
            let trash = std::fs::read_dir(self.shim.root.join("trash")).map_or(0, Iterator::count);
            let left = (self.snapshot_dirs(), trash, self.mounts());
            if left == (0, 0, mounts) {
                return;
            }
            assert!(Instant::now() < deadline, "left: (snapshots, trash, mounts) = {left:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What a container prints for `sha256sum` of every data file.
pub fn sums(image: &Runnable) -> String {
    let line = |(path, sum): (&String, &BlobDigest)| format!("{}  {path}\n", sum.hex());
    image.sums.iter().map(line).collect()
}

/// The script that prints them.
pub fn sum_script(image: &Runnable) -> String {
    let paths: Vec<&str> = image.sums.keys().map(String::as_str).collect();
    format!("sha256sum {}", paths.join(" "))
}

const PROGRAMS: [&str; 6] = [
    "/bin/sh",
    "/bin/sleep",
    "/usr/bin/sha256sum",
    "/usr/bin/stat",
    "/usr/bin/id",
    "/bin/cat",
];

fn runnable(name: &str, layers: usize, top: Option<SyntheticLayer>, command: Option<&[&str]>) -> Runnable {
    let mut sums = BTreeMap::new();
    let mut b = LayerBuilder::new(Dialect::Pax);
    programs(&mut b, &PROGRAMS);
    for empty in ["proc", "sys", "dev", "tmp", "etc"] {
        b.dir(empty, Meta::mode(0o755));
    }
    let mut all = vec![b.finish(Compression::Gzip)];
    for i in 1..layers {
        let seed = name
            .bytes()
            .fold(7_u64, |n, b| n.wrapping_mul(31).wrapping_add(b.into()));
        let content = Rng::new(seed + i as u64).bytes(60_000 + 1000 * i);
        let path = format!("/srv/data-{i}");
        sums.insert(path.clone(), BlobDigest::of(&content));
        let mut b = LayerBuilder::new(Dialect::Pax);
        b.dir("srv", Meta::mode(0o755));
        b.file(&path[1..], Meta::default().owner(1000, 2000), content);
        all.push(b.finish(Compression::Gzip));
    }
    all.extend(top);
    let mut image = SyntheticImage::new(Flavor::Oci, all);
    if let Some(command) = command {
        set_command(&mut image, command);
    }
    Runnable {
        image,
        reference: format!("{REGISTRY}/{name}:v1"),
        sums,
    }
}

/// Programs of this machine, with their libraries.
pub fn programs(b: &mut LayerBuilder, programs: &[&'static str]) {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for program in programs.iter().copied() {
        let ldd = Command::new("ldd").arg(program).output().unwrap();
        let text = String::from_utf8(ldd.stdout).unwrap();
        let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
        for path in libraries.chain([program]) {
            files.insert(path.to_owned(), std::fs::read(path).unwrap());
        }
    }
    let mut dirs: Vec<&Path> = files.keys().flat_map(|f| Path::new(f).ancestors().skip(1)).collect();
    dirs.sort();
    dirs.dedup();
    for dir in dirs.iter().filter(|d| **d != Path::new("/")) {
        b.dir(&dir.to_str().unwrap()[1..], Meta::mode(0o755));
    }
    for (path, content) in files.clone() {
        b.file(&path[1..], Meta::mode(0o755), content);
    }
}

/// Another command in the config, and so another manifest.
fn set_command(image: &mut SyntheticImage, command: &[&str]) {
    let mut config: serde_json::Value = serde_json::from_slice(&image.config).unwrap();
    config["config"]["Cmd"] = command.into();
    image.config = config.to_string().into();
    image.config_digest = BlobDigest::of(&image.config);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["config"]["digest"] = image.config_digest.to_string().into();
    manifest["config"]["size"] = image.config.len().into();
    image.manifest = manifest.to_string().into();
    image.manifest_digest = BlobDigest::of(&image.manifest);
}
