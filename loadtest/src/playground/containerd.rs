//! A private containerd: own root, state, socket and configuration.
//!
//! In: which snapshotter CRI uses, and where its hosts are. Out: a running containerd and a CRI connection.
//! Invariant: nothing of the system's containerd is read or written, with one exception that containerd does not let us
//! configure: sockets of per-container shims, in `/run/containerd/s`, named by a hash of our address, and removed by us.
//! Not here: its configuration file ([`super::containerd_config`]), hosts.toml's content, and containers.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{
    Result,
    containerd_config::Config,
    debian_tree::DebianTree,
    gzip_tools::GzipTools,
    leftovers,
    process::{Process, without_proxies},
    tools,
    workdir::WorkDir,
};
use crate::cri::Cri;

const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Which snapshotter CRI pulls for.
#[derive(Clone, Debug)]
pub enum Snapshotter {
    /// containerd's own: an ordinary pull.
    Overlayfs,
    /// The shim at this socket.
    Headstart {
        socket: PathBuf,
        /// Whether CRI tells the snapshotter layer digests. Off is containerd's default; the shim then goes by chain ID.
        annotations: bool,
    },
    /// Another lazy one, by this name and at this socket, told what CRI tells.
    Other { name: &'static str, socket: PathBuf },
}

/// What a private containerd is started with.
#[derive(Clone, Debug)]
pub struct Setup<'a> {
    pub release: Release,
    pub snapshotter: &'a Snapshotter,
    /// Holds the registry hosts directory's files.
    pub hosts_dir: &'a Path,
    /// What pod sandboxes run, for tests that start some.
    pub sandbox_image: Option<&'a str>,
}

impl Snapshotter {
    pub fn name(&self) -> &'static str {
        match self {
            Snapshotter::Overlayfs => "overlayfs",
            Snapshotter::Headstart { .. } => "headstart",
            Snapshotter::Other { name, .. } => name,
        }
    }
}

/// Whose containerd.
#[derive(Clone, Debug, Default)]
pub enum Release {
    /// The machine's own: 1.6 on Debian 12.
    #[default]
    Machine,
    /// The same, with `unpigz` for gzip as on nodes that have it. Otherwise it is told not to, so that it does not
    /// depend on what else is installed.
    MachineWithPigz(GzipTools),
    /// 2.1, with this many bytes in each part of a layer that is fetched in parallel (0: not in parts).
    Forky { forky: DebianTree, part_bytes: u64 },
    /// 1.7.
    Trixie(DebianTree),
}

impl Release {
    fn command(&self, work: &WorkDir, tool: &str) -> Command {
        match self {
            Release::Machine | Release::MachineWithPigz(_) => {
                Command::new(tools::find(tool).unwrap_or_else(|| tool.into()))
            }
            Release::Forky { forky: tree, .. } | Release::Trixie(tree) => tree.command(work, tool),
        }
    }
}

#[derive(Debug)]
pub struct Containerd {
    process: Process,
    release: Release,
    work: WorkDir,
    pub dir: PathBuf,
    pub socket: PathBuf,
    pub cri: Cri,
}

impl Containerd {
    /// Starts the machine's own in `NAME` below the work directory; `hosts` holds the registry hosts directory's files.
    pub async fn start(work: &WorkDir, name: &str, snapshotter: &Snapshotter, hosts_dir: &Path) -> Result<Containerd> {
        Containerd::start_release(work, name, Release::Machine, snapshotter, hosts_dir).await
    }

    pub async fn start_release(
        work: &WorkDir,
        name: &str,
        release: Release,
        snapshotter: &Snapshotter,
        hosts_dir: &Path,
    ) -> Result<Containerd> {
        let setup = Setup {
            release,
            snapshotter,
            hosts_dir,
            sandbox_image: None,
        };
        Containerd::start_setup(work, name, setup).await
    }

    pub async fn start_setup(work: &WorkDir, name: &str, setup: Setup<'_>) -> Result<Containerd> {
        let release = setup.release;
        let dir = work.dir(name)?;
        let tmp = work.dir(format!("{name}/tmp"))?;
        let socket = dir.join("c.sock");
        let config = Config {
            dir: &dir,
            socket: &socket,
            snapshotter: setup.snapshotter,
            hosts_dir: setup.hosts_dir,
            sandbox_image: setup.sandbox_image,
            part_bytes: match release {
                Release::Machine | Release::MachineWithPigz(_) | Release::Trixie(_) => 0,
                Release::Forky { part_bytes, .. } => part_bytes,
            },
        };
        let config = match release {
            Release::Machine | Release::MachineWithPigz(_) | Release::Trixie(_) => config.version_2(),
            Release::Forky { .. } => config.version_3(),
        };
        let config = work.write(format!("{name}.toml"), &config)?;
        let mut command = release.command(work, "containerd");
        command
            .arg("--config")
            .arg(config)
            .env("TMPDIR", tmp)
            .env_remove("CONTAINERD_ADDRESS");
        match &release {
            Release::MachineWithPigz(tools) => command.env_remove("CONTAINERD_DISABLE_PIGZ").env("PATH", tools.path()),
            _ => command.env("CONTAINERD_DISABLE_PIGZ", "1"),
        };
        without_proxies(&mut command);
        let mut process = Process::spawn(name, command, work, false)?;
        let probe = socket.clone();
        process
            .until_ready(START_TIMEOUT, || {
                let probe = probe.clone();
                async move {
                    match Cri::connect(&probe).await {
                        Ok(cri) => cri.version().await.is_ok(),
                        Err(_) => false,
                    }
                }
            })
            .await?;
        let cri = Cri::connect(&socket).await?;
        Ok(Containerd {
            process,
            release,
            work: work.clone(),
            dir,
            socket,
            cri,
        })
    }

    /// `ctr` in CRI's namespace.
    pub fn ctr(&self) -> Command {
        self.ctr_in("k8s.io")
    }

    pub fn ctr_in(&self, namespace: &str) -> Command {
        let mut ctr = self.release.command(&self.work, "ctr");
        // It mounts root file systems in the temporary directory to read a user's name; killed, it leaves them there.
        ctr.env("TMPDIR", self.dir.join("tmp"));
        ctr.arg("--address").arg(&self.socket).args(["--namespace", namespace]);
        ctr
    }

    pub fn log(&self) -> &Path {
        self.process.log()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.process.stop();
        leftovers::end_container_shims(&self.dir);
    }
}
