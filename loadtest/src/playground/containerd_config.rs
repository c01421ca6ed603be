//! The configuration files of a private containerd.
//!
//! In: directories, the snapshotter, the registry hosts, whether layers are fetched in parallel parts. Out: TOML.
//! Invariant: all paths are below the directory of this containerd.
//! Not here: starting it ([`super::containerd`]).

use std::path::Path;

use super::containerd::Snapshotter;

/// What a configuration is made of.
#[derive(Debug)]
pub struct Config<'a> {
    pub dir: &'a Path,
    pub socket: &'a Path,
    pub snapshotter: &'a Snapshotter,
    pub hosts_dir: &'a Path,
    /// What pod sandboxes run, if it is not containerd's default, which nobody here can pull.
    pub sandbox_image: Option<&'a str>,
    /// Bytes of one part, of layers that are larger; 0: each layer in one request. From containerd 2.1 on.
    pub part_bytes: u64,
}

fn quoted(p: &Path) -> String {
    toml::Value::from(p.to_string_lossy().into_owned()).to_string()
}

impl Config<'_> {
    /// containerd 1.6 and 1.7.
    pub fn version_2(&self) -> String {
        let sandbox = self
            .sandbox_image
            .map(|i| format!("sandbox_image = \"{i}\""))
            .unwrap_or_default();
        let (proxy_plugin, annotations) = match self.snapshotter {
            Snapshotter::Overlayfs => (String::new(), true),
            Snapshotter::Headstart { socket, annotations } => {
                let plugin = format!(
                    "[proxy_plugins.headstart]\n  type = \"snapshot\"\n  address = {}\n",
                    quoted(socket)
                );
                (plugin, *annotations)
            }
            Snapshotter::Other { name, socket } => {
                let plugin = format!(
                    "[proxy_plugins.{name}]\n  type = \"snapshot\"\n  address = {}\n",
                    quoted(socket)
                );
                (plugin, true)
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
  # Sandboxes of tests where root may not make itself harder to kill.
  restrict_oom_score_adj = true
  {sandbox}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    disable_snapshot_annotations = {disabled}
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = {hosts_dir}
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = {cni}
    bin_dir = {cni}
"#,
            root = quoted(&self.dir.join("root")),
            state = quoted(&self.dir.join("state")),
            socket = quoted(self.socket),
            opt = quoted(&self.dir.join("opt")),
            cni = quoted(&self.dir.join("cni")),
            hosts_dir = quoted(self.hosts_dir),
            snapshotter = self.snapshotter.name(),
            disabled = !annotations,
        )
    }

    /// containerd 2.1: CRI pulls by the transfer service, and both are told where the registries are.
    pub fn version_3(&self) -> String {
        let sandbox = self
            .sandbox_image
            .map(|i| format!("sandbox = \"{i}\""))
            .unwrap_or_default();
        // As config/containerd/config-v3.toml has it.
        let (proxy_plugin, unpack, annotations) = match self.snapshotter {
            Snapshotter::Overlayfs => (String::new(), "", true),
            Snapshotter::Headstart { socket, annotations } => {
                let plugin = format!(
                    r#"[proxy_plugins.headstart]
  type = "snapshot"
  address = {}
  capabilities = ["remap-ids"]
  [proxy_plugins.headstart.exports]
    root = {}
    enable_remote_snapshot_annotations = "true"
"#,
                    quoted(socket),
                    quoted(&socket.with_extension("root")),
                );
                let unpack = r#"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
  platform = "linux"
  snapshotter = "headstart"
"#;
                (plugin, unpack, *annotations)
            }
            Snapshotter::Other { name, socket } => {
                let plugin = format!(
                    "[proxy_plugins.{name}]\n  type = \"snapshot\"\n  address = {}\n",
                    quoted(socket)
                );
                (plugin, "", true)
            }
        };
        format!(
            r#"version = 3
root = {root}
state = {state}
disabled_plugins = [
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri",
]

[grpc]
  address = {socket}

[plugins."io.containerd.internal.v1.opt"]
  path = {opt}

{proxy_plugin}
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
  disable_snapshot_annotations = {disabled}
  concurrent_layer_fetch_buffer = {part_bytes}
  [plugins."io.containerd.cri.v1.images".pinned_images]
    {sandbox}
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = {hosts_dir}

[plugins."io.containerd.transfer.v1.local"]
  concurrent_layer_fetch_buffer = {part_bytes}
  config_path = {hosts_dir}
{unpack}
[plugins."io.containerd.cri.v1.runtime"]
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    conf_dir = {cni}
    bin_dirs = [{cni}]
"#,
            root = quoted(&self.dir.join("root")),
            state = quoted(&self.dir.join("state")),
            socket = quoted(self.socket),
            opt = quoted(&self.dir.join("opt")),
            cni = quoted(&self.dir.join("cni")),
            hosts_dir = quoted(self.hosts_dir),
            part_bytes = self.part_bytes,
            snapshotter = self.snapshotter.name(),
            disabled = !annotations,
        )
    }
}
