//! The shipped `config/shim.toml` is what the shim accepts.
//!
//! In: the file. Out: a checked configuration. Not here: the keys' meaning (`config.rs` has unit tests).

use std::path::Path;

use headstart_shim::config::Config;
use headstart_shim::layers::{LazyConfig, PresentationChoice};

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
