//! A configuration file that cannot be used, while readers wait for a shim: the last one that was good has them served.

use std::fs;
use std::process::Command;

use crate::manager::Manager;
use crate::node::{Kind, Node, SHIM};
use crate::readers::Readers;
use crate::takeover::{eventually, read_all};

/// A key that nobody knows; text that is no TOML; a value that only a start finds wrong.
const BAD: [&str; 3] = ["no_such_key = 1\n", "\n[[[ = \n", "\n[metrics]\nlisten = 'nowhere'\n"];

/// What a subcommand says, on both outputs.
fn said(node: &Node, command: &str) -> String {
    let config = node.dir.path().join("shim.toml");
    let output = Command::new(SHIM)
        .arg(command)
        .arg("--config")
        .arg(config)
        .output()
        .unwrap();
    [output.stdout, output.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat()
}

#[test]
fn a_bad_file_is_not_used_while_readers_wait() {
    for (at, bad) in BAD.into_iter().enumerate() {
        let mut node = Node::new(Kind {
            keep_with: "auto",
            ..Kind::EROFS
        });
        let manager = (at == 1).then(|| Manager::start(node.dir.path()));
        node.environment = manager.as_ref().map(Manager::environment).unwrap_or_default();
        node.server.latency(std::time::Duration::from_millis(3));
        node.start();
        node.run_container();
        let readers = Readers::start(4, node.files());
        readers.until_all_go_on();
        let kept = node.root().join("last-good.toml");
        eventually("it is kept", || kept.exists());

        // Twice: what was not good is not kept.
        node.more = bad;
        for round in 1..3 {
            node.kill();
            node.descriptors = manager.as_ref().map(Manager::stored).unwrap_or_default();
            node.start();
            node.descriptors.clear();
            readers.until_all_go_on();
            assert_eq!(
                node.log().matches("configuration-refused").count(),
                round,
                "{}",
                node.log()
            );
        }
        let status = said(&node, "status");
        assert!(status.contains("NOT USED") && status.contains("failed to"), "{status}");
        let doctor = said(&node, "doctor");
        assert!(doctor.contains("FAIL  config.file"), "{doctor}");

        // Mended, but not yet by the one that runs.
        node.more = "\n# mended\n";
        node.configure();
        assert!(said(&node, "doctor").contains("WARN  config.file"));
        node.kill();
        node.descriptors = manager.as_ref().map(Manager::stored).unwrap_or_default();
        node.start();
        node.descriptors.clear();
        readers.stop();
        read_all(&node);
        assert_eq!(node.log().matches("configuration-refused").count(), 2);
        assert_eq!(node.log().matches("mount-taken-over").count(), 3);
        let status = said(&node, "status");
        assert!(!status.contains("NOT USED"), "{status}");
        eventually("the mended one is kept", || {
            fs::read_to_string(&kept).unwrap().contains("# mended")
        });
        node.end_container();
        node.stop();
    }
}

/// What a file says can be wrong of this start alone: nobody manages this process.
#[test]
fn a_keeper_that_cannot_be_had_is_not_waited_for() {
    let mut node = Node::new(Kind::FUSE);
    node.start();
    node.run_container();
    eventually("it is kept", || node.root().join("last-good.toml").exists());
    node.kill();
    node.keep_with("systemd");
    node.start();
    read_all(&node);
    let log = node.log();
    assert!(
        log.contains("configuration-refused") && log.contains("mount-taken-over"),
        "{log}"
    );
}

#[test]
fn where_nobody_waits_a_bad_file_is_an_error() {
    let mut node = Node::new(Kind::FUSE);
    node.start();
    eventually("it is kept", || node.root().join("last-good.toml").exists());
    node.stop();
    node.more = BAD[0];
    node.spawn();
    let status = node.shim.take().unwrap().wait().unwrap();
    assert!(!status.success());
    assert!(node.log().contains("no_such_key"), "{}", node.log());
}

/// Another shim runs there: a second start with a bad file changes nothing for its readers.
#[test]
fn a_second_start_with_a_bad_file_leaves_the_first_alone() {
    let mut node = Node::new(Kind::EROFS);
    node.start();
    node.run_container();
    eventually("it is kept", || node.root().join("last-good.toml").exists());
    fs::remove_file(node.root().join("last-good.toml")).unwrap();
    let first = node.shim.take();
    node.more = BAD[0];
    node.spawn();
    assert!(!node.shim.take().unwrap().wait().unwrap().success());
    node.shim = first;
    assert!(node.has_holder());
    read_all(&node);
}

/// Nothing to start from: readers are told in the end, and the mended file makes a shim again.
#[test]
fn without_a_good_file_readers_are_told() {
    let mut node = Node::new(Kind::EROFS);
    node.start();
    node.run_container();
    eventually("it is kept", || node.root().join("last-good.toml").exists());
    node.kill();
    fs::remove_file(node.root().join("last-good.toml")).unwrap();
    let (path, _) = node.files().pop().unwrap();
    let reader = std::thread::spawn(move || fs::read(path));
    node.more = BAD[1];
    node.spawn();
    assert!(!node.shim.take().unwrap().wait().unwrap().success());
    eventually("the reader is told", || reader.is_finished());
    assert!(reader.join().unwrap().is_err());
    eventually("the holder is gone", || !node.has_holder());
    node.more = "";
    node.start();
    node.unmount_container();
    node.mount_container();
    read_all(&node);
}
