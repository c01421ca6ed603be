//! What Nydus' snapshotter is started with.
//!
//! In: a node's directory and socket, the program of its daemons, whether they may fetch ahead. Out: its configuration,
//! that of the daemons (a template: the snapshotter adds registry and image), and a script that starts one.
//! Invariant: as in the examples that its makers ship: a FUSE daemon an image, which fetches everything ahead, by eight
//! threads. But nothing of the machine's is used: no port, no control group, no socket elsewhere; and the registry has
//! no TLS.
//! Not here: its processes ([`super::Rivals`]); all are of one process group, with which daemons end too.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::Background;
use crate::playground::{PlaygroundError, Result, workdir::WorkDir};

/// Serves one image.
pub const DAEMON: &str = "nydusd";

/// Writes it all for the node `name` and returns the snapshotter's configuration.
pub fn write(
    work: &WorkDir,
    name: &str,
    (root, socket): (&Path, &Path),
    daemon: &Path,
    background: Background,
) -> Result<PathBuf> {
    let script = work.write(format!("{name}-{DAEMON}.sh"), &script(daemon))?;
    let executable = fs::set_permissions(&script, Permissions::from_mode(0o755));
    executable.map_err(PlaygroundError::io(format!("make {} executable", script.display())))?;
    let template = work.write(format!("{name}-{DAEMON}.json"), &template(background))?;
    work.write(
        format!("{name}-rival.toml"),
        &snapshotter(root, socket, &script, &template),
    )
}

/// By default a daemon raises its limit of open files to a million, and ends where it may not.
fn script(daemon: &Path) -> String {
    format!(
        "#!/bin/sh\ncase $1 in fuse) exec '{0}' \"$@\" --rlimit-nofile 0 ;; esac\nexec '{0}' \"$@\"\n",
        daemon.display()
    )
}

fn snapshotter(root: &Path, socket: &Path, daemon: &Path, template: &Path) -> String {
    let path = |p: &Path| toml::Value::from(p.to_string_lossy().into_owned());
    format!(
        "version = 1\nroot = {}\naddress = {}\ndaemon_mode = \"dedicated\"\n\n\
         [daemon]\nnydusd_path = {}\nnydusd_config = {}\nfs_driver = \"fusedev\"\nthreads_number = 4\n\n\
         [system]\nenable = false\n\n[cgroup]\nenable = false\n\n[log]\nlog_to_stdout = true\n",
        path(root),
        path(socket),
        path(daemon),
        path(template),
    )
}

fn template(background: Background) -> String {
    let ahead = match background {
        Background::On => json!({
            "enable": true,
            "prefetch_all": true,
            "threads_count": 8,
            "merging_size": 1 << 20,
        }),
        Background::Off => json!({ "enable": false }),
    };
    let registry = json!({ "scheme": "http", "timeout": 5, "connect_timeout": 5, "retry_limit": 2 });
    let template = json!({
        "device": {
            "backend": { "type": "registry", "config": registry },
            "cache": { "type": "blobcache" },
        },
        "mode": "direct",
        "digest_validate": false,
        "iostats_files": false,
        "enable_xattr": true,
        "fs_prefetch": ahead,
    });
    template.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_fetched_ahead_unless_nothing_is() {
        let ahead = |background| {
            let template: serde_json::Value = serde_json::from_str(&template(background)).unwrap();
            template["fs_prefetch"].clone()
        };
        let on = ahead(Background::On);
        assert_eq!((&on["enable"], &on["prefetch_all"]), (&json!(true), &json!(true)));
        assert_eq!(ahead(Background::Off), json!({ "enable": false }));
    }

    #[test]
    fn all_it_is_told_of_is_below_the_nodes_directory() {
        let work = WorkDir::create().unwrap();
        let (root, socket) = (work.path().join("n-rival"), work.path().join("n-r.sock"));
        // A name that TOML and a shell must not take apart.
        let daemon = work.path().join("of makers");
        fs::write(&daemon, "#!/bin/sh\necho \"$@\"\n").unwrap();
        fs::set_permissions(&daemon, Permissions::from_mode(0o755)).unwrap();
        let config = write(&work, "n", (&root, &socket), &daemon, Background::On).unwrap();
        let config: toml::Value = toml::from_str(&fs::read_to_string(config).unwrap()).unwrap();
        let text = |value: &toml::Value| value.as_str().unwrap().to_owned();
        assert_eq!(text(&config["root"]), root.to_string_lossy());
        assert_eq!(text(&config["address"]), socket.to_string_lossy());
        let of_daemon = &config["daemon"];
        assert!(Path::new(&text(&of_daemon["nydusd_config"])).starts_with(work.path()));

        let said = |arguments: &[&str]| {
            let output = std::process::Command::new(text(&of_daemon["nydusd_path"]))
                .args(arguments)
                .output()
                .unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(said(&["fuse", "--id", "a b"]), "fuse --id a b --rlimit-nofile 0\n");
        assert_eq!(said(&["--version"]), "--version\n");
    }
}
