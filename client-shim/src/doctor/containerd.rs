//! containerd's configuration: does it name this shim, and in the way its version wants?
//!
//! In: its configuration files, `containerd --version`. Out: checks, and what later checks need ([`Found`]).
//! Invariant: only read; what containerd would merge (imports) is looked at in its order, the last one wins.
//! Not here: the registry hosts ([`super::hosts`]).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use toml::{Table, Value};

use super::{Places, Report};
use crate::config::Config;

const FILE_MAX: u64 = 4 << 20;
const IMPORTS_MAX: usize = 64;
/// It prints a line; a machine under load may take its time.
const VERSION_WAIT: Duration = Duration::from_secs(10);

/// What its configuration says.
#[derive(Debug)]
pub struct Found {
    pub hosts_dir: Option<String>,
}

/// The files in order, the main one first.
#[derive(Debug)]
struct Files(Vec<Table>);

impl Files {
    fn load(path: &Path) -> Result<Self, String> {
        let main = read(path)?;
        let imports: Vec<String> = main
            .get("imports")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect();
        let mut files = vec![main];
        for pattern in imports.iter().take(IMPORTS_MAX) {
            for import in matching(path, pattern).into_iter().take(IMPORTS_MAX) {
                files.push(read(&import)?);
            }
        }
        Ok(Self(files))
    }

    fn get(&self, keys: &[&str]) -> Option<&Value> {
        self.0.iter().rev().find_map(|file| {
            let (first, rest) = keys.split_first()?;
            rest.iter().try_fold(file.get(*first)?, |value, key| value.get(key))
        })
    }

    fn text(&self, keys: &[&str]) -> Option<&str> {
        self.get(keys).and_then(Value::as_str)
    }
}

fn read(path: &Path) -> Result<Table, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_MAX {
        return Err(format!("{} is too large", path.display()));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    text.parse()
        .map_err(|e: toml::de::Error| format!("{}: {}", path.display(), e.message()))
}

/// Files of an import: a path, or a directory with `*.toml`.
fn matching(main: &Path, pattern: &str) -> Vec<PathBuf> {
    let pattern = main.parent().unwrap_or(Path::new("/")).join(pattern);
    let Some(name) = pattern.file_name().and_then(|n| n.to_str()) else {
        return Vec::new();
    };
    let Some((before, after)) = name.split_once('*') else {
        return vec![pattern];
    };
    let dir = std::fs::read_dir(pattern.parent().unwrap_or(Path::new("/")));
    let fits = |p: &PathBuf| {
        let name = p.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
    };
    let mut files: Vec<PathBuf> = dir
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path())
        .filter(fits)
        .collect();
    files.sort();
    files
}

/// `idmap`: whether layers can be mounted with other owners, if that is known.
pub(super) fn check(report: &mut Report, config: &Config, places: &Places, idmap: Option<bool>) -> Option<Found> {
    let version = version(report, places);
    let Some(path) = places.containerd_configs.iter().find(|p| p.exists()) else {
        let looked: Vec<String> = places
            .containerd_configs
            .iter()
            .map(|p| p.display().to_string())
            .collect();
        report.fail(
            "containerd.config",
            format!("there is none of {}", looked.join(", ")),
            "write one from config/containerd (name it with --containerd-config if it is elsewhere), and restart containerd",
        );
        return None;
    };
    let files = match Files::load(path) {
        Ok(files) => files,
        Err(why) => {
            report.fail(
                "containerd.config",
                format!("cannot be read: {why}"),
                "mend it: containerd would not start either",
            );
            return None;
        }
    };
    let format = files.get(&["version"]).and_then(Value::as_integer).unwrap_or(1);
    report.ok("containerd.config", format!("{}, version {format}", path.display()));
    if format < 2 {
        report.fail(
            "containerd.format",
            format!("format {format} of its configuration"),
            "use version = 2 (containerd 1.x, config/containerd/config-v2.toml) or 3 (2.x, config-v3.toml)",
        );
    }
    if format == 3 && version.is_some_and(|(major, _)| major < 2) {
        report.fail(
            "containerd.format",
            "format 3 with containerd 1.x",
            "use version = 2 and config-v2.toml",
        );
    }
    plugin(report, config, &files, idmap, version);
    let cri = Cri::of(format);
    snapshotter(report, &files, &cri);
    if version.is_none_or(|v| v >= (2, 1)) && format >= 3 {
        transfer(report, &files);
    }
    Some(Found {
        hosts_dir: files
            .text(&[cri.registry, &["config_path"]].concat())
            .map(str::to_owned)
            .filter(|d| !d.is_empty()),
    })
}

/// Where things of CRI are in a format.
struct Cri {
    images: &'static [&'static str],
    registry: &'static [&'static str],
}

impl Cri {
    fn of(format: i64) -> Self {
        if format >= 3 {
            Self {
                images: &["plugins", "io.containerd.cri.v1.images"],
                registry: &["plugins", "io.containerd.cri.v1.images", "registry"],
            }
        } else {
            Self {
                images: &["plugins", "io.containerd.grpc.v1.cri", "containerd"],
                registry: &["plugins", "io.containerd.grpc.v1.cri", "registry"],
            }
        }
    }
}

fn plugin(report: &mut Report, config: &Config, files: &Files, idmap: Option<bool>, version: Option<(u64, u64)>) {
    let wanted = format!(
        "[proxy_plugins.headstart] with type = \"snapshot\" and address = \"{}\"",
        config.socket.display()
    );
    let get = |key: &str| files.text(&["proxy_plugins", "headstart", key]);
    match (get("type"), get("address")) {
        (None, None) => {
            report.fail(
                "containerd.plugin",
                "containerd does not know this shim",
                format!("add {wanted}, and restart containerd"),
            );
            return;
        }
        (Some("snapshot"), Some(address)) if Path::new(address) == config.socket => {
            report.ok("containerd.plugin", format!("containerd asks {address}"));
        }
        (_, Some(address)) if address.starts_with("unix:") => report.fail(
            "containerd.plugin",
            format!("its address is {address:?}"),
            format!("the address is a plain path: {wanted}"),
        ),
        (kind, address) => report.fail(
            "containerd.plugin",
            format!(
                "its type is {}, its address {}",
                kind.unwrap_or("missing"),
                address.unwrap_or("missing")
            ),
            format!("make it {wanted}"),
        ),
    }
    let capabilities = files
        .get(&["proxy_plugins", "headstart", "capabilities"])
        .and_then(Value::as_array);
    let has = |name: &str| capabilities.is_some_and(|c| c.iter().any(|v| v.as_str() == Some(name)));
    if has("rebase") {
        report.fail(
            "containerd.capabilities",
            "capabilities has \"rebase\", which this shim cannot do",
            "take it out: pulls by containerd 2.2 and later would fail",
        );
    }
    match (has("remap-ids"), idmap) {
        (true, Some(false)) => report.fail(
            "containerd.remap_ids",
            "capabilities has \"remap-ids\", and this kernel cannot mount layers so",
            "take it out: containers in user namespaces fail with it; without it containerd copies the image for them",
        ),
        (true, _) => report.ok("containerd.remap_ids", "layers are mounted idmapped for user namespaces"),
        (false, Some(true)) if version.is_none_or(|v| v >= (2, 0)) => report.warn(
            "containerd.remap_ids",
            "containers in user namespaces get a copy of their image",
            "add capabilities = [\"remap-ids\"] to [proxy_plugins.headstart]: this kernel mounts layers with other owners",
        ),
        (false, _) => {}
    }
}

fn snapshotter(report: &mut Report, files: &Files, cri: &Cri) {
    let at = cri.images.join(".");
    match files.text(&[cri.images, &["snapshotter"]].concat()) {
        Some("headstart") => report.ok("containerd.snapshotter", "CRI pulls for headstart"),
        other => report.fail(
            "containerd.snapshotter",
            format!("CRI pulls for {}", other.unwrap_or("overlayfs, the default")),
            format!("set snapshotter = \"headstart\" in {at}, restart containerd, and pull images again"),
        ),
    }
    match files
        .get(&[cri.images, &["disable_snapshot_annotations"]].concat())
        .and_then(Value::as_bool)
    {
        Some(false) => report.ok("containerd.annotations", "the shim is told each layer's image"),
        _ => report.warn(
            "containerd.annotations",
            "the shim is told chain IDs only, and must ask a server which image that is",
            format!("set disable_snapshot_annotations = false in {at}"),
        ),
    }
}

fn transfer(report: &mut Report, files: &Files) {
    let unpack = files
        .get(&["plugins", "io.containerd.transfer.v1.local", "unpack_config"])
        .and_then(Value::as_array);
    let named = unpack.is_some_and(|u| {
        u.iter()
            .any(|c| c.get("snapshotter").and_then(Value::as_str) == Some("headstart"))
    });
    let exports = ["proxy_plugins", "headstart", "exports"];
    let export = |key: &str| files.text(&[&exports[..], &[key]].concat());
    if named && export("enable_remote_snapshot_annotations") == Some("true") {
        report.ok("containerd.transfer", "the transfer service unpacks for headstart");
    } else {
        report.fail(
            "containerd.transfer",
            "the transfer service is not told about headstart",
            "add [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]] with platform = \"linux\" and snapshotter = \
             \"headstart\", and enable_remote_snapshot_annotations = \"true\" in [proxy_plugins.headstart.exports]",
        );
    }
    if export("root").is_none() {
        report.warn(
            "containerd.root",
            "CRI does not know where snapshots are, for its file system statistics",
            "add root = \"/var/lib/headstart-shim\" (root_dir) to [proxy_plugins.headstart.exports]",
        );
    }
}

/// Major and minor.
fn version(report: &mut Report, places: &Places) -> Option<(u64, u64)> {
    let text = places.containerds.iter().find_map(|program| first_line(program));
    let Some(text) = text else {
        report.warn(
            "containerd.version",
            "no containerd found in the usual places",
            "nothing, if it is installed elsewhere: then its version is not checked",
        );
        return None;
    };
    // "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u2", or with v in front of the number.
    let number = |word: &str| {
        let mut parts = word.trim_start_matches('v').split(['.', '~', '-', '+']);
        Some((parts.next()?.parse::<u64>().ok()?, parts.next()?.parse::<u64>().ok()?))
    };
    let version = text.split_whitespace().find_map(number);
    match version {
        Some((major, minor)) if (major, minor) < (1, 6) => report.fail(
            "containerd.version",
            format!("{major}.{minor}"),
            "use 1.6 or later: older ones do not pull through mirrors with snapshotters like this",
        ),
        Some((major, minor)) => report.ok("containerd.version", format!("{major}.{minor}")),
        None => report.warn("containerd.version", text, "nothing, if it is 1.6 or later"),
    }
    version
}

/// Of what the program prints for `--version`.
fn first_line(program: &Path) -> Option<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let deadline = Instant::now() + VERSION_WAIT;
    while child.try_wait().ok()?.is_none() {
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}
