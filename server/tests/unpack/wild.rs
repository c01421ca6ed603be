//! Random tars of few names.
//!
//! In: seeds. Out: every tree is containerd's, and every layer that it does not unpack is refused.
//! Not here: what the tars are made of (`headstart_loadtest::corpus::wild_tar`).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use headstart_loadtest::corpus::wild_tar;
use headstart_loadtest::playground::containerd::Release;

use crate::number;
use crate::runtime::{PLAIN, Runtime};

#[test]
fn random_tars_become_what_containerd_unpacks() {
    let rounds = number("HEADSTART_UNPACK_ROUNDS").unwrap_or(100);
    let seed = number("HEADSTART_UNPACK_SEED").unwrap_or(1) << 32;
    let runtime = Runtime::start(Release::Machine);
    let (unpacked, different) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    runtime.each(rounds, |round| {
        let verdicts = runtime.unpack(&wild_tar(seed + round), PLAIN);
        unpacked.fetch_add(u64::from(verdicts.unpacked()), Ordering::Relaxed);
        if let Some(difference) = verdicts.difference() {
            let found = format!("seed {}, round {round}: {difference}", seed >> 32);
            different.lock().unwrap().push(found);
        }
    });
    let (unpacked, different) = (unpacked.into_inner(), different.into_inner().unwrap());
    let first = different
        .iter()
        .take(number("HEADSTART_UNPACK_SHOW").unwrap_or(5) as usize);
    let first: Vec<_> = first.cloned().collect();
    assert!(different.is_empty(), "{} differ: {}", different.len(), first.join("\n"));
    assert!(unpacked * 5 > rounds, "only {unpacked} of {rounds} were unpacked");
}
