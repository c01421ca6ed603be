//! Mutated inputs at every entry point that reads what others wrote: the stable driver of `headstart_shim::fuzz`.
//!
//! In: the seeds, and random numbers from a seed. Out: every property held; else the input is in a file whose name is
//! printed with seed and round, to be kept in `fuzz/found` with the mend. Invariant: deterministic, some seconds;
//! `HEADSTART_FUZZ_ROUNDS` (for each entry point) and `HEADSTART_FUZZ_SEED` make it longer and other.
//! Not here: the properties (`client-shim/src/fuzz.rs`), mutations and the watch over a call (the server's tests).

#[path = "../../../server/tests/fuzz/mutate.rs"]
#[allow(dead_code)]
mod mutate;
mod seeds;
#[path = "../../../server/tests/fuzz/watch.rs"]
mod watch;

use std::path::{Path, PathBuf};

use headstart_loadtest::corpus::Rng;
use headstart_shim::fuzz::{TARGETS, Target};
use watch::{Watchdog, call};

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

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn kept(folder: &str, target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz")
        .join(folder)
        .join(target)
}

fn fuzz((name, one): Target, usual_rounds: u64) {
    let seed = number("HEADSTART_FUZZ_SEED").unwrap_or(1);
    let rounds = number("HEADSTART_FUZZ_ROUNDS").unwrap_or(usual_rounds);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{seed}"));
    let watchdog = Watchdog::over(file.with_extension("hang"));
    let seeds: Vec<Vec<u8>> = seeds::of(name).into_iter().map(|(_, bytes)| bytes).collect();
    let mut pool = seeds.clone();
    let mut rng = Rng::new(seed ^ name.bytes().fold(0, |n, b| n << 7 ^ u64::from(b)));
    let mut accepted = 0;
    for round in 0..rounds {
        let from = if rng.below(2) == 0 { &seeds } else { &pool };
        let (mut input, other) = (
            mutate::pick(&mut rng, from).clone(),
            mutate::pick(&mut rng, &pool).clone(),
        );
        match name {
            "shim_labels" | "shim_filters" => mutate::text(&mut rng, &mut input, &other, &WORDS),
            _ => mutate::bytes(&mut rng, &mut input, &other),
        }
        input.truncate(LEN_MAX);
        watchdog.next(&input);
        match call(one, &input) {
            Ok(true) => {
                accepted += 1;
                let at = seeds.len() + accepted % 64;
                pool.resize(pool.len().max(at + 1), input.clone());
                pool[at] = input;
            }
            Ok(false) => {}
            Err(how) => {
                let file = file.with_extension("input");
                std::fs::write(&file, &input).expect("write the input");
                panic!(
                    "{name}, seed {seed}, round {round}: {how}; the input: {}",
                    file.display()
                );
            }
        }
    }
    println!("{name}: {accepted} of {rounds} accepted");
    // A harness whose inputs all fail at the first check would find nothing.
    if rounds >= usual_rounds {
        assert!(
            (rounds / 50..rounds).contains(&(accepted as u64)),
            "{name}: {accepted} of {rounds}"
        );
    }
}

macro_rules! fuzzed {
    ($($target:ident $rounds:literal,)*) => {
        $(#[test]
        fn $target() {
            fuzz((stringify!($target), headstart_shim::fuzz::$target), $rounds);
        })*

        #[test]
        fn no_entry_point_is_left_out() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$(stringify!($target)),*]);
        }
    };
}

fuzzed! {
    shim_labels 4000,
    shim_filters 3000,
    shim_toc 400,
    shim_calls 200,
}

/// The seed corpus, and every input that failed once.
#[test]
fn every_kept_input_holds() {
    for (name, one) in TARGETS {
        let mut accepted = 0;
        for folder in ["seeds", "found"] {
            // Of most entry points nothing was ever found.
            for file in std::fs::read_dir(kept(folder, name)).into_iter().flatten() {
                let path = file.unwrap().path();
                let input = std::fs::read(&path).unwrap();
                assert!(input.len() <= 64 << 10, "{}: small files only", path.display());
                let held = call(one, &input).unwrap_or_else(|how| panic!("{}: {how}", path.display()));
                accepted += u32::from(held);
            }
        }
        assert!(accepted > 0, "no kept input of {name} is accepted");
    }
}

/// Writes `fuzz/seeds/shim_*` anew: `cargo test --workspace --test fuzz_node -- --ignored write_the_shims_seeds`
#[test]
#[ignore = "it changes the repository"]
fn write_the_shims_seeds() {
    for (name, _) in TARGETS {
        let folder = kept("seeds", name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        for (seed, bytes) in seeds::of(name) {
            std::fs::write(folder.join(seed), bytes).unwrap();
        }
    }
}
