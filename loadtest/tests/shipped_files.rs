//! The files an operator copies are accepted by the programs they are for, and name things that exist.
//!
//! In: `config/` and `docker/`. Out: the verdict of real containerd and systemd, and of the repository itself.
//! Not here: server.toml and shim.toml (their crates' own tests), and image builds, which need base images from a network.

use std::path::{Path, PathBuf};
use std::process::Command;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("read {path}: {e}"))
}

fn table(path: &str) -> toml::Table {
    read(path).parse().unwrap_or_else(|e| panic!("parse {path}: {e}"))
}

/// Walks nested tables.
fn at<'a>(table: &'a toml::Table, keys: &[&str]) -> &'a toml::Value {
    let (first, rest) = keys.split_first().expect("a key");
    let start = table.get(*first).unwrap_or_else(|| panic!("no {first}"));
    rest.iter()
        .fold(start, |value, key| value.get(key).unwrap_or_else(|| panic!("no {key}")))
}

const SOCKET: &str = "/run/headstart/shim.sock";

#[test]
fn containerd_1_6_takes_its_file_and_sees_the_plugin() {
    let file = repository().join("config/containerd/config-v2.toml");
    let dump = Command::new("containerd")
        .args([
            "--config".as_ref(),
            file.as_os_str(),
            "config".as_ref(),
            "dump".as_ref(),
        ])
        .output()
        .expect("containerd is installed by test.sh");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let dumped: toml::Table = String::from_utf8_lossy(&dump.stdout)
        .parse()
        .expect("containerd prints TOML");
    assert_eq!(
        at(&dumped, &["proxy_plugins", "headstart", "address"]).as_str(),
        Some(SOCKET)
    );
    let cri = ["plugins", "io.containerd.grpc.v1.cri", "containerd"];
    assert_eq!(
        at(&dumped, &[&cri[..], &["snapshotter"]].concat()).as_str(),
        Some("headstart")
    );
    assert_eq!(
        at(&dumped, &[&cri[..], &["disable_snapshot_annotations"]].concat()).as_bool(),
        Some(false)
    );
    let certs = ["plugins", "io.containerd.grpc.v1.cri", "registry", "config_path"];
    assert_eq!(at(&dumped, &certs).as_str(), Some("/etc/containerd/certs.d"));
}

#[test]
fn the_containerd_2_file_has_both_settings_that_remote_snapshotters_need() {
    let file = table("config/containerd/config-v3.toml");
    assert_eq!(file["version"].as_integer(), Some(3));
    assert_eq!(
        at(&file, &["proxy_plugins", "headstart", "address"]).as_str(),
        Some(SOCKET)
    );
    let exports = at(&file, &["proxy_plugins", "headstart", "exports"]);
    assert_eq!(exports["enable_remote_snapshot_annotations"].as_str(), Some("true"));
    // Not "rebase", which 2.2 and later would believe.
    let capabilities = at(&file, &["proxy_plugins", "headstart", "capabilities"]);
    assert_eq!(capabilities.as_array(), Some(&vec!["remap-ids".into()]));
    let unpack = at(&file, &["plugins", "io.containerd.transfer.v1.local", "unpack_config"]);
    assert_eq!(unpack[0]["snapshotter"].as_str(), Some("headstart"));
}

/// What k3s appends to its own base; the base is k3s's.
#[test]
fn the_k3s_files_say_the_same_as_containerds() {
    let text = read("config/k3s/config-v3.toml.tmpl");
    let appended = text
        .strip_prefix("{{ template \"base\" . }}\n")
        .expect("k3s's base first");
    let (k3s, containerd): (toml::Table, _) = (
        appended.parse().expect("TOML"),
        table("config/containerd/config-v3.toml"),
    );
    for keys in [
        &["proxy_plugins"][..],
        &["plugins", "io.containerd.transfer.v1.local", "unpack_config"],
    ] {
        assert_eq!(at(&k3s, keys), at(&containerd, keys));
    }
    // A second table of CRI's would be an error.
    assert!(at(&k3s, &["plugins"]).as_table().is_some_and(|t| t.len() == 1));
    assert!(
        read("config/k3s/config.yaml")
            .lines()
            .any(|l| l == "snapshotter: headstart")
    );
    let hosts = table("config/containerd/certs.d/_default/hosts.toml");
    let server = hosts["host"].as_table().and_then(|h| h.keys().next()).expect("a host");
    assert!(read("config/k3s/registries.yaml").contains(&format!("endpoint:\n      - \"{server}\"")));
}

#[test]
fn the_hosts_file_names_one_mirror_that_may_pull_and_resolve() {
    let file = table("config/containerd/certs.d/_default/hosts.toml");
    let hosts = file["host"].as_table().expect("[host]");
    assert_eq!(hosts.len(), 1);
    let capabilities = hosts.values().next().expect("one host")["capabilities"]
        .as_array()
        .expect("a list")
        .clone();
    assert_eq!(capabilities, ["pull", "resolve"].map(toml::Value::from));
    // Without `server`, containerd falls back to the registry in the reference itself.
    assert!(!file.contains_key("server"));
}

#[test]
fn systemd_units_run_binaries_of_this_workspace_with_shipped_files() {
    for (unit, binary, config) in [
        ("headstart-server.service", "headstart-server", "server.toml"),
        ("headstart-shim.service", "headstart-shim", "shim.toml"),
    ] {
        let text = read(&format!("config/systemd/{unit}"));
        let sections: Vec<_> = text.lines().filter(|l| l.starts_with('[')).collect();
        assert_eq!(sections, ["[Unit]", "[Service]", "[Install]"], "{unit}");
        let start = text
            .lines()
            .find_map(|l| l.strip_prefix("ExecStart="))
            .expect("ExecStart");
        assert_eq!(
            start,
            format!("/usr/local/bin/{binary} --config /etc/headstart/{config}")
        );
        assert!(repository().join("config").join(config).exists());
        for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with(['#', '['])) {
            assert!(
                line.split_once('=')
                    .is_some_and(|(key, _)| key.chars().all(char::is_alphanumeric)),
                "{unit}: {line}"
            );
        }
    }
}

#[test]
fn container_files_copy_what_exists_and_the_server_is_not_root() {
    for (file, binary) in [
        ("docker/server.Dockerfile", "headstart-server"),
        ("docker/shim.Dockerfile", "headstart-shim"),
    ] {
        let text = read(file);
        let built = format!("COPY --from=build /src/target/release/{binary} /usr/local/bin/{binary}");
        assert!(text.contains(&built), "{file}");
        assert!(
            text.contains(&format!("cargo build --release --locked -p {binary}")),
            "{file}"
        );
        for source in text.lines().filter_map(|l| l.strip_prefix("COPY config/")) {
            let name = source.split_whitespace().next().expect("a source");
            assert!(repository().join("config").join(name).exists(), "{file}: {name}");
        }
    }
    let user = read("docker/server.Dockerfile")
        .lines()
        .rev()
        .find_map(|l| l.strip_prefix("USER ").map(str::to_owned));
    assert!(user.is_some_and(|u| !u.starts_with('0') && !u.starts_with("root")));
    let compose = read("docker/compose.yaml");
    for named in compose.lines().filter_map(|l| l.trim().strip_prefix("dockerfile: ")) {
        assert!(repository().join(named).exists(), "{named}");
    }
    for mounted in compose.lines().filter_map(|l| l.trim().strip_prefix("- ../")) {
        let path = mounted.split(':').next().expect("a path");
        assert!(repository().join(path).exists(), "{path}");
    }
}

#[test]
fn the_list_of_images_to_start_parses_and_the_script_makes_each() {
    let list = headstart_loadtest::coldstart::ImageList::parse(&read("config/coldstart.toml")).expect("a list");
    let script = read("scripts/bench-images.sh");
    for image in &list.images {
        let layout = image.layout.as_deref().expect("made by the script");
        let (family, version) = layout.rsplit_once('-').expect("a version");
        let made = format!("{family}_image {version}");
        assert!(
            script.contains(&made)
                || script.contains(&format!("image {layout} "))
                || script.contains(&format!("name={layout} ")),
            "{layout}"
        );
    }
    assert!(list.images.len() >= 5);
    assert!(list.images.iter().any(|i| i.after.is_some()));
}
