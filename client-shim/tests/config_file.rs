//! The shipped `config/shim.toml` is what the shim accepts.
//!
//! In: the file. Out: a checked configuration. Not here: the keys' meaning (`config.rs` has unit tests).

use std::path::Path;

use headstart_shim::config::Config;
use headstart_shim::fetch::FetchConfig;
use headstart_shim::fetch::original::OriginalConfig;
use headstart_shim::layers::{LazyConfig, PresentationChoice};
use headstart_shim::profile::PrefetchConfig;
use headstart_shim::survival::SurvivalConfig;
use headstart_shim::telemetry::TelemetryConfig;

#[test]
fn the_shipped_file_parses_and_says_what_the_deployment_files_assume() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/shim.toml");
    let config = Config::load(Some(&path)).expect("the shipped file is valid");
    assert_eq!(config.root_dir, Path::new("/var/lib/headstart-shim"));
    assert_eq!(config.socket, Path::new("/run/headstart/shim.sock"));
    assert_eq!(config.servers, ["http://headstart.internal:5080"]);
    assert_eq!(
        config.lazy,
        LazyConfig::default(),
        "what is shown is what is without a file"
    );
    assert_eq!(config.survival, SurvivalConfig::default());
    assert_eq!(config.fetch, FetchConfig::default());
    assert_eq!(config.fetch.original, OriginalConfig::default());
    assert_eq!(config.prefetch, PrefetchConfig::default());
}

#[test]
fn a_presentation_is_chosen_by_name() {
    let choices = [
        ("auto", PresentationChoice::Auto),
        ("erofs", PresentationChoice::Erofs),
        ("fuse", PresentationChoice::Fuse),
    ];
    for (name, choice) in choices {
        let config: Config = format!("[lazy]\npresentation = '{name}'").parse().expect(name);
        assert_eq!(config.lazy.presentation, choice);
    }
    assert!("[lazy]\npresentation = 'both'".parse::<Config>().is_err());
}

#[test]
fn a_misspelt_key_is_an_error_that_names_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/shim.toml");
    let text = std::fs::read_to_string(path)
        .expect("read")
        .replace("[lazy]", "[lazy]\nreadahed_bytes = 1");
    let error = text.parse::<Config>().expect_err("unknown keys are errors").to_string();
    assert!(error.contains("readahed_bytes"), "{error}");
}

/// An operator finds every key that is about where the shim is asked.
#[test]
fn the_shipped_file_shows_where_to_ask() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/shim.toml");
    let config = Config::load(Some(&path)).expect("the shipped file is valid");
    assert_eq!(config.admin_socket(), Path::new("/run/headstart/shim-admin.sock"));
    assert_eq!(config.metrics, Config::default().metrics);
    let table: toml::Table = std::fs::read_to_string(path).expect("read").parse().expect("TOML");
    assert!(table.contains_key("admin_socket"));
    assert!(table["metrics"].get("listen").is_some());
}

#[test]
fn the_shipped_file_shows_that_no_connection_is_kept_warm() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/shim.toml");
    let table: toml::Table = std::fs::read_to_string(path).expect("read").parse().expect("TOML");
    let shown = table["fetch"]["keep_warm_ms"].as_integer().expect("a number");
    assert_eq!(shown.cast_unsigned(), FetchConfig::default().keep_warm_ms);
}

/// Also the one that is a comment, for it has no default.
#[test]
fn the_shipped_file_shows_every_key_of_telemetry_and_sends_nothing() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/shim.toml");
    let config = Config::load(Some(&path)).expect("the shipped file is valid");
    assert_eq!(config.telemetry, TelemetryConfig::default());
    assert_eq!(config.telemetry.otlp_endpoint, None);
    let text = std::fs::read_to_string(path).expect("read");
    let table: toml::Table = text.parse().expect("TOML");
    let shown = table["telemetry"].as_table().expect("a table").keys();
    let mut shown: Vec<&str> = shown.map(String::as_str).collect();
    shown.push("otlp_endpoint");
    // What the shim knows, by its own word.
    let error = "[telemetry]\nno_such_key = 1"
        .parse::<Config>()
        .unwrap_err()
        .to_string();
    let (_, known) = error.split_once("expected one of ").expect(&error);
    let mut known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    shown.sort_unstable();
    known.sort_unstable();
    assert_eq!(shown, known);
    let example = text.replace("# otlp_endpoint", "otlp_endpoint");
    let config: Config = example.parse().expect("the comment is a setting");
    assert_eq!(config.telemetry.otlp_endpoint.as_deref(), Some("http://collector:4318"));
}

/// The DaemonSet's configuration is read by the shim, and its files are where the installation looks for them.
#[test]
fn the_daemon_set_and_the_shim_agree() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/kubernetes-shim.yaml");
    let text = std::fs::read_to_string(path).expect("read");
    let block = |key: &str| {
        let (_, block) = text.split_once(&format!("  {key}: |\n")).expect(key);
        let lines = block
            .lines()
            .take_while(|line| line.is_empty() || line.starts_with("    "));
        lines
            .map(|line| line.strip_prefix("    ").unwrap_or_default())
            .collect::<Vec<_>>()
            .join("\n")
    };
    let config: Config = block("shim.toml").parse().expect("a configuration that the shim takes");
    let shipped = Config::default();
    assert_eq!((&config.root_dir, &config.socket), (&shipped.root_dir, &shipped.socket));
    let hosts: toml::Table = block("hosts.toml").parse().expect("TOML");
    let host = hosts["host"].as_table().expect("a host");
    assert!(host.contains_key(&config.servers[0]), "one server in both files");
    let dockerfile = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker/shim.Dockerfile");
    let dockerfile = std::fs::read_to_string(dockerfile).expect("read");
    for file in ["install.sh", "config/shim.toml", "config/modules-load.conf"] {
        assert!(dockerfile.contains(&format!(" /opt/headstart/{file}\n")), "{file}");
    }
    for mounted in [
        "/opt/headstart/config/shim.toml",
        "/opt/headstart/config/containerd/certs.d/_default/hosts.toml",
    ] {
        assert!(text.contains(&format!("mountPath: {mounted}\n")), "{mounted}");
    }
    assert!(text.contains("privileged: true") && text.contains("hostPID: true"));
    // A tab or an odd indentation is what breaks such a file unseen.
    assert!(
        text.lines()
            .all(|l| !l.contains('\t') && (l.len() - l.trim_start().len()).is_multiple_of(2))
    );
}
