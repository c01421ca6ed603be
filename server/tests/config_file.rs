//! The shipped `config/server.toml` is what the server accepts.
//!
//! In: the file. Out: a checked configuration. Not here: the keys' meaning (`config.rs` has unit tests).

use std::path::Path;

use headstart_server::config::{Config, FetchConfig, UpstreamConfig};

#[test]
fn the_shipped_file_parses_and_says_what_the_deployment_files_assume() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/server.toml");
    let config = Config::load(Some(&path)).expect("the shipped file is valid");
    assert_eq!(config.listen.port(), 5080);
    assert_eq!(config.data_dir, Path::new("/var/lib/headstart-server"));
    assert_eq!(config.default_upstream.as_deref(), Some("docker.io"));
    assert!(
        config
            .upstreams
            .iter()
            .any(|u| u.name == "docker.io" && u.url.starts_with("https://"))
    );
}

#[test]
fn a_misspelt_key_is_an_error_that_names_it() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/server.toml");
    let text = std::fs::read_to_string(path)
        .expect("read")
        .replace("[fetch]", "[fetch]\ntries_mx = 1");
    let error = Config::parse(&text).expect_err("unknown keys are errors").to_string();
    assert!(error.contains("tries_mx"), "{error}");
}

/// Commented examples rot; these are read as if they were not comments.
#[test]
fn the_commented_keys_of_an_upstream_are_keys() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/server.toml");
    let text = std::fs::read_to_string(path).expect("read");
    let (_, rest) = text
        .split_once("# More keys of an upstream")
        .expect("the section is there");
    let (section, _) = rest.split_once("\n\n").expect("it ends");
    let keys: String = section
        .lines()
        .skip(1)
        .map(|l| l.trim_start_matches("# ").to_owned() + "\n")
        .collect();
    let config = Config::parse(&format!("[[upstreams]]\nname = \"a\"\nurl = \"http://b\"\n{keys}"));
    let one = &config.expect("every commented key is known").upstreams[0];
    let default = UpstreamConfig::new("a", "http://b");
    assert_eq!(one.breaker.failures_max, default.breaker.failures_max);
    assert_eq!(one.breaker.open_ms_max, default.breaker.open_ms_max);
    assert_eq!(one.queue_timeout_ms, default.queue_timeout_ms);
    let fetch = FetchConfig::default();
    assert_eq!(one.header_timeout_ms, Some(fetch.header_timeout_ms));
    assert_eq!(one.idle_timeout_ms, Some(fetch.idle_timeout_ms));
}
