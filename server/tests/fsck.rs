//! `headstart-server fsck` and the scrubber: damage at rest is found, and mended so that the layer is right again.
//!
//! In: the real binary over data directories that are damaged in every way; a server in this process that serves them
//! afterwards. Out: each damage found; with `--repair`, tars that have their DiffIDs, and a second `fsck` that finds
//! nothing. A healthy directory is the same afterwards, byte for byte.
//! Not here: damage that is met by reading (`store.rs`), kills (`kill.rs`).

#[path = "support/layers.rs"]
mod layers;
mod support;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headstart_layer_format::{BlobDigest, ChunkDigest, Toc, routes};
use headstart_loadtest::corpus::{Compression, Dialect, Flavor, LayerBuilder, Meta, Rng, SyntheticImage};
use headstart_loadtest::origin::Origin;
use headstart_server::config::Config;
use headstart_server::reclaim::Order;
use headstart_server::scrub::{self, Report};
use headstart_server::store::pins::PinTarget;
use headstart_server::store::{LayerRecord, Store};
use support::{REPOSITORY, Server};
use tokio::sync::watch;

const BINARY: &str = env!("CARGO_BIN_EXE_headstart-server");
/// Packs of half a MiB, so that there are sealed ones.
const CHUNKS_BYTES_MAX: u64 = 4 << 20;

fn image(seed: u64) -> SyntheticImage {
    let mut rng = Rng::new(seed);
    let mut layer = || {
        let mut layer = LayerBuilder::new(Dialect::Pax);
        for i in 0..3 {
            layer.file(format!("f{i}"), Meta::default(), rng.bytes(150_000));
        }
        layer.finish(Compression::Gzip)
    };
    SyntheticImage::new(Flavor::Oci, vec![layer(), layer()])
}

fn config(origin: &Origin, data: &Path) -> Config {
    let mut config = support::config(origin, data);
    config.cache.chunks_bytes_max = Some(CHUNKS_BYTES_MAX);
    config
}

/// The same for the binary.
fn write_config(dir: &Path, data: &Path) -> PathBuf {
    let path = dir.join("server.toml");
    let text = format!("data_dir = {data:?}\n[cache]\nchunks_bytes_max = {CHUNKS_BYTES_MAX}\n");
    fs::write(&path, text).unwrap();
    path
}

/// Pulls all of an image, as a client does; its layers are ready then.
async fn pull(server: &Server, image: &SyntheticImage) {
    for reference in [image.manifest_digest.to_string(), "v1".into()] {
        let (status, body) = server.fetch(&server.manifest_url(reference)).await;
        assert_eq!((status, body.unwrap()), (200, image.manifest.clone()));
    }
    for layer in &image.layers {
        let (status, body) = server.fetch(&server.blob_url(&layer.digest)).await;
        assert_eq!((status, body.unwrap()), (200, layer.blob.clone()));
        server.anybody().ready(&layer.digest).await;
    }
}

/// Everything of the image is served, as blobs and lazily; the tars are the image's own.
async fn assert_served(server: &Server, image: &SyntheticImage) {
    pull(server, image).await;
    for layer in &image.layers {
        let mut tries = 0;
        let tar = loop {
            let toc = server.anybody().ready(&layer.digest).await;
            match data(server, &layer.digest, &toc).await {
                Some(data) => break rebuild(&toc, &data),
                None => tries += 1,
            }
            assert!(tries < 3, "the data of {} breaks off", layer.digest);
        };
        assert!(tar == layer.tar, "{} is rebuilt", layer.digest);
    }
}

async fn data(server: &Server, layer: &BlobDigest, toc: &Toc) -> Option<Vec<u8>> {
    let answer = server.anybody().own(&routes::layer_data(layer)).await;
    let blob = answer.bytes().await.ok()?;
    let mut data = Vec::new();
    for chunk in toc.chunks().iter() {
        let frame = blob.get(chunk.frame.start.0 as usize..chunk.frame.end().0 as usize)?;
        let raw = zstd::bulk::decompress(frame, chunk.range.len as usize).ok()?;
        assert_eq!(ChunkDigest::of(&raw), chunk.digest);
        data.extend(raw);
    }
    Some(data)
}

fn rebuild(toc: &Toc, data: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    let written = toc.skeleton().write_tar(&mut tar, |range, out| {
        out.extend_from_slice(&data[range.start.0 as usize..range.end().0 as usize]);
        Ok(())
    });
    written.unwrap();
    tar
}

/// A data directory with the image, of a server that was stopped cleanly.
async fn template(origin: &Origin, image: &SyntheticImage) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::with(config(origin, dir.path())).await;
    pull(&server, image).await;
    let target = PinTarget::Digest(image.manifest_digest);
    assert!(server.app.store.set_pin(&target, true).unwrap());
    server.stop().await;
    assert!(layers::packs(dir.path()).len() >= 2, "there is a sealed pack");
    dir
}

fn fsck(config: &Path, more: &[&str]) -> (Option<i32>, Report, Output) {
    let mut command = Command::new(BINARY);
    command.arg("fsck").arg("--json").args(more).arg("--config").arg(config);
    let output = command.env_remove("RUST_LOG").output().unwrap();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code(), report, output)
}

/// Every file with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, BlobDigest> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(contents(&path)),
            false => drop(found.insert(path.clone(), BlobDigest::of(&fs::read(&path).unwrap()))),
        }
    }
    found
}

#[derive(Clone, Copy, Debug)]
struct Record {
    kind: u8,
    at: usize,
    payload_at: usize,
    end: usize,
}

/// Records of a pack, by STORE.md.
fn records(pack: &[u8]) -> Vec<Record> {
    let word = |at: usize| u32::from_le_bytes(pack[at..at + 4].try_into().unwrap()) as usize;
    let (mut at, mut out) = (24, Vec::new());
    while at + 28 <= pack.len() {
        assert_eq!(pack[at..at + 8], pack[16..24], "a record begins with the marker");
        let payload_at = at + 28 + usize::from(pack[at + 9]);
        let end = payload_at + word(at + 16);
        out.push(Record {
            kind: pack[at + 8],
            at,
            payload_at,
            end,
        });
        at = end;
    }
    out
}

const CHUNK: u8 = 1;
const TOC: u8 = 2;
const FACT: u8 = 3;
const STATE: u8 = 4;

/// Changes the pack with the first record of a kind.
fn damage_record(data: &Path, kind: u8, damage: impl Fn(&mut Vec<u8>, Record)) {
    for path in layers::packs(data) {
        let mut pack = fs::read(&path).unwrap();
        if let Some(record) = records(&pack).into_iter().find(|r| r.kind == kind) {
            damage(&mut pack, record);
            fs::write(&path, pack).unwrap();
            return;
        }
    }
    panic!("no record of kind {kind}");
}

#[expect(clippy::ptr_arg, reason = "as `truncate`, beside which it is passed")]
fn flip(pack: &mut Vec<u8>, record: Record) {
    pack[record.payload_at + (record.end - record.payload_at) / 2] ^= 1;
}

#[expect(clippy::ptr_arg, reason = "as `truncate`, beside which it is passed")]
fn flip_header(pack: &mut Vec<u8>, record: Record) {
    pack[record.at + 17] ^= 1;
}

#[expect(clippy::ptr_arg, reason = "as `truncate`, beside which it is passed")]
fn erase(pack: &mut Vec<u8>, record: Record) {
    pack[record.at..record.end].fill(0);
}

fn truncate(pack: &mut Vec<u8>, record: Record) {
    pack.truncate(record.payload_at + 1);
}

fn original(data: &Path, digest: &BlobDigest) -> PathBuf {
    data.join("originals/sha256")
        .join(&digest.hex()[..2])
        .join(digest.hex())
}

fn change(path: &Path, damage: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    damage(&mut bytes);
    fs::write(path, bytes).unwrap();
}

type Damage = Box<dyn Fn(&Path)>;

/// Name, what is to be found of it ("" where nothing is lost: a miss, or what an opening always mends), damage.
fn damages(image: &SyntheticImage) -> Vec<(&'static str, &'static str, Damage)> {
    let mut out: Vec<(&'static str, &'static str, Damage)> = Vec::new();
    let mut add = |name, what, damage: Damage| out.push((name, what, damage));
    let blob = image.layers[0].digest;
    let first = |data: &Path| layers::packs(data).swap_remove(0);
    let last = |data: &Path| layers::packs(data).pop().unwrap();

    add(
        "pack truncated",
        "index",
        Box::new(move |d| change(&first(d), |b| b.truncate(b.len() / 2))),
    );
    add(
        "pack emptied",
        "index",
        Box::new(move |d| change(&first(d), Vec::clear)),
    );
    add(
        "pack header flipped",
        "pack",
        Box::new(move |d| change(&first(d), |b| b[3] ^= 1)),
    );
    add(
        "pack deleted",
        "index",
        Box::new(move |d| fs::remove_file(first(d)).unwrap()),
    );
    add(
        "last pack truncated",
        "index",
        Box::new(move |d| change(&last(d), |b| b.truncate(b.len() - 1))),
    );
    add(
        "last pack deleted",
        "index",
        Box::new(move |d| fs::remove_file(last(d)).unwrap()),
    );

    add(
        "sled truncated",
        "",
        Box::new(|d| change(&d.join("index/db"), |b| b.truncate(b.len() / 2))),
    );
    let scramble = |b: &mut Vec<u8>| b.iter_mut().for_each(|byte| *byte ^= 0x55);
    add(
        "sled flipped",
        "index",
        Box::new(move |d| change(&d.join("index/db"), scramble)),
    );
    add(
        "sled deleted",
        "index",
        Box::new(|d| fs::remove_dir_all(d.join("index")).unwrap()),
    );

    add("chunk flipped", "chunk", Box::new(|d| damage_record(d, CHUNK, flip)));
    add(
        "chunk's header flipped",
        "chunk",
        Box::new(|d| damage_record(d, CHUNK, flip_header)),
    );
    add("chunk erased", "chunk", Box::new(|d| damage_record(d, CHUNK, erase)));
    add("TOC flipped", "toc", Box::new(|d| damage_record(d, TOC, flip)));
    add("TOC erased", "toc", Box::new(|d| damage_record(d, TOC, erase)));
    add("TOC truncated", "index", Box::new(|d| damage_record(d, TOC, truncate)));
    add("state flipped", "state", Box::new(|d| damage_record(d, STATE, flip)));
    add("state erased", "state", Box::new(|d| damage_record(d, STATE, erase)));
    add(
        "state truncated",
        "index",
        Box::new(|d| damage_record(d, STATE, truncate)),
    );
    add("fact flipped", "record", Box::new(|d| damage_record(d, FACT, flip)));
    add("fact erased", "record", Box::new(|d| damage_record(d, FACT, erase)));

    add(
        "original truncated",
        "original",
        Box::new(move |d| change(&original(d, &blob), |b| b.truncate(b.len() / 2))),
    );
    add(
        "original flipped",
        "original",
        Box::new(move |d| change(&original(d, &blob), |b| b[1000] ^= 1)),
    );
    // As if it had been evicted.
    add(
        "original deleted",
        "",
        Box::new(move |d| fs::remove_file(original(d, &blob)).unwrap()),
    );
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_is_found_and_mended_and_nothing_else_is_touched() {
    let image = image(1);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let healthy = template(&origin, &image).await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let toml = write_config(dir.path(), &data);

    layers::copy_tree(healthy.path(), &data);
    let before = contents(&data);
    let (code, report, output) = fsck(&toml, &[]);
    assert_eq!((code, report.damaged_count), (Some(0), 0), "{output:?}");
    assert_eq!(report.originals_count, 4, "manifest, config, two layers");
    assert_eq!(report.packs_count as usize, layers::packs(&data).len());
    assert!(report.records_count >= 8 && report.rows_count > 20, "{report:?}");
    assert_eq!(contents(&data), before, "a look changes nothing");
    let (code, report, _) = fsck(&toml, &["--repair"]);
    assert_eq!((code, report.damaged_count), (Some(0), 0));
    let kept = |files: BTreeMap<PathBuf, BlobDigest>| -> BTreeMap<_, _> {
        let index = data.join("index");
        files
            .into_iter()
            .filter(|(path, _)| !path.starts_with(&index))
            .collect()
    };
    assert_eq!(kept(contents(&data)), kept(before), "there is nothing to repair");

    for (name, what, damage) in damages(&image) {
        fs::remove_dir_all(&data).unwrap();
        layers::copy_tree(healthy.path(), &data);
        damage(&data);
        let before = contents(&data);
        let (code, report, output) = fsck(&toml, &[]);
        assert_eq!(contents(&data), before, "{name}: a look changes nothing");
        if what.is_empty() {
            assert_eq!((code, report.damaged_count), (Some(0), 0), "{name}: {output:?}");
        } else {
            assert_eq!(code, Some(1), "{name}: {output:?}");
            assert!(
                report.damages.iter().any(|d| d.what == what && !d.repaired),
                "{name}: {report:?}"
            );
            assert!(
                String::from_utf8_lossy(&output.stderr).contains("damaged and not repaired"),
                "{output:?}"
            );
        }
        let (code, report, output) = fsck(&toml, &["--repair"]);
        assert_eq!(code, Some(0), "{name}: {output:?}");
        assert_eq!(report.damaged_count == 0, what.is_empty(), "{name}: {report:?}");
        let (code, report, output) = fsck(&toml, &[]);
        assert_eq!(
            (code, report.damaged_count),
            (Some(0), 0),
            "{name}: once more: {output:?}"
        );
        // What was set aside was damaged, and what was not is in its place.
        for entry in fs::read_dir(data.join("quarantine")).into_iter().flatten() {
            let entry = entry.unwrap();
            let bytes = fs::read(entry.path()).unwrap();
            let (_, of) = entry
                .file_name()
                .to_str()
                .unwrap()
                .split_once('-')
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .unwrap();
            assert_ne!(BlobDigest::of(&bytes).hex(), of, "{name}");
        }
        for path in contents(&data.join("originals")).keys() {
            let (hex, bytes) = (path.file_name().unwrap().to_str().unwrap(), fs::read(path).unwrap());
            assert!(hex == "boot-id" || BlobDigest::of(&bytes).hex() == hex, "{name}: {hex}");
        }
        let untouched = image.layers[1].digest;
        assert!(original(&data, &untouched).exists(), "{name}");

        let server = Server::with(config(&origin, &data)).await;
        assert_eq!(server.app.store.open_report().damaged_records, 0, "{name}");
        assert!(!server.app.store.open_report().index_rebuilt, "{name}");
        assert_served(&server, &image).await;
        server.stop().await;
    }
}

/// A record with the right CRC may still hold the wrong bytes: what was wrong in memory before it was written.
#[test]
fn contents_are_compared_with_their_digests_and_not_with_checksums_only() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let toml = write_config(dir.path(), &data);
    let store = Store::open(&data).unwrap();
    let (good, _) = layers::publish(&store, "good", 0..3);
    let raw = layers::chunk_bytes(7);
    let wrong = headstart_layer_format::toc::ChunkEntry {
        digest: ChunkDigest::of(b"something else"),
        ..layers::put_chunk(&store, &raw)
    };
    let frame = zstd::bulk::compress(&raw, 3).unwrap();
    store.append_chunk(&wrong.digest, wrong.raw_len, &frame).unwrap();
    let bad = BlobDigest::of(b"bad");
    store.publish_layer(&bad, &layers::toc_of(&bad, vec![wrong])).unwrap();
    drop(store);
    let (code, report, output) = fsck(&toml, &[]);
    assert_eq!((code, report.damaged_count), (Some(1), 1), "{output:?}");
    assert_eq!(report.damages[0].what, "chunk");
    assert_eq!(fsck(&toml, &["--repair"]).0, Some(0));
    assert_eq!(fsck(&toml, &[]).1.damages, []);
    let store = Store::open(&data).unwrap();
    assert_eq!(store.layer(&bad).unwrap(), None, "it is to be converted again");
    layers::assert_ready(&store, &good);
}

/// What the index knows of a damaged fact is in the packs again: also without the index, nothing is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn facts_whose_records_are_damaged_survive_the_index() {
    let image = image(2);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let healthy = template(&origin, &image).await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let toml = write_config(dir.path(), &data);
    layers::copy_tree(healthy.path(), &data);
    let knows = |data: &Path| {
        let store = Store::open_with(data, CHUNKS_BYTES_MAX / 8).unwrap();
        let mut members: Vec<_> = image.layers.iter().map(|l| store.sources(&l.digest).unwrap()).collect();
        members.push(store.sources(&image.manifest_digest).unwrap());
        (members, store.all_tags().unwrap(), store.pins().unwrap())
    };
    let before = knows(&data);
    assert!(before.0.iter().all(|sources| sources.len() == 1) && before.1.len() == 1 && before.2.len() == 1);
    for path in layers::packs(&data) {
        let mut pack = fs::read(&path).unwrap();
        for record in records(&pack).into_iter().filter(|r| r.kind == FACT) {
            flip(&mut pack, record);
        }
        fs::write(&path, pack).unwrap();
    }
    let (code, _, output) = fsck(&toml, &["--repair"]);
    assert_eq!(code, Some(0), "{output:?}");
    assert_eq!(knows(&data), before);
    fs::remove_dir_all(data.join("index")).unwrap();
    assert_eq!(knows(&data), before, "the packs say the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_server_checks_and_mends_itself() {
    let image = image(3);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let toml = write_config(dir.path(), &data);
    let server = Server::with(config(&origin, &data)).await;
    pull(&server, &image).await;
    let ask = |more: &'static [&'static str]| {
        let toml = toml.clone();
        async move { tokio::task::spawn_blocking(move || fsck(&toml, more)).await.unwrap() }
    };
    let fast = &["--bytes-per-sec", "0"];
    let (code, report, output) = ask(fast).await;
    assert_eq!(
        (code, report.damaged_count, report.originals_count),
        (Some(0), 0, 4),
        "{output:?}"
    );
    change(&original(&data, &image.layers[0].digest), |b| b[100] ^= 1);
    damage_record(&data, CHUNK, flip);
    damage_record(&data, STATE, flip);
    damage_record(&data, TOC, flip_header);
    let (code, report, output) = ask(fast).await;
    assert_eq!(code, Some(1), "{output:?}");
    let found: HashSet<&str> = report.damages.iter().map(|d| d.what.as_str()).collect();
    for what in ["original", "chunk", "toc", "state", "record"] {
        assert!(found.contains(what), "{what}: {report:?}");
    }
    assert!(report.damages.iter().all(|d| !d.repaired));
    assert!(original(&data, &image.layers[0].digest).exists(), "nothing is changed");
    let (code, report, output) = ask(&["--repair", "--bytes-per-sec", "0"]).await;
    assert_eq!(code, Some(0), "{output:?}");
    assert!(report.damaged_count >= 5 && report.repaired_count == report.damaged_count);
    assert!(!original(&data, &image.layers[0].digest).exists(), "it is set aside");
    assert_served(&server, &image).await;
    let (code, report, output) = ask(fast).await;
    assert_eq!((code, report.damaged_count), (Some(0), 0), "{output:?}");
    // Whole packs, under the server: the one that is gone is read through the file that is open still, or not at all.
    let mut packs = layers::packs(&data);
    packs.pop();
    let rest = packs.split_off(1);
    fs::remove_file(&packs[0]).unwrap();
    for pack in &rest {
        change(pack, |b| b.truncate(b.len() - 100));
    }
    let (code, report, output) = ask(&["--repair", "--bytes-per-sec", "0"]).await;
    assert_eq!(code, Some(0), "{output:?}");
    assert!(report.damages.iter().any(|d| d.what == "pack"), "{report:?}");
    assert_served(&server, &image).await;
    let (code, report, output) = ask(fast).await;
    assert_eq!((code, report.damaged_count), (Some(0), 0), "{output:?}");
    let metrics = server
        .get(&format!("http://{}/metrics", server.address))
        .await
        .text()
        .await
        .unwrap();
    let value = |name: &str| metrics.lines().any(|line| line.starts_with(name));
    assert!(value("headstart_scrub_damage_total{"), "{metrics}");
    assert!(value("headstart_scrubbed_bytes_total{"), "{metrics}");
    server.stop().await;
}

/// By itself, and it goes on where it was after a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_scrubs_by_itself() {
    let image = image(4);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&origin, dir.path());
    config.scrub.interval_ms = 50;
    let server = Server::with(config.clone()).await;
    pull(&server, &image).await;
    let victim = original(dir.path(), &image.layers[1].digest);
    change(&victim, |b| b[0] ^= 1);
    soon("the damaged original is set aside", || !victim.exists()).await;
    assert_served(&server, &image).await;
    server.stop().await;

    // So slow that it does not get beyond the originals; they come before the packs.
    config.scrub.bytes_per_sec = 1;
    let server = Server::with(config.clone()).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    server.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(60), "a rest ends with a stop");
    let state =
        || -> serde_json::Value { serde_json::from_slice(&fs::read(dir.path().join("scrub.json")).unwrap()).unwrap() };
    assert_eq!(state()["position"]["stage"], "originals", "{}", state());
    change(&victim, |b| b[0] ^= 1);
    config.scrub.bytes_per_sec = 0;
    let server = Server::with(config).await;
    soon("it goes on", || !victim.exists()).await;
    server.stop().await;
}

async fn soon(what: &str, is: impl Fn() -> bool) {
    for _ in 0..600 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what}: not within 30 s");
}

/// Conversions, evictions, sweeps, reads and originals that come and go, while scrubs that repair run without a pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scrub_beside_everything_else_finds_no_damage() {
    let origin = Origin::with_image(REPOSITORY, "v1", &image(5));
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(&origin, dir.path());
    // The smallest packs there are: 64 KiB.
    config.cache.chunks_bytes_max = Some(512 << 10);
    let server = Server::with(config).await;
    let (app, stop, swept) = (server.app.clone(), AtomicBool::new(false), AtomicU64::new(0));
    let rounds = std::env::var("HEADSTART_SCRUB_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(60);
    let name = |n: u32| format!("layer {}", n % 7);
    let chunks = |n: u32| (n % 7) * 3..(n % 7) * 3 + 6;
    let handle = tokio::runtime::Handle::current();
    let reports = tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let busy = || !stop.load(Ordering::Relaxed);
            for first in 0..2 {
                let (store, handle) = (app.store.clone(), handle.clone());
                let (reclaimer, swept) = (app.reclaimer.clone(), &swept);
                scope.spawn(move || {
                    let mut n = first;
                    while busy() {
                        n += 1;
                        let layer = BlobDigest::of(name(n).as_bytes());
                        // It may lack a chunk that was evicted in the moment before: then it is not published.
                        let _ = convert(&store, &name(n), chunks(n));
                        if let Some(_hold) = store.hold_layer(&layer)
                            && let Some(LayerRecord::Ready { .. }) = store.layer(&layer).unwrap()
                        {
                            layers::assert_ready(&store, &layer);
                        }
                        if n % 3 == 0 {
                            let order = Order::Remove([layer].into());
                            let report = handle.block_on(reclaimer.order(order)).unwrap();
                            swept.fetch_add(report.packs_count, Ordering::Relaxed);
                        }
                    }
                });
            }
            let originals = app.originals.clone();
            scope.spawn(move || {
                for n in 0u64.. {
                    if !busy() {
                        break;
                    }
                    let bytes = support::noise(50_000, n % 5);
                    let digest = BlobDigest::of(&bytes);
                    originals.put(&digest, &bytes).unwrap();
                    originals.remove(&digest).unwrap();
                    originals.put(&digest, &bytes).unwrap();
                }
            });
            let mut reports = Vec::new();
            for n in 0..rounds {
                let (progress, _listening) = watch::channel(scrub::Progress::default());
                let order = scrub::Order {
                    repair: true,
                    // Every fourth so slowly that there are rests in it.
                    bytes_per_sec: Some(if n % 4 == 0 { 4_000_000 } else { 0 }),
                    progress,
                };
                reports.push(handle.block_on(app.scrubber.order(order)));
            }
            stop.store(true, Ordering::Relaxed);
            reports
        })
    });
    let mut read = 0;
    for report in reports {
        let report = report.unwrap();
        assert_eq!(report.damages, []);
        read += report.records_count;
    }
    let swept = swept.into_inner();
    assert!(read > 0 && swept > 0, "{read} records read, {swept} packs swept");
    assert!(!dir.path().join("quarantine").exists());
    drop(app);
    server.stop().await;
}

/// As `layers::publish`, with a conversion's hold on what it found stored.
fn convert(store: &Store, name: &str, chunks: std::ops::Range<u32>) -> Result<(), headstart_server::store::StoreError> {
    let conversion = store.begin_conversion();
    let layer = BlobDigest::of(name.as_bytes());
    let mut entries = Vec::new();
    for n in chunks {
        let raw = layers::chunk_bytes(n);
        let digest = ChunkDigest::of(&raw);
        let frame_len = match conversion.chunk_frame_len(&digest)? {
            Some(len) => len,
            None => {
                let frame = zstd::bulk::compress(&raw, 3).unwrap();
                conversion.append_chunk(&digest, raw.len() as u32, &frame)?.0
            }
        };
        entries.push(headstart_layer_format::toc::ChunkEntry {
            digest,
            raw_len: raw.len() as u32,
            frame_len,
        });
    }
    conversion
        .publish_layer(&layer, &layers::toc_of(&layer, entries))
        .map(drop)
}

#[test]
fn a_dead_server_is_told_apart_and_wrong_usage_is_status_two() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let toml = write_config(dir.path(), &data);
    let run = |more: &[&str]| {
        let mut command = Command::new(BINARY);
        command.arg("fsck").args(more).arg("--config").arg(&toml);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, said) = run(&[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("failed to find a store in"), "{said}");
    drop(Store::open(&data).unwrap());
    assert_eq!(run(&[]), (Some(0), String::new()));
    assert_eq!(run(&["--mend"]).0, Some(2));
    // As SIGKILL leaves it.
    drop(std::os::unix::net::UnixListener::bind(data.join("admin.sock")).unwrap());
    let (code, said) = run(&[]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("no server listens on it"), "{said}");
    let (code, said) = run(&["--socket", data.join("admin.sock").to_str().unwrap()]);
    assert_eq!(code, Some(1));
    assert!(said.contains("reach a running server"), "{said}");
    let _used = Store::open(&data).unwrap();
    let (code, said) = run(&["--repair"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("another process uses the store"), "{said}");
}
