//! A containerd of our own, never the system's: own root, state and sockets in a temp directory.
//!
//! In: the socket of a snapshotter. Out: `ctr` on it. Invariant: it is killed when dropped, by its own handle.
//! Not here: registries.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

/// No `ctr` call here takes longer on any machine.
const CTR_TIMEOUT: Duration = Duration::from_secs(120);

pub struct Containerd {
    pub socket: PathBuf,
    child: Child,
}

/// Why a test with containerd cannot run here, if it cannot.
pub fn obstacle() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("not root".into());
    }
    let missing = |program: &&str| {
        let paths = [
            "/usr/local/sbin",
            "/usr/local/bin",
            "/usr/sbin",
            "/usr/bin",
            "/sbin",
            "/bin",
        ];
        !paths.iter().any(|dir| Path::new(dir).join(program).exists())
    };
    let programs = ["containerd", "containerd-shim-runc-v2", "ctr", "runc", "ldd", "tar"];
    programs.iter().find(|p| missing(p)).map(|p| format!("no {p}"))
}

impl Containerd {
    /// Starts one with `snapshotter` as its proxy plugin "headstart".
    pub async fn start(dir: &Path, snapshotter: &Path) -> Self {
        let dir = dir.join("containerd");
        std::fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("c.sock");
        let config = format!(
            r#"
version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt",
]
[grpc]
  address = "{1}"
[ttrpc]
  address = "{0}/t.sock"
[proxy_plugins.headstart]
  type = "snapshot"
  address = "{2}"
"#,
            dir.display(),
            socket.display(),
            snapshotter.display()
        );
        let path = dir.join("config.toml");
        std::fs::write(&path, config).unwrap();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let containerd = Self { socket, child };
        for _ in 0..600 {
            if containerd.try_ctr(&["version"]).await.is_ok() {
                return containerd;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!(
            "containerd does not start: {}",
            std::fs::read_to_string(dir.join("log")).unwrap()
        );
    }

    /// Runs `ctr`; its standard output.
    pub async fn ctr(&self, args: &[&str]) -> String {
        self.try_ctr(args)
            .await
            .unwrap_or_else(|why| panic!("ctr {args:?}: {why}"))
    }

    async fn try_ctr(&self, args: &[&str]) -> Result<String, String> {
        let run = Command::new("ctr")
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", "smoke"])
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let out = tokio::time::timeout(CTR_TIMEOUT, run).await;
        let out = out.map_err(|_| "takes too long")?.map_err(|e| e.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match out.status.success() {
            true => Ok(text(&out.stdout)),
            false => Err(format!("{} {}", text(&out.stdout), text(&out.stderr))),
        }
    }

    pub async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }
}
