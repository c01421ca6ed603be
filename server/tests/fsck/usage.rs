//! `fsck` as a command: whom it talks to, and what it says of wrong usage.
//!
//! In: arguments, directories with and without a server. Out: status and text.
//! Not here: checking.

use std::process::Command;

use headstart_server::store::Store;

use crate::{BINARY, write_config};

#[test]
fn a_dead_server_is_told_apart_and_wrong_usage_is_status_two() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let toml = write_config(dir.path(), &data);
    let run = |more: &[&str]| {
        let mut command = Command::new(BINARY);
        command.arg("fsck").args(more).arg("--config").arg(&toml);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("failed to find a store in"), "{said}");
    drop(Store::open(&data).unwrap());
    assert_eq!(run(&[]), (Some(0), String::new()));
    assert_eq!(run(&["--mend"]).0, Some(2));
    // As SIGKILL leaves it.
    drop(std::os::unix::net::UnixListener::bind(data.join("admin.sock")).unwrap());
    let (code, said) = run(&[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("no server listens on it"), "{said}");
    let (code, said) = run(&["--socket", data.join("admin.sock").to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(said.contains("reach a running server"), "{said}");
    let _used = Store::open(&data).unwrap();
    let (code, said) = run(&["--repair"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("another process uses the store"), "{said}");
}
