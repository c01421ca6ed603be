//! The shipped `config/server.toml` is what the server accepts, has every key, and tells its default truly.
//!
//! In: the file, and the types of the configuration. Out: what one has and the other has not. Not here: what keys do.

mod keys;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use headstart_server::config::Config;

/// Keys whose value in the file is not the default, on purpose: what is required, what is not set by default (an
/// example is shown), and what a deployment wants otherwise.
const NOT_DEFAULTS: &[&str] = &[
    "listen",
    "default_upstream",
    "upstreams.name",
    "upstreams.url",
    "upstreams.token_hosts",
    "upstreams.ca_file",
    "upstreams.client_cert_file",
    "upstreams.client_key_file",
    "upstreams.connect_timeout_ms",
    "upstreams.header_timeout_ms",
    "upstreams.idle_timeout_ms",
    "upstreams.tags.policy",
    "upstreams.auth.username",
    "upstreams.auth.password_file",
    "upstreams.auth.password_env",
    "upstreams.auth.docker_config_file",
    "upstreams.auth.credential_helper",
    "upstreams.auth.helper_dir",
    "tls.cert_file",
    "tls.key_file",
    "tls.client_ca_file",
    "access.htpasswd_file",
    "access.token_file",
    "access.rules.who",
    "access.rules.upstreams",
    "access.rules.repositories",
    "cache.originals_bytes_max",
    "cache.chunks_bytes_max",
    "cache.free_bytes_min",
    "log.format",
    "telemetry.otlp_endpoint",
];

fn shipped() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/server.toml");
    std::fs::read_to_string(path).expect("read")
}

/// One line of the file that sets a key, commented out or not.
struct Shown {
    /// `key = value`.
    text: String,
    explained: bool,
}

/// The first time that each key is shown.
fn shown() -> BTreeMap<String, Shown> {
    let mut found = BTreeMap::new();
    let (mut table, mut above) = (String::new(), false);
    for line in shipped().lines() {
        let bare = line.strip_prefix("# ").unwrap_or(line);
        let header = bare.starts_with('[') && bare.ends_with(']');
        let key = bare.split(" = ").next().unwrap_or_default();
        let is_key = bare.contains(" = ")
            && !key.is_empty()
            && key
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if header {
            table = bare.trim_matches(['[', ']']).to_owned();
        } else if is_key {
            let path = if table.is_empty() {
                key.to_owned()
            } else {
                format!("{table}.{key}")
            };
            found.entry(path).or_insert(Shown {
                text: bare.to_owned(),
                explained: above || bare.contains(" # "),
            });
        }
        above = !is_key && !header && line.starts_with("# ");
    }
    found
}

/// A configuration with only this line in this table, and what the table cannot be without.
fn with(path: &str, line: &str) -> Config {
    let table = path.rsplit_once('.').map_or("", |(table, _)| table);
    let mut required = vec![
        ("upstreams", "name", "name = \"a\""),
        ("upstreams", "url", "url = \"http://b\""),
        ("tls", "cert_file", "cert_file = \"c\""),
        ("tls", "key_file", "key_file = \"k\""),
        ("access.rules", "who", "who = [\"a\"]"),
    ];
    required.retain(|(of, key, _)| format!("{of}.{key}") != path);
    let of = |table: &str| -> String {
        let lines = required.iter().filter(|(of, ..)| *of == table);
        lines.map(|(.., line)| format!("{line}\n")).collect()
    };
    let text = match table {
        "" => line.to_owned(),
        "upstreams" | "access.rules" => format!("[[{table}]]\n{}{line}", of(table)),
        _ if table.starts_with("upstreams.") => format!("[[upstreams]]\n{}[{table}]\n{line}", of("upstreams")),
        _ => format!("[{table}]\n{}{line}", of(table)),
    };
    Config::parse(&text).unwrap_or_else(|error| panic!("{path}: {error}\n{text}"))
}

#[test]
fn the_shipped_file_parses_and_says_what_the_deployment_files_assume() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/server.toml");
    let config = Config::load(Some(&path)).expect("the shipped file is valid");
    assert_eq!(config.listen.port(), 5080);
    assert_eq!(config.data_dir, Path::new("/var/lib/headstart-server"));
    assert_eq!(config.default_upstream.as_deref(), Some("docker.io"));
    let names: Vec<_> = config
        .upstreams
        .iter()
        .map(|u| (u.name.clone(), u.url.clone()))
        .collect();
    let public = Config::default().upstreams;
    let expected: Vec<_> = public.iter().map(|u| (u.name.clone(), u.url.clone())).collect();
    assert_eq!(names, expected, "without [[upstreams]]: the same");
}

#[test]
fn a_misspelt_key_is_an_error_that_names_it() {
    let text = shipped().replace("\n[fetch]\n", "\n[fetch]\ntries_mx = 1\n");
    let error = Config::parse(&text).expect_err("unknown keys are errors").to_string();
    assert!(error.contains("tries_mx"), "{error}");
}

#[test]
fn every_key_is_in_the_file_and_explained_and_no_other_is() {
    let known: BTreeSet<String> = keys::keys_of::<Config>().into_iter().collect();
    // That the walk saw the depths: a list, an option, a table in a list.
    for deep in [
        "listen",
        "http.queue_max",
        "upstreams.auth.helper_dir",
        "tls.client_cert",
        "access.rules.who",
    ] {
        assert!(known.contains(deep), "{deep} is not in {known:?}");
    }
    let shown = shown();
    let missing: Vec<_> = known.iter().filter(|key| !shown.contains_key(*key)).collect();
    assert!(missing.is_empty(), "not in config/server.toml: {missing:?}");
    let unknown: Vec<_> = shown.keys().filter(|key| !known.contains(*key)).collect();
    assert!(unknown.is_empty(), "only in config/server.toml: {unknown:?}");
    let bare: Vec<_> = shown.iter().filter(|(_, s)| !s.explained).map(|(key, _)| key).collect();
    assert!(bare.is_empty(), "without a word: {bare:?}");
}

/// Each line alone makes no difference to a configuration without it.
#[test]
fn what_the_file_shows_is_the_default() {
    for (path, one) in shown() {
        let here = format!("{:?}", with(&path, &one.text));
        if NOT_DEFAULTS.contains(&path.as_str()) {
            continue;
        }
        let without = format!("{:?}", with(&path, ""));
        assert_eq!(here, without, "{}", one.text);
    }
    let stale: Vec<_> = NOT_DEFAULTS.iter().filter(|key| !shown().contains_key(**key)).collect();
    assert!(stale.is_empty(), "{stale:?}");
}

/// The ConfigMap's text is read by the server, and what it names is what the pod has.
#[test]
fn the_kubernetes_files_and_the_server_agree() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/kubernetes.yaml");
    let text = std::fs::read_to_string(path).expect("read");
    let (_, block) = text.split_once("  server.toml: |\n").expect("a configuration");
    let toml: Vec<_> = block
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .map(|line| line.strip_prefix("    ").unwrap_or_default())
        .collect();
    let config = Config::parse(&toml.join("\n")).expect("a configuration that the server takes");
    let port = config.listen.port();
    assert!(text.contains(&format!("containerPort: {port}")));
    assert!(text.contains(&format!("mountPath: {}\n", config.data_dir.display())));
    let tls = config.tls.expect("TLS");
    for file in [&tls.cert_file, &tls.key_file] {
        let dir = file.parent().expect("a directory");
        assert!(
            text.contains(&format!("mountPath: {}\n", dir.display())),
            "{}",
            dir.display()
        );
    }
    let probes: Vec<_> = text.lines().filter(|line| line.contains("httpGet:")).collect();
    assert_eq!(probes.len(), 3);
    for probe in probes {
        use headstart_layer_format::routes::{HEALTHZ, READYZ};
        assert!(
            [HEALTHZ, READYZ]
                .iter()
                .any(|route| probe.contains(&format!("path: {route},")))
        );
        assert!(probe.contains("scheme: HTTPS"), "{probe}");
    }
    // The pod's time to stop is longer than what the server takes.
    let grace: u64 = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("terminationGracePeriodSeconds: "))
        .and_then(|seconds| seconds.parse().ok())
        .expect("a grace period");
    let stop_ms = config.http.drain_delay_ms + config.http.drain_timeout_ms + config.telemetry.flush_timeout_ms;
    assert!(grace * 1000 > stop_ms + 10_000);
}
