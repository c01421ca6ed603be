//! Does containerd pull through a Headstart server?
//!
//! In: the registry hosts directory that containerd's configuration names. Out: checks. Invariant: only read.
//! Not here: credentials and certificates of registries.

use std::path::Path;

use super::Report;
use super::containerd::Found;
use crate::config::Config;

/// A file of hosts is a page.
const FILE_MAX: u64 = 1 << 20;
/// Registries with a directory of their own that are looked at.
const DIRS_MAX: usize = 512;

pub(super) fn check(report: &mut Report, config: &Config, containerd: Option<&Found>) {
    let Some(found) = containerd else { return };
    let Some(dir) = &found.hosts_dir else {
        report.fail(
            "hosts.dir",
            "containerd's configuration names no directory of registry hosts",
            "set config_path = \"/etc/containerd/certs.d\" in the CRI registry table (config/containerd shows where), and \
             restart containerd",
        );
        return;
    };
    // Several are given as a list with colons.
    let dirs: Vec<&Path> = dir.split(':').map(Path::new).collect();
    let mut through = Vec::new();
    let mut past = Vec::new();
    for registry in dirs
        .iter()
        .flat_map(|d| std::fs::read_dir(d).into_iter().flatten().flatten())
        .take(DIRS_MAX)
    {
        let file = registry.path().join("hosts.toml");
        if !file.exists() {
            continue;
        }
        let name = registry.file_name().to_string_lossy().into_owned();
        match mirrors(&file) {
            Err(why) => report.fail(
                "hosts.file",
                format!("{} cannot be used: {why}", file.display()),
                "mend it: containerd ignores mirrors it cannot read",
            ),
            Ok(mirrors) => match mirrors.iter().position(|m| is_server(config, &m.url)) {
                None => past.push(name),
                Some(at) => {
                    if !mirrors[at].pulls || !mirrors[at].resolves {
                        report.warn(
                            "hosts.capabilities",
                            format!("for {name} the server may not both pull and resolve"),
                            "capabilities = [\"pull\", \"resolve\"]: without resolve tags come from the registry",
                        );
                    }
                    through.push(name);
                }
            },
        }
    }
    if through.iter().any(|n| n == "_default") {
        report.ok("hosts.mirror", "every registry is pulled through a server of shim.toml");
    } else if !through.is_empty() {
        report.ok(
            "hosts.mirror",
            format!("pulled through a server: {}", through.join(", ")),
        );
    } else {
        report.fail(
            "hosts.mirror",
            format!(
                "no hosts.toml below {dir} names a server of shim.toml ({})",
                config.servers.join(", ")
            ),
            "copy config/containerd/certs.d/_default/hosts.toml there and name your server in it: what does not come \
             through a server is unknown to it",
        );
    }
    if !past.is_empty() && !through.is_empty() {
        report.warn(
            "hosts.others",
            format!("not pulled through a server: {}", past.join(", ")),
            "a directory of a registry's own replaces _default: name the server in it too, if it shall be lazy",
        );
    }
}

struct Mirror {
    url: String,
    pulls: bool,
    resolves: bool,
}

fn mirrors(file: &Path) -> Result<Vec<Mirror>, String> {
    if std::fs::metadata(file).map_err(|e| e.to_string())?.len() > FILE_MAX {
        return Err("it is too large".into());
    }
    let text = std::fs::read_to_string(file).map_err(|e| e.to_string())?;
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.message().to_owned())?;
    let hosts = table.get("host").and_then(|h| h.as_table());
    let mirror = |(url, host): (&String, &toml::Value)| {
        let capabilities = host.get("capabilities").and_then(|c| c.as_array());
        // Without the key a host may do everything.
        let may = |what: &str| capabilities.is_none_or(|c| c.iter().any(|v| v.as_str() == Some(what)));
        Mirror {
            url: url.clone(),
            pulls: may("pull"),
            resolves: may("resolve"),
        }
    };
    Ok(hosts.into_iter().flatten().map(mirror).collect())
}

/// By host and port: the mirror may be asked over another path or scheme than the shim asks.
fn is_server(config: &Config, mirror: &str) -> bool {
    let address = |url: &str| {
        let url = if url.contains("://") {
            url.to_owned()
        } else {
            format!("https://{url}")
        };
        let url = reqwest::Url::parse(&url).ok()?;
        Some((url.host_str()?.to_owned(), url.port_or_known_default()?))
    };
    let mirror = address(mirror);
    mirror.is_some() && config.servers.iter().any(|server| address(server) == mirror)
}
