//! A node: a containerd, and the shim when it starts lazily.
//!
//! In: the registry hosts in order, the snapshotter. Out: pulls, image identities, containers, mounted images.
//! Invariant: fresh state each time; containerd ends before its snapshotter.
//! Not here: timing and counting ([`super::measure`]).

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use headstart_layer_format::ChainId;

use super::{
    Result, command,
    containerd::{Containerd, Snapshotter},
    process::Process,
    recipe,
    shim::Shim,
    workdir::WorkDir,
};
use crate::cri::ImageIdentity;

/// The registry's name in image references. It is only a name: hosts.toml says where it is.
pub const REGISTRY_NAME: &str = "demo.test";

/// Key of the snapshot behind a mounted view; one a node at a time.
const VIEW_KEY: &str = "headstart-view";

/// Another lazy snapshotter as a node has it.
#[derive(Debug)]
pub struct Rival {
    pub name: &'static str,
    /// What was started, to be started again.
    pub launch: Command,
    pub daemon: Process,
    /// What it mounts is below.
    pub root: PathBuf,
    /// Where it listens once it is ready.
    pub socket: PathBuf,
    /// A program that pulls instead of CRI, and the certificate that it believes: `PROGRAM image rpull REFERENCE`.
    pub puller: Option<(PathBuf, PathBuf)>,
    /// Programs that it starts in each pull or start, as containerd does runc.
    pub runs_anew: Vec<PathBuf>,
}

const RIVAL_TIMEOUT: Duration = Duration::from_secs(30);

impl Rival {
    async fn until_listens(&mut self) -> Result<()> {
        let socket = self.socket.clone();
        let listens = || {
            let probe = socket.clone();
            async move { tokio::net::UnixStream::connect(probe).await.is_ok() }
        };
        self.daemon.until_ready(RIVAL_TIMEOUT, listens).await
    }
}

/// How the node gets images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pulls {
    Ordinary,
    /// With CRI's layer labels.
    Lazy,
    /// The same, its layers shown by the FUSE tree, as on kernels that cannot show them as EROFS.
    LazyFuse,
    /// As [`Pulls::Lazy`] and [`Pulls::LazyFuse`], with mounts that outlive the shim.
    LazyKept,
    LazyFuseKept,
    /// With containerd's default of telling the snapshotter nothing but chain IDs.
    LazyByChainId,
}

/// Fields are dropped in order: containerd first.
#[derive(Debug)]
pub struct Node {
    pub containerd: Containerd,
    pub shim: Option<Shim>,
    /// Another lazy snapshotter.
    rival: Option<Rival>,
    snapshotter: &'static str,
    work: WorkDir,
    name: String,
}

/// `demo.test/demo/python-app:v1`
pub fn image_reference() -> String {
    format!("{REGISTRY_NAME}/{}:{}", recipe::REPOSITORY, recipe::TAG)
}

/// One hosts.toml for every registry, with `hosts` in order: as the shipped one, and the demo's upstream after it.
fn hosts_toml(hosts: &[String]) -> String {
    let host = |url: &String| {
        format!(
            "[host.{}]\n  capabilities = [\"pull\", \"resolve\"]\n\n",
            toml::Value::from(url.as_str())
        )
    };
    hosts.iter().map(host).collect()
}

impl Node {
    /// `hosts`: registry hosts in order of preference. `shim`: its binary and the server it asks, for lazy pulls.
    pub async fn start(
        work: &WorkDir,
        name: &str,
        pulls: Pulls,
        hosts: &[String],
        shim: (&Path, &str),
    ) -> Result<Node> {
        let hosts_dir = work.dir(format!("{name}.certs.d/_default"))?;
        work.write(format!("{name}.certs.d/_default/hosts.toml"), &hosts_toml(hosts))?;
        let hosts_dir = hosts_dir.parent().unwrap_or(&hosts_dir).to_owned();
        let shim = match pulls {
            Pulls::Ordinary => None,
            _ => {
                let more = match pulls {
                    Pulls::LazyFuse => "presentation = \"fuse\"\n",
                    Pulls::LazyKept => "[survival]\nkeep_with = \"holder\"\n",
                    Pulls::LazyFuseKept => {
                        "presentation = \"fuse\"\n[survival]\nkeep_with = \"holder\"\nresend = false\n"
                    }
                    _ => "",
                };
                // Starts are measured by the bytes they cause, and nothing else may cause any.
                let more = format!("[lazy]\nbackground_fill = false\n{more}");
                Some(Shim::start(work, &format!("{name}-shim"), shim.0, shim.1, &more).await?)
            }
        };
        let snapshotter = match &shim {
            None => Snapshotter::Overlayfs,
            Some(shim) => Snapshotter::Headstart {
                socket: shim.socket.clone(),
                annotations: pulls != Pulls::LazyByChainId,
            },
        };
        let containerd = Containerd::start(work, name, &snapshotter, &hosts_dir).await?;
        let (snapshotter, work, name) = (snapshotter.name(), work.clone(), name.to_owned());
        Ok(Node {
            containerd,
            shim,
            rival: None,
            snapshotter,
            work,
            name,
        })
    }

    /// With another lazy snapshotter.
    pub async fn start_rival(work: &WorkDir, name: &str, mut rival: Rival, hosts_toml: &str) -> Result<Node> {
        let (snapshotter, socket) = (rival.name, rival.socket.clone());
        rival.until_listens().await?;
        let hosts_dir = work.dir(format!("{name}.certs.d/_default"))?;
        work.write(format!("{name}.certs.d/_default/hosts.toml"), hosts_toml)?;
        let hosts_dir = hosts_dir.parent().unwrap_or(&hosts_dir).to_owned();
        let other = Snapshotter::Other {
            name: snapshotter,
            socket,
        };
        let containerd = Containerd::start(work, name, &other, &hosts_dir).await?;
        Ok(Node {
            containerd,
            shim: None,
            rival: Some(rival),
            snapshotter,
            work: work.clone(),
            name: name.to_owned(),
        })
    }

    /// What the rival's daemon has said.
    pub fn rival_log(&self) -> String {
        let log = self.rival.as_ref().map(|rival| rival.daemon.log());
        log.and_then(|log| std::fs::read_to_string(log).ok())
            .unwrap_or_default()
    }

    /// The rival's programs of each start.
    pub fn runs_anew(&self) -> &[PathBuf] {
        self.rival.as_ref().map_or(&[], |rival| &rival.runs_anew)
    }

    /// Who shows lazy layers here, if anybody: where its mounts are, and its process.
    pub fn presenter(&self) -> Option<(&Path, u32)> {
        let shim = self.shim.as_ref().map(|s| (s.root.as_path(), s.process.pid()));
        shim.or_else(|| self.rival.as_ref().map(|r| (r.root.as_path(), r.daemon.pid())))
    }

    /// kill -9 of that process.
    pub fn kill_presenter(&mut self) {
        if let Some(shim) = &mut self.shim {
            shim.process.kill();
        }
        if let Some(rival) = &mut self.rival {
            rival.daemon.kill();
        }
    }

    /// Starts it again on the same state; returns when it listens.
    pub async fn restart_presenter(&mut self) -> Result<()> {
        if let Some(shim) = &mut self.shim {
            shim.process = shim.successor(&self.work, &format!("{}-shim", self.name)).await?;
        }
        if let Some(rival) = &mut self.rival {
            let command = command::again(&rival.launch);
            rival.daemon = Process::spawn(&format!("{}-rival", self.name), command, &self.work, false)?;
            rival.until_listens().await?;
        }
        Ok(())
    }

    pub fn snapshotter(&self) -> &'static str {
        self.snapshotter
    }

    pub fn work(&self) -> &WorkDir {
        &self.work
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// A script that runs a container: `sh SCRIPT [-t] IMAGE ID COMMAND...`; for people.
    pub fn run_script(&self) -> Result<PathBuf> {
        let mut ctr = self.containerd.ctr();
        ctr.args(["run", "--rm", "--snapshotter", self.snapshotter, "--fifo-dir"])
            .arg(self.containerd.dir.join("fifo"));
        ctr.arg("--runc-root").arg(self.containerd.dir.join("runc"));
        // Debug output of a command is quoted for a shell as far as our paths need it.
        self.work
            .write(format!("{}.run", self.name), &format!("{ctr:?} \"$@\"\n"))
    }

    pub async fn pull(&self) -> Result<String> {
        self.pull_image(&image_reference()).await
    }

    pub async fn pull_image(&self, reference: &str) -> Result<String> {
        if let Some((program, certificate)) = self.rival.as_ref().and_then(|rival| rival.puller.as_ref()) {
            let mut puller = Command::new(program);
            puller.arg("--address").arg(&self.containerd.socket);
            puller.args(["--namespace", "k8s.io", "image", "rpull", reference]);
            puller.env("SSL_CERT_FILE", certificate);
            let output = command::run(&format!("{}-rpull", self.name), puller, &self.work).await?;
            return Ok(String::from_utf8_lossy(&output).into_owned());
        }
        Ok(self.containerd.cri.pull(reference).await?)
    }

    pub async fn identity(&self) -> Result<Option<ImageIdentity>> {
        Ok(self.containerd.cri.image(&image_reference()).await?)
    }

    /// Runs `ctr ARGS` to its end and returns its output.
    pub async fn ctr(&self, args: &[&str]) -> Result<String> {
        let mut ctr = self.containerd.ctr();
        ctr.args(args);
        let output = command::run(&format!("{}-ctr", self.name), ctr, &self.work).await?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// Digest that the image's name points at in containerd's store.
    pub async fn target_digest(&self) -> Result<Option<String>> {
        let list = self.ctr(&["images", "list"]).await?;
        let reference = image_reference();
        let line = list.lines().find(|l| l.split_whitespace().next() == Some(&reference));
        Ok(line
            .and_then(|l| l.split_whitespace().find(|f| f.starts_with("sha256:")))
            .map(str::to_owned))
    }

    /// The snapshot of `chain`, mounted read-only for as long as the guard lives. (`ctr images mount` of 1.6 unpacks
    /// for its default snapshotter whatever it is told, so it is no help.)
    pub async fn mount_view(&self, chain: &ChainId) -> Result<MountedView> {
        self.mount_snapshot("view", VIEW_KEY, chain).await
    }

    /// The same by a name of its own and as a container has it, with a directory for what is written. Containerd's garbage
    /// collector leaves those that `ctr` prepares alone, and views it does not.
    pub async fn mount_as_container(&self, key: &str, chain: &ChainId) -> Result<MountedView> {
        self.mount_snapshot("prepare", key, chain).await
    }

    async fn mount_snapshot(&self, verb: &str, key: &str, chain: &ChainId) -> Result<MountedView> {
        let target = self.work.dir(format!("{}.{key}", self.name))?;
        let path = target.to_string_lossy().into_owned();
        let chain = chain.to_string();
        let mut tries = 0;
        // What is printed is the mount command for a shell.
        let (script, view) = loop {
            self.ctr(&["snapshots", "--snapshotter", self.snapshotter, verb, key, &chain])
                .await?;
            let mut remove = self.containerd.ctr();
            remove.args(["snapshots", "--snapshotter", self.snapshotter, "remove", key]);
            let view = MountedView {
                path: target.clone(),
                remove: Some(remove),
            };
            let script = self
                .ctr(&["snapshots", "--snapshotter", self.snapshotter, "mounts", &path, key])
                .await;
            match script {
                Ok(script) => break (script, view),
                // The collector was quicker.
                Err(error) if tries < 20 && error.to_string().contains("does not exist") => tries += 1,
                Err(error) => return Err(error),
            }
        };
        let mut mount = Command::new("sh");
        mount.args(["-ec", &script]);
        command::run(&format!("{}-mount", self.name), mount, &self.work).await?;
        Ok(view)
    }
}

/// Unmounts, and removes the snapshot behind it, on drop.
#[derive(Debug)]
pub struct MountedView {
    pub path: PathBuf,
    remove: Option<Command>,
}

impl Drop for MountedView {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::NOFOLLOW);
        if let Some(remove) = self.remove.take() {
            command::run_quietly(remove, Duration::from_secs(5));
        }
    }
}
