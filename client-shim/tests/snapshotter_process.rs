//! The program itself: command line, configuration, signals.
//!
//! In: `headstart-shim` as it is installed. Out: exit codes, and a socket that serves. Not here: what it serves.

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use headstart_layer_format::ChainId;
use support::Client;

const SHIM: &str = env!("CARGO_BIN_EXE_headstart-shim");

fn shim(args: &[&str]) -> Output {
    Command::new(SHIM).args(args).output().unwrap()
}

fn write_config(dir: &Path, more: &str) -> String {
    let path = dir.join("shim.toml");
    // Port 1: nobody listens, and the kernel says so at once.
    let text = format!(
        "root_dir = '{0}/root'\nsocket = '{0}/run/shim.sock'\nservers = ['http://127.0.0.1:1']\n{more}",
        dir.display()
    );
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn help_version_and_check_answer() {
    let help = shim(&["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    for word in [
        "--config",
        "root_dir",
        "socket",
        "servers",
        "lazy_declined",
        "proxy_plugins",
    ] {
        assert!(help.contains(word), "{word}");
    }
    let version = String::from_utf8(shim(&["--version"]).stdout).unwrap();
    assert_eq!(version.trim(), concat!("headstart-shim ", env!("CARGO_PKG_VERSION")));

    let dir = tempfile::tempdir().unwrap();
    assert!(
        shim(&["--check", "--config", &write_config(dir.path(), "")])
            .status
            .success()
    );
    let bad = shim(&["--check", "--config", &write_config(dir.path(), "no_such_key = 1")]);
    assert!(!bad.status.success());
    assert!(String::from_utf8(bad.stderr).unwrap().contains("no_such_key"));
    assert!(!shim(&["--config", "/nonexistent/shim.toml"]).status.success());
}

#[tokio::test]
async fn serves_without_a_server_and_stops_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "[log]\nformat = 'json'\n");
    let socket = dir.path().join("run/shim.sock");
    for round in 0..2 {
        let log = dir.path().join(format!("log-{round}"));
        let mut child = tokio::process::Command::new(SHIM)
            .args(["--config", &config])
            .stderr(std::fs::File::create(&log).unwrap())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let client = Client::connect(&socket, None).await;
        let chain = ChainId::of(b"chain").to_string();
        let key = format!("extract-{round}");
        let labels = [("containerd.io/snapshot.ref", chain.as_str())];
        client.prepare(&key, "", &labels).await.expect("an ordinary snapshot");
        assert_eq!(client.names(&[]).await.len(), round + 1, "the first round's survived");

        let second = tokio::process::Command::new(SHIM)
            .args(["--config", &config])
            .output()
            .await;
        assert!(!second.unwrap().status.success(), "one shim per root_dir");

        let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        // Its client is still connected: a stop must not wait for that.
        let status = tokio::time::timeout(Duration::from_secs(60), child.wait()).await;
        assert!(status.expect("stops in time").unwrap().success());
        assert!(!socket.exists());
        let log = std::fs::read_to_string(&log).unwrap();
        let declines = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("every line is JSON"))
            .filter(|event| event.get("lazy_declined").is_some());
        assert_eq!(declines.count(), 1, "{log}");
    }
}
