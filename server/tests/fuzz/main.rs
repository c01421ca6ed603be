//! Mutated inputs at every entry point that reads bytes of strangers: the stable driver of `headstart_server::fuzz`.
//!
//! In: the seeds, and mutations that know what they mutate. Out: see `headstart_loadtest::fuzzing`.
//! Invariant: some seconds.
//! Not here: the driver (`loadtest/src/fuzzing`), the properties (`server/src/fuzz.rs`), coverage (`scripts/fuzz.sh`).

mod json;
mod layers;
mod seeds;
mod tars;

use std::path::Path;

use headstart_layer_format::ChunkDigest;
use headstart_loadtest::corpus::Rng;
use headstart_loadtest::fuzzing::mutate::{self, pick};
use headstart_loadtest::fuzzing::{self, Counting, Kept, Subject};
use headstart_server::fuzz::{TARGETS, Target, sample_chunks};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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

/// What traces and profiles are made of, beside digests of the sample's chunks.
fn profile_values(chunk: &ChunkDigest) -> Vec<Value> {
    let files = [
        "bin/tool",
        "bin/tool2",
        "bin/round",
        "data/holes",
        "data/wide",
        "up",
        "etc",
        "../x",
        "",
    ];
    let mut values: Vec<Value> = files.into_iter().map(Value::from).collect();
    for file in ["data/holes", "data/wide", "bin/more"] {
        values.push(json!({ "layer": 0, "file": file, "ms": 0 }));
        values.push(json!({ "layer": 0, "chunk": chunk, "file": file, "ms": 0 }));
        values.push(json!([file, 0, u64::MAX]));
        values.push(json!([file, 5000, 10_000]));
    }
    values.extend([
        json!({ "layer": 1, "chunk": chunk, "ms": u32::MAX }),
        json!({ "chunk": chunk, "layer": 0, "bytes": 1, "files": [["data/wide", 0, 409_600]] }),
        json!([0, 0, u32::MAX, 1]),
        json!([1, u32::MAX, u32::MAX, u64::MAX]),
        json!(chunk),
        json!("ff00"),
        json!(0),
        json!(1),
        json!([]),
        Value::Null,
    ]);
    values
}

/// Where the inputs of an entry point are. What is a tar to one is a tar to the other.
fn folder(target: &'static str) -> &'static str {
    if target == "layer" { "tar" } else { target }
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
        "trace" | "profile" | "profile_file" if rng.below(8) > 0 => {
            let chunks = sample_chunks();
            let layer = pick(rng, &chunks);
            let values = profile_values(pick(rng, layer));
            json::mutate(rng, &mut input, &other, &values);
        }
        "pack_damage" if rng.below(2) == 0 => input = rng.bytes(16 + rng.clone().below(120) as usize),
        _ => mutate::bytes(rng, &mut input, &other),
    }
    input
}

fn fuzz(target: Target, usual_rounds: u64) {
    let (name, _) = target;
    let subject = Subject {
        target,
        usual_rounds,
        seeds: pool(name),
        grows: name != "inflate",
        dir: Path::new(env!("CARGO_TARGET_TMPDIR")),
    };
    fuzzing::run(subject, |rng, pool, seeds| mutant(name, rng, pool, seeds));
}

headstart_loadtest::fuzzed! {
    fuzz, headstart_server::fuzz,
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
    trace 300,
    profile 800,
    profile_file 300,
}

/// The seed corpus, and every input that failed once.
#[test]
fn every_kept_input_holds() {
    Kept::beside(env!("CARGO_MANIFEST_DIR"), folder).all_hold(&TARGETS);
}

/// libFuzzer's side of the table.
#[test]
fn every_entry_point_has_its_target() {
    Kept::beside(env!("CARGO_MANIFEST_DIR"), folder).have_targets(&TARGETS, "headstart_server");
}

/// Writes `fuzz/seeds` anew: `cargo test --workspace --test fuzz -- --ignored write_the_seeds`
#[test]
#[ignore = "it changes the repository"]
fn write_the_seeds() {
    Kept::beside(env!("CARGO_MANIFEST_DIR"), folder).write_seeds(&TARGETS, seeds::of);
}
