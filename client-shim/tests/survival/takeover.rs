//! What survives what: holder, service manager, clean stops, upgrades, reboots, orphans.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::disk::Disk;
use crate::holder::{ask_holder, kept_device};
use crate::manager::Manager;
use crate::node::{Kind, LONG, Node, mount_overlay};
use crate::readers::Readers;

pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + LONG;
    while !done() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn read_all(node: &Node) {
    for (path, expected) in node.files() {
        assert!(fs::read(&path).unwrap() == *expected, "{}", path.display());
    }
}

/// SIGTERM, then another process: with readers in between, who wait.
#[test]
fn an_upgrade_in_place_is_not_noticed() {
    for kind in [Kind::EROFS, Kind::FUSE, Kind::RESEND] {
        let mut node = Node::new(kind);
        node.server.latency(Duration::from_millis(3));
        node.start();
        node.run_container();
        let readers = Readers::start(4, node.files());
        readers.until_all_go_on();
        for _ in 0..2 {
            node.stop();
            assert!(node.has_holder());
            node.start();
            readers.until_all_go_on();
        }
        readers.stop();
        node.end_container();
        node.stop();
        assert!(!node.has_holder(), "it leaves when no container is left");
        assert_eq!(node.mounts_below(), Vec::<String>::new());
    }
}

/// A container's snapshot whose mount is gone may be mounted again at any moment, without a word to us: until containerd has
/// removed it, a stop leaves everything to the next start, and whoever asks meanwhile waits for that. The first stop after ends
/// it all.
#[test]
fn a_stop_leaves_the_mounts_until_containerd_has_removed_the_last_container() {
    for kind in [Kind::EROFS, Kind::FUSE, Kind::RESEND] {
        let mut node = Node::new(kind);
        node.start();
        node.run_container();
        let options = node.container_options();
        // Of the last file nothing was asked for: it is not here.
        let mut files = node.files();
        let (path, expected) = files.pop().unwrap();
        for (path, expected) in files {
            assert!(fs::read(path).unwrap() == *expected);
        }
        node.unmount_container();
        // A layer that is whole is mounted anew, for a moment beside the old one.
        let points = |node: &Node| BTreeSet::from_iter(node.mounts_below());
        let before = points(&node);
        node.stop();
        assert!(node.has_holder());
        assert_eq!(points(&node), before);
        // As containerd may, with what it was told before. Already the mount waits under the FUSE tree, for a look at its
        // lower directories.
        let container = node.container.clone();
        let reading = std::thread::spawn(move || {
            mount_overlay(&container, &options);
            fs::read(path).unwrap() == *expected
        });
        let device = kept_device(&node.root());
        eventually("a request that nobody reads", || has_requests(&device));
        drop(device);
        assert!(!reading.is_finished());
        node.start();
        eventually("the answer", || reading.is_finished());
        assert!(reading.join().unwrap());
        assert!(node.log().contains("mount-taken-over"));
        read_all(&node);
        node.end_container();
        node.stop();
        assert!(!node.has_holder());
        assert_eq!(node.mounts_below(), Vec::<String>::new());
    }
}

/// Whether the kernel has requests for whoever reads this `/dev/fuse`.
fn has_requests(device: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(device, PollFlags::IN)];
    poll(&mut polled, Some(&Timespec::default())).unwrap();
    polled[0].revents().contains(PollFlags::IN)
}

#[test]
fn the_holder_dies_and_is_replaced_and_knows_no_other_words() {
    let mut node = Node::new(Kind::FUSE);
    node.start();
    node.run_container();
    assert_eq!(ask_holder(&node.root(), b"what?").unwrap(), b"what");
    assert_eq!(ask_holder(&node.root(), &[b'x'; 1000]).unwrap(), b"what");
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(node.root().join("holder.sock")).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o600);
    // As whoever kills it would make it end.
    assert_eq!(ask_holder(&node.root(), b"quit").unwrap(), b"ok");
    eventually("another holder", || {
        ask_holder(&node.root(), b"take").is_some_and(|a| a == b"ok")
    });
    node.kill();
    node.start();
    read_all(&node);
    assert!(node.log().contains("mount-taken-over"));
}

/// Holder and shim are killed: what is left is a dead mount, which the next start replaces. It ends what is left of it, also where
/// a thread of the killed shim hangs in the kernel and has the device open, as the test has it here.
#[test]
fn without_a_keeper_the_next_start_begins_anew() {
    let mut node = Node::new(Kind::EROFS);
    node.start();
    node.run_container();
    let mut files = node.files();
    let (last, _) = files.pop().unwrap();
    for (path, expected) in files {
        assert!(fs::read(path).unwrap() == *expected);
    }
    let hung = kept_device(&node.root());
    node.kill();
    ask_holder(&node.root(), b"quit");
    let reader = std::thread::spawn(move || fs::read(last));
    eventually("a request that nobody reads", || has_requests(&hung));
    node.start();
    eventually("the reader is told", || reader.is_finished());
    assert!(reader.join().unwrap().is_err());
    drop(hung);
    // The container's own mounts died with the connection; a new one's do not.
    node.unmount_container();
    node.mount_container();
    read_all(&node);
    assert!(!node.log().contains("mount-taken-over"));
}

#[test]
fn a_reboot_rebuilds_everything_without_a_server() {
    for kind in [Kind::EROFS, Kind::FUSE] {
        let mut node = Node::new(kind);
        node.start();
        node.run_container();
        read_all(&node);
        // Fetched and durable.
        let bitmap = |n: &Node, at: usize| n.root().join("cache").join(n.layers[at].digest.hex()).join("bitmap");
        eventually("durable", || (0..2).all(|at| bitmap(&node, at).exists()));
        std::thread::sleep(Duration::from_millis(300));
        let before = node.client();
        let names = node.runtime.block_on(before.names(&[]));
        node.reboot();
        // Left by a kill in the middle of something.
        fs::create_dir_all(node.root().join("img/77")).unwrap();
        fs::create_dir_all(node.root().join("cache/half-made")).unwrap();
        fs::create_dir_all(node.root().join("snapshots/new-99/fs")).unwrap();
        node.server.down();
        node.start();
        let after = node.client();
        assert_eq!(node.runtime.block_on(after.names(&[])), names);
        node.mount_container();
        read_all(&node);
        eventually("half-made things are gone", || {
            ["img/77", "cache/half-made", "snapshots/new-99"]
                .iter()
                .all(|p| !node.root().join(p).exists())
        });
    }
}

/// A layer that was removed while its mount could not be: the next shim, which takes the rest over, undoes it.
#[test]
fn orphan_mounts_are_undone_by_a_successor() {
    let mut node = Node::new(Kind::EROFS);
    node.start();
    node.run_container();
    let orphan = node.root().join("img/4711");
    fs::create_dir(&orphan).unwrap();
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &orphan, "tmpfs", none, None).unwrap();
    node.kill();
    node.start();
    assert!(!node.mounts_below().contains(&"img/4711".to_owned()));
    assert!(!orphan.exists());
    read_all(&node);
    assert!(node.log().contains("mount-taken-over"));
}

#[test]
fn a_service_manager_keeps_mounts_and_is_told() {
    for resend in [false, true] {
        let kind = Kind {
            resend,
            keep_with: "auto",
            ..Kind::EROFS
        };
        let mut node = Node::new(kind);
        let manager = Manager::start(node.dir.path());
        node.environment = manager.environment();
        node.server.latency(Duration::from_millis(3));
        node.start();
        eventually("ready", || manager.said("READY=1") == 1);
        eventually("its watchdog is fed", || manager.said("WATCHDOG=1") > 2);
        assert!(!node.has_holder());
        node.run_container();
        let readers = Readers::start(4, node.files());
        for round in 2..4 {
            readers.until_all_go_on();
            node.kill();
            node.descriptors = manager.stored();
            assert_eq!(node.descriptors.len(), 2);
            node.start();
            readers.until_all_go_on();
            eventually("ready again", || manager.said("READY=1") == round);
            // A start that has layers to load says that it goes on.
            assert!(manager.said("EXTEND_TIMEOUT_USEC=60000000") > 0);
        }
        node.stop();
        eventually("told that it stops", || manager.said("STOPPING=1") == 1);
        node.descriptors = manager.stored();
        node.start();
        readers.stop();
        assert_eq!(node.log().matches("mount-taken-over").count(), 3);
        node.end_container();
        node.stop();
        eventually("nothing is stored any more", || manager.stored().is_empty());
    }
}

/// Another systemd, another setting: what the former keeper has goes to the new one, with somebody reading.
#[test]
fn the_keeper_may_be_another_at_each_start() {
    let kind = Kind {
        keep_with: "auto",
        ..Kind::EROFS
    };
    let mut node = Node::new(kind);
    let manager = Manager::start(node.dir.path());
    // Its store ends with a stop, or it has none.
    let old: Vec<_> = manager
        .environment()
        .into_iter()
        .filter(|(name, _)| *name != "FDSTORE")
        .collect();
    node.environment = old.clone();
    node.start();
    node.run_container();
    assert!(node.has_holder());
    assert!(manager.stored().is_empty());
    let readers = Readers::start(4, node.files());
    readers.until_all_go_on();

    node.kill();
    node.environment = manager.environment();
    node.start();
    readers.until_all_go_on();
    eventually("the manager has them", || manager.stored().len() == 2);
    eventually("the holder is gone", || !node.has_holder());

    node.kill();
    node.environment = old;
    node.descriptors = manager.stored();
    node.start();
    readers.until_all_go_on();
    eventually("the manager has them no more", || manager.stored().is_empty());
    assert!(node.has_holder());
    node.descriptors.clear();

    node.kill();
    node.start();
    readers.stop();
    assert_eq!(node.log().matches("mount-taken-over").count(), 3);
    node.end_container();
    node.stop();
    assert!(!node.has_holder());
    assert_eq!(node.mounts_below(), Vec::<String>::new());
}

/// Nobody is to keep mounts any more: the next start has what was kept, and is then the only one.
#[test]
fn a_mount_that_nobody_is_to_keep_any_more_is_taken_over_once() {
    for (managed, kind) in [(false, Kind::EROFS), (true, Kind::EROFS), (false, Kind::FUSE)] {
        let mut node = Node::new(Kind {
            keep_with: "auto",
            ..kind
        });
        let manager = managed.then(|| Manager::start(node.dir.path()));
        node.environment = manager.as_ref().map(Manager::environment).unwrap_or_default();
        node.server.latency(Duration::from_millis(3));
        node.start();
        node.run_container();
        assert_eq!(node.has_holder(), !managed);
        let readers = Readers::start(4, node.files());
        readers.until_all_go_on();

        node.kill();
        node.keep_with("nobody");
        node.descriptors = manager.as_ref().map(Manager::stored).unwrap_or_default();
        node.start();
        node.descriptors.clear();
        readers.until_all_go_on();
        readers.stop();
        read_all(&node);
        assert!(node.log().contains("mount-taken-over"), "{}", node.log());
        eventually("the holder is gone", || !node.has_holder());
        if let Some(manager) = &manager {
            eventually("nothing is stored any more", || manager.stored().is_empty());
        }
        // A stop leaves nothing, as without a keeper ever, whoever uses it.
        node.stop();
        assert_eq!(node.mounts_below(), Vec::<String>::new());
        node.unmount_container();
    }
}

/// Ready means that mounts are back: a reader that waits has its answer before or soon after, without any call.
#[test]
fn a_hung_mount_is_not_reported_well() {
    let kind = Kind {
        keep_with: "auto",
        ..Kind::FUSE
    };
    let mut node = Node::new(kind);
    let manager = Manager::start(node.dir.path());
    node.environment = manager.environment();
    node.start();
    eventually("its watchdog is fed", || manager.said("WATCHDOG=1") > 0);
    // Stopped threads are what a hang looks like from outside.
    rustix::process::kill_process(node.pid(), rustix::process::Signal::STOP).unwrap();
    let fed = manager.settle("WATCHDOG=1");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(manager.said("WATCHDOG=1"), fed);
    rustix::process::kill_process(node.pid(), rustix::process::Signal::CONT).unwrap();
    eventually("it goes on", || manager.said("WATCHDOG=1") > fed);
}

#[test]
fn a_layer_that_cannot_be_dropped_costs_nobody_the_others() {
    let mut node = Node::new(Kind::EROFS);
    node.start();
    node.run_container();
    node.kill();
    // Half-made, and somebody has mounted something in it.
    let busy = node.root().join("cache/half-made/busy");
    fs::create_dir_all(&busy).unwrap();
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &busy, "tmpfs", none, None).unwrap();
    node.start();
    let log = node.log();
    assert!(
        log.contains("mount-taken-over") && log.contains("cache-layer-not-dropped"),
        "{log}"
    );
    read_all(&node);
}

#[test]
fn a_full_disk_keeps_no_shim_from_taking_over() {
    for kind in [Kind::EROFS, Kind::FUSE] {
        let mut node = Node::new(kind);
        let disk = Disk::make_at(node.dir.path(), node.root(), 64 << 20);
        node.start();
        node.run_container();
        read_all(&node);
        node.kill();
        disk.fill();
        node.start();
        assert!(node.log().contains("mount-taken-over"), "{}", node.log());
        read_all(&node);
        node.kill();
        node.start();
        read_all(&node);
        assert_eq!(node.log().matches("mount-taken-over").count(), 2);
        node.unmount_container();
        node.kill();
        drop(disk);
    }
}
