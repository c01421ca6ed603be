//! A real container reads its whole image, file by file at random, and checks every byte, while the shim is killed under it.
//!
//! `HEADSTART_SURVIVAL_ROUNDS` says how often the shim is killed (without it: 4 times for each presentation). With
//! `HEADSTART_SURVIVAL_STRICT=1` the container may not be stuck for longer than 2 s after a successor is up.

use std::path::Path;
use std::time::{Duration, Instant};

use headstart_loadtest::playground::{
    container::Container,
    lab::Lab,
    measure,
    node::{Node, Pulls},
    process::Process,
    shim::Shim,
};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::support::{declines, warm_proxy, with_lab};

/// Checks files against what their packages say of them, again and again until it is told to stop, and says how many it
/// checked, ten times a second if it can. Whatever goes wrong is an exception, and ends it.
const CHECKER: &str = r#"
import glob, hashlib, os, random, time
sums = []
for name in glob.glob("/var/lib/dpkg/info/*.md5sums"):
    for line in open(name):
        digest, path = line.rstrip("\n").split("  ", 1)
        path = "/" + path
        if os.path.isfile(path):
            sums.append((digest, path))
assert len(sums) > 1000, len(sums)
checked, told = 0, 0
while not os.path.exists("/stop"):
    digest, path = random.choice(sums)
    with open(path, "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert hashlib.md5(f.read()).hexdigest() == digest, path
    checked += 1
    if time.monotonic() - told > 0.1:
        told = time.monotonic()
        print("CHECKED", checked, flush=True)
print("GOOD", checked, flush=True)
"#;

/// The shim that runs, and on whatever way out the end of what it keeps.
struct Successor<'a> {
    process: Option<Process>,
    root: &'a Path,
}

impl Drop for Successor<'_> {
    fn drop(&mut self) {
        self.process.take();
        Shim::end_holder(self.root);
    }
}

/// The longest that the container may wait once the successor is up: what is promised, where nothing else keeps the machine busy,
/// as `scripts/campaign.sh` has it; elsewhere more than any machine needs.
fn stuck_max() -> Duration {
    let strict = std::env::var_os("HEADSTART_SURVIVAL_STRICT").is_some_and(|v| v == "1");
    Duration::from_secs(if strict { 2 } else { 20 })
}

async fn survive(lab: &Lab, pulls: Pulls, name: &str) {
    let rounds = std::env::var("HEADSTART_SURVIVAL_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok());
    let proxy = warm_proxy(lab).await;
    let node: Node = lab.node(name, pulls, Some(&proxy)).await.unwrap();
    node.pull().await.unwrap();
    assert_eq!(declines(&node), Vec::<String>::new());
    let mut container = Container::start(&node, "checker", &["python3", "-c", CHECKER]).unwrap();
    container.until_printed("CHECKED").await.unwrap();
    let shim = node.shim.as_ref().unwrap();
    // Whatever fails from here on must not leave the container waiting for a shim.
    let mut running = Successor {
        process: None,
        root: &shim.root,
    };
    let first = Pid::from_raw(shim.process.pid().cast_signed()).unwrap();
    kill_process(first, Signal::KILL).unwrap();
    // Its owner wants the status.
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(first), ended).unwrap();
    let mut slowest = Duration::ZERO;
    for round in 0..rounds.unwrap_or(4) {
        if round > 0 {
            // Whatever it is doing now; a little more each time.
            tokio::time::sleep(Duration::from_millis(17 * (round % 12))).await;
            running.process.take().unwrap().kill();
        }
        if round % 3 == 2 {
            measure::drop_page_cache();
        }
        running.process = Some(shim.successor(node.work(), &format!("{name}-{round}")).await.unwrap());
        let up = Instant::now();
        // It goes on, or has ended, which is an error here.
        let waited = container.until_printed_after("CHECKED", up).await.unwrap();
        assert!(waited <= stuck_max(), "it was stuck for {waited:?}");
        slowest = slowest.max(waited);
    }
    container.exec("stop", &["touch", "/stop"]).await.unwrap();
    let printed = container.output().await.unwrap();
    assert!(printed.contains("GOOD"), "{printed}");
    if let Some(rounds) = rounds {
        let last = printed.trim().lines().last().unwrap_or_default();
        println!(
            "survival: {pulls:?}: {rounds} kills under a container, {last} files, at most {slowest:?} until another was right"
        );
    }
    // When the holder leaves is decided by snapshots, which containerd's collector takes when it likes: `tests/survival` of
    // the shim shows that without a container.
    let stopped = running.process.take().unwrap().stop();
    assert!(stopped.is_some_and(|status| status.success()));
}

#[test]
fn a_container_checks_its_files_while_the_shim_is_killed() {
    with_lab(|turn| async move {
        survive(&turn.lab, Pulls::LazyKept, "node-k").await;
    });
}

#[test]
fn a_container_checks_its_files_while_the_shim_is_killed_under_the_fuse_tree() {
    with_lab(|turn| async move {
        survive(&turn.lab, Pulls::LazyFuseKept, "node-kf").await;
    });
}
