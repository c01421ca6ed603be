//! kill -9: the next start clears the dead mount and keeps what was durable.
//!
//! The victim is this test binary, started again with only [`victim`] selected.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::node::lazy_config;
use crate::support::{FakeServer, Item, LayerBuilder, Node, noise};

const ROOT: &str = "HEADSTART_TEST_VICTIM_ROOT";
const SERVER: &str = "HEADSTART_TEST_VICTIM_SERVER";
const LAYER: &str = "HEADSTART_TEST_VICTIM_LAYER";

/// Mounts, reads one file, says so, and waits for its end.
#[test]
#[ignore = "a process that other tests start and kill"]
fn victim() {
    let (Ok(root), Ok(server), Ok(layer)) = (std::env::var(ROOT), std::env::var(SERVER), std::env::var(LAYER)) else {
        return;
    };
    let mut config = lazy_config();
    config.flush_interval_ms = 50;
    let node = Node::open_with(Path::new(&root), &[server], config).unwrap();
    let dir = node.present(&layer.parse().unwrap()).unwrap().lowerdir;
    assert!(fs::read(dir.join("a")).unwrap() == noise(30_000, 1));
    println!("victim: ready");
    // The parent kills this process; should the parent die first, it still ends.
    std::thread::sleep(Duration::from_secs(60));
}

pub struct Victim(Child);

impl Victim {
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Already dead is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn start_victim(root: &Path, server: &FakeServer, layer: &str) -> Victim {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "restart::victim",
            "--ignored",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROOT, root)
        .env(SERVER, server.url())
        .env(LAYER, layer)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let victim = Victim(child);
    let ready = out.lines().map_while(Result::ok).any(|l| l.contains("victim: ready"));
    assert!(ready, "the victim ended early");
    victim
}

fn wait_for(path: &Path) {
    let started = Instant::now();
    while !path.exists() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{} does not appear",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn after_kill_nine_the_next_start_clears_the_mount_and_keeps_the_cache() {
    let mut server = FakeServer::start();
    // One chunk for each file.
    let layer = LayerBuilder::new()
        .add("a", Item::file(noise(30_000, 1)))
        .add("b", Item::file(noise(30_000, 2)))
        .build(32 << 10);
    server.serve(&layer);
    let root = tempfile::tempdir().unwrap();
    let mut victim = start_victim(root.path(), &server, &layer.digest.to_string());
    wait_for(&root.path().join("cache").join(layer.digest.hex()).join("bitmap"));
    victim.kill();
    let dead = fs::metadata(root.path().join("mnt")).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN));

    server.down();
    let node = Node::open(root.path(), &[&server]);
    let dir = node.layers.present_known(&layer.digest).unwrap().lowerdir;
    assert!(
        fs::read(dir.join("a")).unwrap() == noise(30_000, 1),
        "durable before the kill"
    );
    assert_eq!(fs::read(dir.join("b")).unwrap_err().raw_os_error(), Some(libc::EIO));
    server.up();
    assert!(fs::read(dir.join("b")).unwrap() == noise(30_000, 2));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = format!(" {} ", root.path().canonicalize().unwrap().join("mnt").display());
    assert_eq!(mounts.matches(&ours).count(), 1, "the dead mount is gone, not covered");
}
