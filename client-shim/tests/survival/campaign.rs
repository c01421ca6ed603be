//! The survival test: readers of files that were not fetched yet, while shim, server or both are killed at random, the shim is
//! stopped as an upgrade does, and the network between them is cut.
//!
//! `HEADSTART_SURVIVAL_ROUNDS` says how often for each of the forms (without it: twice); then it also prints what it saw.
//! With `HEADSTART_SURVIVAL_STRICT=1` no reader may be stuck for longer than 2 s after a successor is up.

use std::time::{Duration, Instant};

use crate::network::Network;
use crate::node::{Kind, Node};
use crate::readers::Readers;

const READERS: u64 = 6;
/// A shim is killed at any time up to this after it is up.
const LIFE_MAX: Duration = Duration::from_millis(120);

/// Who dies in a round.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Shim,
    /// Nobody: the shim is stopped, in the middle of whatever it does.
    Stopped,
    /// The server, while the shim lives on, then the shim too.
    ServerThenShim,
    /// The server, and the next shim starts without one.
    Both,
    /// The network is cut while the shim lives on; it comes back, is cut again, and then the shim dies.
    NetworkThenShim,
    /// The next shim starts without a network.
    Network,
    /// Nor is there a server when the network is back.
    NetworkAndServer,
}

impl Victim {
    fn needs_network(self) -> bool {
        matches!(self, Self::NetworkThenShim | Self::Network | Self::NetworkAndServer)
    }
}

/// The longest that a reader may wait once the successor is up: what is promised, where nothing else keeps the machine busy, as
/// `scripts/campaign.sh` has it. Elsewhere more than any machine needs, and less than a reader that waits for a time-out.
fn stuck_max() -> Duration {
    let strict = std::env::var_os("HEADSTART_SURVIVAL_STRICT").is_some_and(|v| v == "1");
    Duration::from_secs(if strict { 2 } else { 20 })
}

fn rounds() -> Option<u32> {
    std::env::var("HEADSTART_SURVIVAL_ROUNDS").ok()?.parse().ok()
}

fn survive(kind: Kind, victims: &[Victim]) {
    let network = victims.iter().any(|v| v.needs_network()).then(Network::new);
    let mut node = Node::in_network(kind, network);
    node.server.latency(Duration::from_millis(3));
    node.start();
    node.run_container();
    let readers = Readers::start(READERS, node.files());
    readers.until_all_go_on();
    let mut state = u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut pause = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        std::thread::sleep(LIFE_MAX.mul_f64((state % 1000) as f64 / 1000.0));
    };
    let (mut from_start, mut from_up) = (Duration::ZERO, Duration::ZERO);
    let count = rounds().unwrap_or(victims.len().max(2) as u32);
    for round in 0..count {
        let victim = victims[round as usize % victims.len()];
        pause();
        match victim {
            Victim::Shim => node.kill(),
            Victim::Stopped => node.stop(),
            Victim::ServerThenShim => {
                node.server.down();
                pause();
                node.kill();
                node.server_up();
            }
            Victim::Both => {
                node.kill();
                node.server.down();
            }
            Victim::NetworkThenShim => {
                node.network().cut();
                pause();
                node.network().mend();
                readers.until_all_go_on();
                node.network().cut();
                pause();
                node.kill();
                node.network().mend();
            }
            Victim::Network => {
                node.network().cut();
                assert!(!node.reaches_server(), "a cut that is none");
                node.kill();
            }
            Victim::NetworkAndServer => {
                node.network().cut();
                pause();
                node.server.down();
                node.kill();
            }
        }
        // Every other round, what had been fetched is to be fetched again.
        if round % 2 == 0 {
            node.lose_cache();
        }
        pause();
        let started = Instant::now();
        node.spawn();
        // It must not need the server to be there again.
        match victim {
            Victim::Shim | Victim::Stopped | Victim::ServerThenShim | Victim::NetworkThenShim => {}
            Victim::Both => {
                node.until_up();
                pause();
                node.server_up();
            }
            Victim::Network => {
                node.until_up();
                pause();
                node.network().mend();
            }
            Victim::NetworkAndServer => {
                node.until_up();
                pause();
                node.network().mend();
                pause();
                node.server_up();
            }
        }
        node.until_up();
        let waited = readers.until_all_go_on();
        assert!(
            waited <= stuck_max(),
            "after {victim:?} readers were stuck for {waited:?}"
        );
        from_up = from_up.max(waited);
        from_start = from_start.max(started.elapsed());
    }
    let reads = readers.stop();
    assert_eq!(
        node.log().matches("mount-taken-over").count(),
        count as usize,
        "{}",
        node.log()
    );
    assert!(
        node.server.chunk_requests() > count as usize,
        "nothing was left to fetch"
    );
    if rounds().is_some() {
        println!(
            "survival: {kind:?} {victims:?}: {count} ends, {reads} reads right, all readers on {} ms after the successor \
             was up ({} ms after it was started), chunk requests {}",
            from_up.as_millis(),
            from_start.as_millis(),
            node.server.chunk_requests(),
        );
    }
    node.end_container();
    node.stop();
    assert_eq!(node.mounts_below(), Vec::<String>::new(), "nobody uses them any more");
    assert!(!node.has_holder());
}

const SHIM: [Victim; 3] = [Victim::Shim, Victim::Shim, Victim::Stopped];

#[test]
fn erofs_from_the_table() {
    survive(Kind::EROFS, &SHIM);
}

#[test]
fn erofs_resent() {
    let kind = Kind {
        resend: true,
        ..Kind::EROFS
    };
    survive(kind, &SHIM);
}

#[test]
fn fuse_tree_from_the_table() {
    survive(Kind::FUSE, &SHIM);
}

#[test]
fn fuse_tree_resent() {
    survive(Kind::RESEND, &SHIM);
}

#[test]
fn servers_go_too() {
    survive(Kind::EROFS, &[Victim::ServerThenShim, Victim::Both]);
}

#[test]
fn servers_go_too_under_the_fuse_tree() {
    survive(Kind::FUSE, &[Victim::Both, Victim::ServerThenShim]);
}

const CUTS: [Victim; 3] = [Victim::NetworkThenShim, Victim::Network, Victim::NetworkAndServer];

#[test]
fn the_network_goes_too() {
    survive(Kind::EROFS, &CUTS);
}

#[test]
fn the_network_goes_too_under_the_fuse_tree() {
    survive(Kind::FUSE, &CUTS);
}
