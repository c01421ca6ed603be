//! Mutated inputs at every entry point that reads bytes of strangers: the stable driver of `headstart_server::fuzz`.
//!
//! In: the seeds, and random numbers from a seed. Out: every property held; else the input, made small, is in a file
//! whose name is printed with seed and round, to be kept in `fuzz/found` with the mend.
//! Invariant: deterministic, some seconds. `HEADSTART_FUZZ_ROUNDS` (for each entry point) and `HEADSTART_FUZZ_SEED` make it
//! longer and other.
//! Not here: the properties (`server/src/fuzz.rs`), coverage (`fuzz/`, for a nightly toolchain).

mod layers;
mod mutate;
mod seeds;
mod tars;
mod watch;

use std::path::{Path, PathBuf};

use headstart_loadtest::corpus::Rng;
use headstart_server::fuzz::{TARGETS, Target};
use mutate::{LEN_MAX, pick};
use watch::{Watchdog, call};

const RANGE_WORDS: [&str; 14] = [
    "bytes=",
    "-",
    ",",
    "0-",
    "-1",
    " ",
    "\t",
    ",,",
    "=",
    "18446744073709551615",
    "18446744073709551616",
    "1048576",
    "0-0,",
    "+1",
];

const JSON_WORDS: [&str; 22] = [
    "\"layers\":[]",
    "\"manifests\":[]",
    "\"config\":null",
    "\"mediaType\":",
    "\"digest\":",
    "\"size\":-1",
    "\"application/vnd.oci.image.index.v1+json\"",
    "\"application/vnd.oci.image.manifest.v1+json\"",
    "\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"",
    "sha512:",
    "{",
    "}",
    "[",
    "]",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ",",
    ":",
    "\"",
    "null",
    "1e999",
    "\\ud800",
    "\"platform\":{\"os\":\"linux\",\"architecture\":\"amd64\"}",
];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Where the inputs of an entry point are. What is a tar to one is a tar to the other.
fn kept(folder: &str, target: &str) -> PathBuf {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    fuzz.join(folder).join(if target == "layer" { "tar" } else { target })
}

/// What mutations of an entry point begin with.
fn pool(target: &str) -> Vec<Vec<u8>> {
    let mut pool: Vec<Vec<u8>> = seeds::of(if target == "inflate" { "tar" } else { target })
        .into_iter()
        .map(|(_, seed)| seed)
        .collect();
    if matches!(target, "tar" | "layer") {
        pool.extend(seeds::zoo_tars());
    }
    pool
}

/// One input: mutated by what its entry point reads. Half of them come from a seed directly, as what is often mutated and
/// still accepted tends to become little.
fn mutant(target: &str, rng: &mut Rng, pool: &[Vec<u8>], seeds: usize) -> Vec<u8> {
    let from = if rng.below(2) == 0 { &pool[..seeds] } else { pool };
    let (mut input, other) = (pick(rng, from).clone(), pick(rng, pool).clone());
    match target {
        "tar" | "layer" if rng.below(8) > 0 => tars::mutate(rng, &mut input, &other),
        "inflate" => {
            if rng.below(2) == 0 {
                tars::mutate(rng, &mut input, &other);
            }
            return layers::mutate(rng, &input, &other);
        }
        "range" if rng.below(8) > 0 && input.len() > 9 => {
            let mut text = input.split_off(9);
            mutate::text(rng, &mut text, &other, &RANGE_WORDS);
            if rng.below(4) == 0 {
                input[..8].copy_from_slice(&mutate::edge(rng).to_le_bytes());
            }
            input.extend(text);
        }
        "manifest" if rng.below(8) > 0 && !input.is_empty() => {
            let mut text = input.split_off(1);
            mutate::text(rng, &mut text, &other, &JSON_WORDS);
            input[0] = if rng.below(3) == 0 {
                rng.below(5) as u8
            } else {
                input[0]
            };
            input.extend(text);
        }
        "pack_damage" if rng.below(2) == 0 => input = rng.bytes(16 + rng.clone().below(120) as usize),
        _ => mutate::bytes(rng, &mut input, &other),
    }
    input
}

/// Leaves out what the failure does not need.
fn smaller(one: fn(&[u8]) -> bool, mut input: Vec<u8>) -> Vec<u8> {
    let mut step = input.len().div_ceil(2);
    let mut tries = 400;
    while step > 0 && tries > 0 {
        let mut at = 0;
        while at < input.len() && tries > 0 {
            let mut without = input.clone();
            drop(without.drain(at..(at + step).min(input.len())));
            tries -= 1;
            match call(one, &without) {
                Err(_) => input = without,
                Ok(_) => at += step,
            }
        }
        step /= 2;
    }
    input
}

fn fuzz((name, one): Target, usual_rounds: u64) {
    let seed = number("HEADSTART_FUZZ_SEED").unwrap_or(1);
    let rounds = number("HEADSTART_FUZZ_ROUNDS").unwrap_or(usual_rounds);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{seed}"));
    let watchdog = Watchdog::over(file.with_extension("hang"));
    let mut pool = pool(name);
    let seeds = pool.len();
    let mut rng = Rng::new(seed ^ name.bytes().fold(0, |n, b| n << 7 ^ u64::from(b)));
    let mut accepted = 0;
    for round in 0..rounds {
        let input = mutant(name, &mut rng, &pool, seeds);
        watchdog.next(&input);
        match call(one, &input) {
            Ok(true) => {
                accepted += 1;
                // Oddities gather: what was accepted is mutated further.
                if input.len() < LEN_MAX / 2 && name != "inflate" {
                    let at = seeds + accepted % 64;
                    pool.resize(pool.len().max(at + 1), input.clone());
                    pool[at] = input;
                }
            }
            Ok(false) => {}
            Err(how) => {
                let file = file.with_extension("input");
                std::fs::write(&file, smaller(one, input)).expect("write the input");
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
            fuzz((stringify!($target), headstart_server::fuzz::$target), $rounds);
        })*

        #[test]
        fn no_entry_point_is_left_out() {
            assert_eq!(TARGETS.map(|(name, _)| name), [$(stringify!($target)),*]);
        }
    };
}

fuzzed! {
    inflate 400,
    tar 800,
    layer 300,
    toc 500,
    toc_metadata 1500,
    chunk_stream 3000,
    pack 500,
    pack_damage 1500,
    range 6000,
    manifest 3000,
}

/// The seed corpus, and every input that failed once.
#[test]
fn every_kept_input_holds() {
    for (name, one) in TARGETS {
        let mut accepted = 0;
        for folder in ["seeds", "found"] {
            // Of most entry points nothing was ever found.
            let Ok(files) = std::fs::read_dir(kept(folder, name)) else {
                continue;
            };
            for file in files {
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

/// Writes `fuzz/seeds` anew: `cargo test -p headstart-server --test fuzz -- --ignored write_the_seeds`
#[test]
#[ignore = "it changes the repository"]
fn write_the_seeds() {
    for (name, _) in TARGETS {
        let folder = kept("seeds", name);
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        for (seed, bytes) in seeds::of(name) {
            std::fs::write(folder.join(seed), bytes).unwrap();
        }
    }
}
