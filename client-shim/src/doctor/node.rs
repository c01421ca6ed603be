//! The machine and the process: rights, the running shim, disk, limits.
//!
//! In: the configuration, `/proc`, the running shim's status. Out: checks. Invariant: as in [`super`].
//! Not here: the kernel's filesystems ([`super::kernel`]).

use std::path::Path;

use super::Report;
use crate::cli::status::size;
use crate::config::Config;
use crate::observe::status::Status;

/// Descriptors: one or two a cached layer, one a connection, some a thread; 4096 layers by default.
const DESCRIPTORS_MIN: u64 = 16_384;
/// Shares of the disk (or its inodes) that are left.
const FREE_LOW: f64 = 0.10;
const FREE_NONE: f64 = 0.02;

pub(super) fn check(report: &mut Report, config: &Config, running: Option<&Status>) {
    if rustix::process::geteuid().is_root() {
        report.ok("node.root", "running as root");
    } else {
        report.fail(
            "node.root",
            "not running as root",
            "run this as root: the shim does, and must",
        );
    }
    shim(report, config, running);
    namespace(report, running);
    disk(report, &config.root_dir);
    descriptors(report, running);
}

fn shim(report: &mut Report, config: &Config, running: Option<&Status>) {
    match running {
        None => report.fail(
            "shim.running",
            format!("no shim answers on {}", config.admin_socket().display()),
            "start it: systemctl enable --now headstart-shim; its log: journalctl -u headstart-shim",
        ),
        Some(s) if s.socket != config.socket || s.root_dir != config.root_dir => report.warn(
            "shim.running",
            format!(
                "the running shim serves {} with {}",
                s.socket.display(),
                s.root_dir.display()
            ),
            "this is not the configuration it was started with: name that one with --config, or restart it",
        ),
        Some(s) if s.version != env!("CARGO_PKG_VERSION") => report.warn(
            "shim.running",
            format!(
                "version {} runs, this program is {}",
                s.version,
                env!("CARGO_PKG_VERSION")
            ),
            "restart it, containers go on: systemctl restart headstart-shim",
        ),
        Some(s) => report.ok("shim.running", format!("version {}, process {}", s.version, s.pid)),
    }
    let Some(s) = running else { return };
    if s.calls == 0 {
        report.warn(
            "shim.used",
            "containerd has not asked it anything since it started",
            "if images were pulled since then, containerd's configuration does not name it, or containerd was not restarted",
        );
    } else {
        report.ok("shim.used", format!("containerd has asked {} times", s.calls));
    }
    let missing: u32 = s.images.iter().map(|image| image.layers_unavailable).sum();
    if missing > 0 {
        report.warn(
            "shim.layers",
            format!("{missing} layers of images are not available: no container starts on them"),
            "they come back when a container needs them and a server has them; else remove those images and pull them again. \
             The shim's log has what is wrong, from its start on",
        );
    }
    match &s.obstacle {
        Some(why) if why == "disabled" => report.warn(
            "shim.lazy",
            "lazy layers are switched off",
            "set lazy = true in [snapshotter] of shim.toml",
        ),
        Some(why) => report.fail(
            "shim.lazy",
            format!("no layer can be lazy on this node ({why})"),
            "see the kernel's checks below, and the shim's log from its start",
        ),
        None => report.ok(
            "shim.lazy",
            format!("layers are shown by {}", s.presentation.as_deref().unwrap_or("?")),
        ),
    }
    if let Some(pull) = s.pulls.iter().find(|p| p.reason.is_some()) {
        report.warn(
            "shim.pulls",
            format!(
                "{} was not lazy ({}): {}",
                pull.image,
                pull.reason.as_deref().unwrap_or_default(),
                pull.detail.as_deref().unwrap_or_default()
            ),
            "headstart-shim status shows the latest pulls; README.md says what each reason means",
        );
    }
}

/// Mounts of a private mount namespace are seen by no container.
fn namespace(report: &mut Report, running: Option<&Status>) {
    let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let pid = running.map_or_else(|| "self".to_owned(), |s| s.pid.to_string());
    match (of("1"), of(&pid)) {
        (Some(first), Some(shim)) if first == shim => {
            report.ok("node.mount_namespace", "the shim mounts in the namespace of the host");
        }
        (Some(_), Some(_)) => report.warn(
            "node.mount_namespace",
            "the shim does not mount in the namespace of process 1",
            "in a container, mount root_dir with mountPropagation: Bidirectional; in a unit, leave out PrivateMounts, \
             ProtectSystem and the like",
        ),
        _ => report.warn(
            "node.mount_namespace",
            "the mount namespace of process 1 cannot be read",
            "run this as root on the host",
        ),
    }
}

fn disk(report: &mut Report, root: &Path) {
    let place = root.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let Ok(fs) = rustix::fs::statvfs(place) else {
        report.fail(
            "disk.space",
            format!("{} cannot be looked at", place.display()),
            "make root_dir a directory",
        );
        return;
    };
    let share = |free: u64, all: u64| if all == 0 { 1.0 } else { free as f64 / all as f64 };
    let free_bytes = fs.f_bavail.saturating_mul(fs.f_frsize);
    let found = [
        (
            "disk.space",
            share(fs.f_bavail, fs.f_blocks),
            format!("{} free", size(free_bytes)),
        ),
        // Filesystems without a fixed number say 0 of 0.
        (
            "disk.inodes",
            share(fs.f_favail, fs.f_files),
            format!("{} inodes free", fs.f_favail),
        ),
    ];
    for (name, share, text) in found {
        let text = format!("{text} at {}, {:.0}%", root.display(), share * 100.0);
        let advice = "remove images (crictl rmi --prune), or give root_dir a larger disk: a full one makes pulls fail";
        match share {
            s if s < FREE_NONE => report.fail(name, text, advice),
            s if s < FREE_LOW => report.warn(name, text, advice),
            _ => report.ok(name, text),
        }
    }
}

fn descriptors(report: &mut Report, running: Option<&Status>) {
    let Some(status) = running else { return };
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", status.pid)).unwrap_or_default();
    let line = limits.lines().find_map(|l| l.strip_prefix("Max open files"));
    let limit = line
        .and_then(|l| l.split_whitespace().next())
        .map(|n| n.parse::<u64>().unwrap_or(u64::MAX));
    match limit {
        Some(n) if n >= DESCRIPTORS_MIN => report.ok("limits.descriptors", format!("{n} open files")),
        Some(n) => report.warn(
            "limits.descriptors",
            format!("the shim may open {n} files"),
            format!("LimitNOFILE={DESCRIPTORS_MIN} or more in its unit"),
        ),
        None => report.warn(
            "limits.descriptors",
            "the shim's limits cannot be read",
            "run this as root on the host",
        ),
    }
}
