//! A cache that no shim can open, while readers wait for one: they are served when it can be, and are told when it cannot.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::holder::kept_device;
use crate::manager::Manager;
use crate::node::{Kind, LONG, Node};
use crate::takeover::{eventually, read_all};

/// A file stands where the cache was, until the value is dropped.
struct HiddenCache(PathBuf);

impl HiddenCache {
    fn of(node: &Node) -> Self {
        let hidden = Self(node.root().join("cache"));
        fs::rename(&hidden.0, hidden.away()).unwrap();
        fs::write(&hidden.0, "not a directory").unwrap();
        hidden
    }

    fn away(&self) -> PathBuf {
        self.0.with_extension("away")
    }
}

impl Drop for HiddenCache {
    fn drop(&mut self) {
        // In one step: a shim that finds nothing makes a new one.
        renameat_with(CWD, self.away(), CWD, &self.0, RenameFlags::EXCHANGE).unwrap();
        fs::remove_file(self.away()).unwrap();
    }
}

/// A reader of bytes that are not here, and no shim to fetch them yet.
fn waiting_reader(node: &Node) -> std::thread::JoinHandle<std::io::Result<bool>> {
    let (path, expected) = node.files().pop().unwrap();
    std::thread::spawn(move || Ok(fs::read(path)? == *expected))
}

/// As left by a killed shim, with another started that cannot open the cache. `manager`: has the descriptors, if not a holder.
fn start_without_cache(node: &mut Node, manager: Option<&Manager>) {
    if let Some(manager) = manager {
        node.descriptors = manager.stored();
        assert_eq!(node.descriptors.len(), 2);
    }
    node.spawn();
    // The process has its own.
    node.descriptors.clear();
    let until = Instant::now() + LONG;
    while !node.log().contains("lazy-layers-not-opened") {
        assert!(!node.log().contains("no lazy layers"), "{}", node.log());
        assert!(Instant::now() < until, "{}", node.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_cache_that_cannot_be_opened_for_a_while_is_not_noticed() {
    for managed in [false, true] {
        let mut node = Node::new(Kind {
            keep_with: "auto",
            ..Kind::EROFS
        });
        let manager = managed.then(|| Manager::start(node.dir.path()));
        node.environment = manager.as_ref().map(Manager::environment).unwrap_or_default();
        node.start();
        node.run_container();
        node.kill();
        let hidden = HiddenCache::of(&node);
        let reader = waiting_reader(&node);
        start_without_cache(&mut node, manager.as_ref());
        assert!(!reader.is_finished());
        drop(hidden);
        node.until_up();
        assert!(node.log().contains("mount-taken-over"), "{}", node.log());
        assert!(reader.join().unwrap().unwrap());
        read_all(&node);
        node.end_container();
        node.stop();
        assert_eq!(node.mounts_below(), Vec::<String>::new());
    }
}

/// Nobody waits for ever: who reads from a mount that no shim can serve gets an error, and ordinary images are as ever.
#[test]
fn a_mount_that_no_shim_can_serve_is_given_up() {
    std::thread::scope(|threads| {
        for kind in [Kind::EROFS, Kind::FUSE] {
            for managed in [false, true] {
                for hanging in [false, true] {
                    threads.spawn(move || given_up(kind, managed, hanging));
                }
            }
        }
    });
}

/// `hanging`: a thread of the killed shim is still in the kernel, where it waits for an answer of the mount as readers do; so all
/// that it had open stays open. The test has it instead.
fn given_up(kind: Kind, managed: bool, hanging: bool) {
    let mut node = Node::new(Kind {
        keep_with: "auto",
        ..kind
    });
    let manager = managed.then(|| Manager::start(node.dir.path()));
    node.environment = manager.as_ref().map(Manager::environment).unwrap_or_default();
    node.start();
    node.run_container();
    let hung = hanging.then(|| match &manager {
        Some(manager) => manager.stored(),
        None => vec![kept_device(&node.root())],
    });
    node.kill();
    let hidden = HiddenCache::of(&node);
    let reader = waiting_reader(&node);
    start_without_cache(&mut node, manager.as_ref());
    node.until_up();
    eventually("the reader is told", || reader.is_finished());
    assert!(reader.join().unwrap().is_err());
    drop(hung);
    assert!(!node.has_holder());
    if let Some(manager) = &manager {
        eventually("nothing is stored any more", || manager.stored().is_empty());
    }
    let client = node.client();
    let calls = async {
        client.prepare("extract-ordinary", "", &[]).await.unwrap();
        client.commit("ordinary", "extract-ordinary", &[]).await.unwrap();
    };
    node.runtime.block_on(calls);
    // The next start has a cache again.
    node.kill();
    drop(hidden);
    node.start();
    node.unmount_container();
    node.mount_container();
    read_all(&node);
    assert!(!node.log().contains("mount-taken-over"));
    node.end_container();
}
