//! The shim as a service of a real systemd, by the unit that we ship, while somebody reads.

use std::time::{Duration, Instant};

use crate::node::{Kind, LONG, Node, SHIM};
use crate::readers::Readers;
use crate::systemd::Systemd;

fn until(what: &str, systemd: &Systemd, property: &str, value: &str) {
    let begun = Instant::now();
    loop {
        let now = systemd.property(property);
        if now == value {
            return;
        }
        assert!(begun.elapsed() < LONG, "{what}: {property} is {now}, not {value}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What an operator does, and what befalls a node: a start, an upgrade, a crash, a hang, a stop, and the end of it all.
fn lives_as_a_service(keep_with: &'static str) {
    let kind = Kind {
        keep_with,
        ..Kind::EROFS
    };
    let mut node = Node::new(kind);
    node.server.latency(Duration::from_millis(3));
    let systemd = Systemd::start(node.dir.path(), SHIM, &node.configure());
    let stores = keep_with == "systemd" || systemd.keeps_while_stopped();
    // Returns when the shim says that it is ready.
    systemd.unit(&["start"]);
    assert_eq!(systemd.property("NRestarts"), "0");
    node.run_container();
    let stored = if stores { "2" } else { "0" };
    until("descriptors are kept", &systemd, "NFileDescriptorStore", stored);
    assert_eq!(node.has_holder(), !stores);
    let readers = Readers::start(4, node.files());
    readers.until_all_go_on();

    node.hang_up();
    systemd.unit(&["restart"]);
    readers.until_all_go_on();
    assert_eq!(node.log().matches("mount-taken-over").count(), 1);

    systemd.unit(&["kill", "--kill-who=main", "--signal=KILL"]);
    until("it is started again", &systemd, "NRestarts", "1");
    readers.until_all_go_on();
    node.until_up();

    // A hang, as seen from outside: its watchdog is not fed.
    systemd.unit(&["kill", "--kill-who=main", "--signal=STOP"]);
    until("its hang is noticed", &systemd, "NRestarts", "2");
    readers.until_all_go_on();
    node.until_up();
    assert_eq!(node.log().matches("mount-taken-over").count(), 3);

    // Before version 254 its own store ends with a stop: then nothing is asked of it.
    if keep_with != "systemd" || systemd.keeps_while_stopped() {
        node.hang_up();
        systemd.unit(&["stop"]);
        systemd.unit(&["start"]);
        readers.until_all_go_on();
        assert_eq!(node.log().matches("mount-taken-over").count(), 4);
    }
    readers.stop();
    node.end_container();
    node.hang_up();
    systemd.unit(&["stop"]);
    assert!(!node.has_holder());
    assert_eq!(node.mounts_below(), Vec::<String>::new());
    assert_eq!(systemd.property("Result"), "success");
}

#[test]
fn a_real_systemd_restarts_it_under_readers() {
    lives_as_a_service("auto");
}

#[test]
fn a_real_systemd_keeps_its_mounts_itself() {
    lives_as_a_service("systemd");
}

/// More often than systemd starts a unit that says nothing about it (5 times in 10 s): no operator has to come for readers to
/// go on.
#[test]
fn a_real_systemd_starts_it_however_often_it_is_killed() {
    const KILLS: usize = 8;
    let kind = Kind {
        keep_with: "auto",
        ..Kind::EROFS
    };
    let mut node = Node::new(kind);
    let systemd = Systemd::start(node.dir.path(), SHIM, &node.configure());
    systemd.unit(&["start"]);
    node.run_container();
    let readers = Readers::start(4, node.files());
    readers.until_all_go_on();
    for kills in 1..=KILLS {
        // As soon as it runs, whether it is up or not.
        let begun = Instant::now();
        while systemd.property("MainPID") == "0" {
            assert!(begun.elapsed() < LONG, "not started after {} kills", kills - 1);
        }
        systemd.unit(&["kill", "--kill-who=main", "--signal=KILL"]);
        until("it is started again", &systemd, "NRestarts", &kills.to_string());
    }
    readers.until_all_go_on();
    node.until_up();
    readers.stop();
    node.end_container();
    node.hang_up();
    systemd.unit(&["stop"]);
    assert_eq!(node.mounts_below(), Vec::<String>::new());
}
