//! Crashes of the machine, without a machine: what was written is one thing, what was synced another.
//!
//! In: a workload of the real store and the real originals, seen by a [`journal::Journal`]. Out: for a moment of it, the
//! directory as a power cut would leave it ([`image`]), and whether a store opened on that keeps its promises
//! ([`promise`]). And the same with operations that fail: every one of them, in turn.
//! Invariant: the double is harsher than any disk: unsynced bytes are lost, kept, torn or kept out of order, names that no
//! sync of their directory made durable likewise, and what a failed sync was about is lost although it can be read.
//! The power is cut right before and right after every sync, and at so many moments in between (`HEADSTART_CRASH_POINTS`,
//! `scripts/campaign.sh`; with as many as there are operations, at each). What is left of the rest is by chance each time.
//! Operations that fail are as many as a third of that, spread over all syncs and all operations. What a power cut left is opened,
//! and that is cut and fails, too, a quarter as many times as there are such moments.
//! Not here: kill -9 of a real server (`tests/kill.rs`), damage at rest (`tests/fsck`).

mod image;
mod journal;
#[path = "../../../tests/support/layers.rs"]
pub(crate) mod layers;
mod promise;
mod refusals;
mod workload;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use headstart_loadtest::corpus::Rng;

use super::Store;
use super::disk::Disk;
use super::originals::Originals;
use image::Keep;
use journal::{Fault, Journal};

/// Small packs, so that there are many.
const PACK_SIZE_MAX: u64 = 24 << 10;
const STEPS: usize = 60;

fn points(default: usize) -> usize {
    let asked = std::env::var("HEADSTART_CRASH_POINTS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn seed() -> u64 {
    let asked = std::env::var("HEADSTART_CRASH_SEED").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// In memory where there is such a place: thousands of syncs, and none of them matters.
fn dir() -> tempfile::TempDir {
    let memory = PathBuf::from("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn open(root: &std::path::Path, disk: Disk) -> (Store, Originals) {
    let store = Store::open_on(disk.clone(), root, PACK_SIZE_MAX).expect("the store opens");
    let originals = Originals::open_on(disk, root, Some("boot")).expect("the originals open");
    (store, originals)
}

/// A workload, and its journal. Whether the fault was reached.
fn run(seed: u64, fault: Option<Fault>) -> (tempfile::TempDir, Arc<Journal>) {
    let root = dir();
    let journal = Arc::new(Journal::new(root.path(), fault));
    // Not yet failing: what cannot be opened cannot lose anything.
    let (store, originals) = open(root.path(), Disk::with(journal.clone()));
    journal.arm();
    let mut work = workload::Workload::new(seed, store, originals, journal.clone());
    (0..STEPS).for_each(|_| work.step());
    work.check_live();
    drop(work);
    (root, journal)
}

#[test]
fn whatever_a_power_cut_leaves_is_right_or_missing_and_what_was_promised_is_there() {
    let mut rng = Rng::new(seed());
    let (_root, journal) = run(rng.below(1 << 40), None);
    let (ops, syncs) = (journal.len(), journal.syncs());
    assert!(ops > 300 && syncs.len() > 60, "{ops} operations, {} syncs", syncs.len());
    let every = ops.div_ceil(points(60)).max(1);
    // Elsewhere with each seed.
    let first = rng.below(every as u64) as usize;
    let around: BTreeSet<usize> = syncs.iter().flat_map(|at| [*at, at + 1]).collect();
    let between: BTreeSet<usize> = (first..=ops).step_by(every).collect();
    let moments = &around | &between;
    println!(
        "{ops} operations; cuts: {} around {} syncs, {} at every {every}th operation, {} in all",
        around.len(),
        syncs.len(),
        between.len(),
        moments.len()
    );
    assert!(around.len() > syncs.len() && between.len() >= points(60).min(ops) / 2);
    let rounds = points(60).div_ceil(ops);
    for at in std::iter::repeat_n(moments, rounds).flatten() {
        let (keep, index) = (Keep::any(&mut rng), image::IndexLeft::any(&mut rng));
        let image = dir();
        journal.image(image.path(), at, keep, index, &mut rng);
        let promises = journal.promises(at);
        promise::check(
            image.path(),
            &promises,
            &format!("cut at {at} of {ops}, {keep:?}, {index:?}"),
        );
    }
}

#[test]
fn an_operation_that_fails_costs_what_was_not_promised_at_most() {
    let mut rng = Rng::new(seed() + 1);
    // Some plans are short.
    let mut tries = (0..20).map(|_| {
        let plan = rng.below(1 << 40);
        (plan, run(plan, None).1.failable())
    });
    let long = tries.find(|(_, (failable, syncs))| *failable > 300 && syncs.len() > 60);
    let (plan, (failable, syncs)) = long.expect("a plan with something to fail at");
    let count = points(60) / 3;
    let spread = |of: usize, count: usize, shift: usize| {
        let every = of.div_ceil(count.max(1)).max(1);
        (shift % every..of).step_by(every)
    };
    let shift = rng.below(1 << 20) as usize;
    // With many points, every one of both.
    let of_syncs: BTreeSet<usize> = spread(syncs.len(), count / 2, shift).map(|at| syncs[at]).collect();
    let of_all: BTreeSet<usize> = spread(failable, count.div_ceil(2), shift).collect();
    let failing = &of_syncs | &of_all;
    println!(
        "{failable} operations, {} of them syncs; failing: {} syncs, {} of all, {} in all",
        syncs.len(),
        of_syncs.len(),
        of_all.len(),
        failing.len()
    );
    let rounds = count.div_ceil(failable);
    for at in std::iter::repeat_n(failing, rounds).flatten() {
        let fault = Fault::any(at, &mut rng);
        let (_root, journal) = run(plan, Some(fault));
        for keep in [Keep::Nothing, Keep::any(&mut rng)] {
            let image = dir();
            let (ops, index) = (journal.len(), image::IndexLeft::any(&mut rng));
            journal.image(image.path(), ops, keep, index, &mut rng);
            let promises = journal.promises(ops);
            promise::check(image.path(), &promises, &format!("{fault:?}, {keep:?}, {index:?}"));
        }
    }
}

/// What a power cut left is opened, and that is cut, or fails, too: at each of its operations.
#[test]
fn an_opening_that_is_cut_short_or_fails_can_be_repeated() {
    let mut rng = Rng::new(seed() + 2);
    let (_root, journal) = run(rng.below(1 << 40), None);
    let ops = journal.len();
    let (mut cuts, mut failures) = (0, 0);
    for _ in 0..points(60).div_ceil(4) {
        // Not before anything was promised.
        let at = ops / 4 + rng.below(ops as u64 * 3 / 4) as usize;
        let promises = journal.promises(at);
        let (keep, index) = (Keep::any(&mut rng), image::IndexLeft::any(&mut rng));
        let first = dir();
        journal.image(first.path(), at, keep, index, &mut rng);
        let what = format!("cut at {at} of {ops}, {keep:?}, {index:?}");
        // Each opening is of the same, of which there is one only.
        let again = |fault| {
            let root = dir();
            layers::copy_below(first.path(), root.path());
            let opening = Arc::new(Journal::of(root.path(), fault));
            opening.arm();
            let disk = Disk::with(opening.clone());
            let opened = Store::open_on(disk.clone(), root.path(), PACK_SIZE_MAX)
                .map_err(|error| error.to_string())
                .and_then(|store| match Originals::open_on(disk, root.path(), Some("boot")) {
                    Ok(originals) => Ok((store, originals)),
                    Err(error) => Err(error.to_string()),
                });
            (root, opening, opened.map(drop))
        };
        let (_opened, opening, opened) = again(None);
        opened.unwrap_or_else(|error| panic!("{what}: {error}"));
        for cut in 0..=opening.len() {
            let (keep, index) = (Keep::any(&mut rng), image::IndexLeft::any(&mut rng));
            let second = dir();
            opening.image(second.path(), cut, keep, index, &mut rng);
            cuts += 1;
            let what = format!("{what}; its opening at {cut} of {}, {keep:?}, {index:?}", opening.len());
            promise::check(second.path(), &promises, &what);
        }
        let (failable, _) = opening.failable();
        for failing in (0..failable).step_by(failable.div_ceil(6).max(1)) {
            let fault = Fault::any(failing, &mut rng);
            let (_failed, opening, opened) = again(Some(fault));
            let (len, keep, index) = (opening.len(), Keep::any(&mut rng), image::IndexLeft::any(&mut rng));
            let second = dir();
            opening.image(second.path(), len, keep, index, &mut rng);
            failures += 1;
            let what = format!("{what}; its opening with {fault:?}, {opened:?}, {keep:?}, {index:?}");
            promise::check(second.path(), &promises, &what);
        }
    }
    println!("{cuts} cuts of openings, {failures} that failed");
    assert!(cuts > 50 && failures > 15, "{cuts} cuts, {failures} failures");
}
