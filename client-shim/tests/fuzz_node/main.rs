//! Mutated inputs at every entry point that reads what others wrote: the stable driver of `headstart_shim::fuzz`.
//!
//! In: the seeds. Out: see `headstart_loadtest::fuzzing`. Invariant: some seconds.
//! Not here: the driver and mutations (`loadtest/src/fuzzing`), the properties (`client-shim/src/fuzz.rs`).

mod seeds;

use std::path::Path;

use headstart_loadtest::corpus::Rng;
use headstart_loadtest::fuzzing::mutate::{self, pick};
use headstart_loadtest::fuzzing::{self, Counting, Kept, Subject};
use headstart_shim::fuzz::{TARGETS, Target};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const LEN_MAX: usize = 16 << 10;

const WORDS: [&str; 16] = [
    "containerd.io/snapshot.ref\0",
    "containerd.io/snapshot/uidmapping\0",
    "containerd.io/snapshot/gidmapping\0",
    "0:100000:65536\0",
    "0:+1:1",
    "sha256:",
    "../../",
    "/",
    "name==",
    "labels.\"a.b/c\"==",
    "parent!=",
    "~=",
    "(a|b)*$",
    ",",
    "\"\\x41\"",
    "18446744073709551616",
];

fn mutant(target: &str, rng: &mut Rng, pool: &[Vec<u8>], seeds: usize) -> Vec<u8> {
    let from = if rng.below(2) == 0 { &pool[..seeds] } else { pool };
    let (mut input, other) = (pick(rng, from).clone(), pick(rng, pool).clone());
    match target {
        "shim_labels" | "shim_filters" => mutate::text(rng, &mut input, &other, &WORDS),
        _ => mutate::bytes(rng, &mut input, &other),
    }
    input.truncate(LEN_MAX);
    input
}

fn fuzz(target: Target, usual_rounds: u64) {
    let (name, _) = target;
    let subject = Subject {
        target,
        usual_rounds,
        seeds: seeds::of(name).into_iter().map(|(_, bytes)| bytes).collect(),
        grows: true,
        dir: Path::new(env!("CARGO_TARGET_TMPDIR")),
    };
    fuzzing::run(subject, |rng, pool, seeds| mutant(name, rng, pool, seeds));
}

headstart_loadtest::fuzzed! {
    fuzz, headstart_shim::fuzz,
    shim_labels 4000,
    shim_filters 3000,
    shim_toc 400,
    shim_calls 200,
}

/// The seed corpus, and every input that failed once.
#[test]
fn every_kept_input_holds() {
    Kept::beside(env!("CARGO_MANIFEST_DIR"), |target| target).all_hold(&TARGETS);
}

/// libFuzzer's side of the table.
#[test]
fn every_entry_point_has_its_target() {
    Kept::beside(env!("CARGO_MANIFEST_DIR"), |target| target).have_targets(&TARGETS, "headstart_shim");
}

/// Writes `fuzz/seeds/shim_*` anew: `cargo test --workspace --test fuzz_node -- --ignored write_the_shims_seeds`
#[test]
#[ignore = "it changes the repository"]
fn write_the_shims_seeds() {
    Kept::beside(env!("CARGO_MANIFEST_DIR"), |target| target).write_seeds(&TARGETS, seeds::of);
}
