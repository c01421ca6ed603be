//! The shipped `config/server.toml` is what the server accepts.
//!
//! In: the file. Out: a checked configuration. Not here: the keys' meaning (`config.rs` has unit tests).

use std::path::Path;

use headstart_server::config::Config;

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
