//! A private containerd: own root, state, socket and configuration.
//!
//! In: which snapshotter CRI uses, and where its hosts are. Out: a running containerd and a CRI connection.
//! Invariant: nothing of the system's containerd is read or written, with one exception that containerd does not let us
//! configure: sockets of per-container shims, in `/run/containerd/s`, named by a hash of our address, and removed by us.
//! Not here: hosts.toml's content, and containers.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use super::{Result, leftovers, process::Process, tools, workdir::WorkDir};
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
}

impl Snapshotter {
    pub fn name(&self) -> &'static str {
        match self {
            Snapshotter::Overlayfs => "overlayfs",
            Snapshotter::Headstart { .. } => "headstart",
        }
    }
}

#[derive(Debug)]
pub struct Containerd {
    process: Process,
    pub dir: PathBuf,
    pub socket: PathBuf,
    pub cri: Cri,
}

impl Containerd {
    /// Starts it in `NAME` below the work directory; `hosts` holds the registry hosts directory's files.
    pub async fn start(work: &WorkDir, name: &str, snapshotter: &Snapshotter, hosts_dir: &Path) -> Result<Containerd> {
        let dir = work.dir(name)?;
        let tmp = work.dir(format!("{name}/tmp"))?;
        let socket = dir.join("c.sock");
        let config = work.write(format!("{name}.toml"), &config(&dir, &socket, snapshotter, hosts_dir))?;
        let mut command = Command::new(tools::find("containerd").unwrap_or_else(|| "containerd".into()));
        command
            .arg("--config")
            .arg(config)
            .env("TMPDIR", tmp)
            .env_remove("CONTAINERD_ADDRESS");
        // Registry traffic is loopback: an HTTP proxy of the machine must not see it.
        for variable in [
            "http_proxy",
            "HTTP_PROXY",
            "https_proxy",
            "HTTPS_PROXY",
            "all_proxy",
            "ALL_PROXY",
        ] {
            command.env_remove(variable);
        }
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
            dir,
            socket,
            cri,
        })
    }

    /// `ctr` in CRI's namespace.
    pub fn ctr(&self) -> Command {
        let mut ctr = Command::new(tools::find("ctr").unwrap_or_else(|| "ctr".into()));
        // It mounts root file systems in the temporary directory to read a user's name; killed, it leaves them there.
        ctr.env("TMPDIR", self.dir.join("tmp"));
        ctr.arg("--address").arg(&self.socket).args(["--namespace", "k8s.io"]);
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

fn config(dir: &Path, socket: &Path, snapshotter: &Snapshotter, hosts_dir: &Path) -> String {
    let quoted = |p: &Path| toml::Value::from(p.to_string_lossy().into_owned()).to_string();
    let (proxy_plugin, annotations) = match snapshotter {
        Snapshotter::Overlayfs => (String::new(), true),
        Snapshotter::Headstart { socket, annotations } => {
            let plugin = format!(
                "[proxy_plugins.headstart]\n  type = \"snapshot\"\n  address = {}\n",
                quoted(socket)
            );
            (plugin, *annotations)
        }
    };
    format!(
        r#"version = 2
root = {root}
state = {state}
# Not needed here, and some of them load kernel modules when they start.
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.tracing.processor.v1.otlp",
  "io.containerd.internal.v1.tracing",
]

[grpc]
  address = {socket}

{proxy_plugin}
[plugins."io.containerd.internal.v1.opt"]
  path = {opt}

[plugins."io.containerd.grpc.v1.cri"]
  # Without it CRI wants to be told about AppArmor and CNI first; images need neither.
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    disable_snapshot_annotations = {disabled}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {hosts_dir}
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = {cni}
    bin_dir = {cni}
"#,
        root = quoted(&dir.join("root")),
        state = quoted(&dir.join("state")),
        socket = quoted(socket),
        opt = quoted(&dir.join("opt")),
        cni = quoted(&dir.join("cni")),
        hosts_dir = quoted(hosts_dir),
        snapshotter = snapshotter.name(),
        disabled = !annotations,
    )
}
