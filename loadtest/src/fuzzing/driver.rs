//! Many calls of one entry point.
//!
//! In: a [`Subject`]. Out: nothing, or a panic that names seed, round and the file with the input. Invariant: the same numbers
//! make the same inputs; an entry point that accepts almost nothing, or everything, is a failure of the harness.
//! Not here: mutations, the bounds of one call (`watch.rs`), inputs that are kept (`kept.rs`).

use std::path::Path;

use super::Target;
use super::mutate::LEN_MAX;
use super::watch::{Watchdog, call};
use crate::corpus::Rng;

/// Accepted inputs that are mutated further.
const POOL_MAX: usize = 64;
/// Calls that making a failing input smaller may take.
const TRIES_MAX: u32 = 400;

/// What is called, and with what.
#[derive(Debug)]
pub struct Subject<'a> {
    pub target: Target,
    /// What a test does without being asked for more.
    pub usual_rounds: u64,
    pub seeds: Vec<Vec<u8>>,
    /// Whether accepted inputs are mutated further.
    pub grows: bool,
    /// Where failing inputs go.
    pub dir: &'a Path,
}

/// `mutant` makes an input of the pool, whose first inputs, as many as it is told, are the seeds.
pub fn run(subject: Subject<'_>, mutant: impl Fn(&mut Rng, &[Vec<u8>], usize) -> Vec<u8>) {
    let (name, one) = subject.target;
    let seed = number("HEADSTART_FUZZ_SEED").unwrap_or(1);
    let rounds = number("HEADSTART_FUZZ_ROUNDS").unwrap_or(subject.usual_rounds);
    let file = subject.dir.join(format!("fuzz-{name}-{seed}"));
    let watchdog = Watchdog::over(file.with_extension("hang"));
    let mut pool = subject.seeds;
    let seeds = pool.len();
    let mut rng = Rng::new(seed ^ name.bytes().fold(0, |n, b| n << 7 ^ u64::from(b)));
    let mut accepted = 0;
    for round in 0..rounds {
        let input = mutant(&mut rng, &pool, seeds);
        watchdog.next(&input);
        match call(one, &input) {
            Ok(true) => {
                accepted += 1;
                // Oddities gather: what was accepted is mutated further.
                if input.len() < LEN_MAX / 2 && subject.grows {
                    let at = seeds + accepted % POOL_MAX;
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
    if rounds >= subject.usual_rounds {
        assert!(
            (rounds / 50..rounds).contains(&(accepted as u64)),
            "{name}: {accepted} of {rounds}"
        );
    }
}

/// Leaves out what the failure does not need.
fn smaller(one: fn(&[u8]) -> bool, mut input: Vec<u8>) -> Vec<u8> {
    let mut step = input.len().div_ceil(2);
    let mut tries = TRIES_MAX;
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

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}
