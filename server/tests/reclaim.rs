//! Reclaiming beside everything else: readers, conversions and fetches under way, and what the disk says afterwards.
//!
//! What goes, and in which order, and kills in the middle of it, are in `evict.rs`.

#[path = "support/layers.rs"]
mod layers;
mod support;

use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use headstart_layer_format::api::ChunksRequest;
use headstart_layer_format::toc::ChunkEntry;
use headstart_layer_format::{BlobDigest, ChunkDigest, routes};
use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::{Auth, Origin, Target};
use headstart_server::reclaim::{Order, Report};
use headstart_server::store::pins::PinTarget;
use headstart_server::store::plan::{Reason, Wanted};
use headstart_server::store::{LayerRecord, Store};
use layers::{assert_ready, publish, toc_of};
use support::{REPOSITORY, Server, UPSTREAM, config, until};

fn open(dir: &Path) -> Store {
    Store::open_with(dir, 16 << 10).expect("open the store")
}

fn removing(layers: &[BlobDigest]) -> Wanted {
    Wanted {
        bytes_max: u64::MAX,
        reason: Reason::Budget,
        used_before_unix_ms: 0,
        pinned: HashSet::new(),
        removed: layers.iter().copied().collect(),
        refusals_max: u64::MAX,
    }
}

/// One cycle that rewrites every pack.
fn collect(store: &Store, wanted: &Wanted) {
    let cycle = store.cycle();
    let mut plan = store.plan(wanted, &|| true).unwrap().unwrap();
    store.evict(&mut plan).unwrap();
    store.seal_current_pack().unwrap();
    for (pack, _) in store.sealed_packs() {
        let swept = store.sweep_pack(&cycle, pack, &plan.live, &mut |_| true).unwrap();
        assert!(swept.is_some());
    }
}

/// Files below `dir` with the bytes they have on the disk.
fn files(dir: &Path) -> BTreeMap<PathBuf, u64> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        // It may go while we look.
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path, metadata.blocks() * 512);
        }
    }
    found
}

fn disk_usage(dir: &Path) -> u64 {
    files(dir).values().sum()
}

/// Files below `dir` that this process has open although they are deleted.
fn deleted_but_open(dir: &Path) -> Vec<String> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let names = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    let names = names.filter_map(|name| name.to_str().map(str::to_owned));
    names
        .filter(|name| name.starts_with(dir.to_str().unwrap()) && name.ends_with("(deleted)"))
        .collect()
}

#[test]
fn a_sweep_does_not_overtake_a_state_that_is_being_committed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let layer = BlobDigest::of(b"layer");
    let stop = AtomicBool::new(false);
    let reason = |store: &Store| match store.layer(&layer).unwrap() {
        Some(LayerRecord::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    let last = std::thread::scope(|scope| {
        let sweeping = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                collect(&store, &removing(&[]));
            }
        });
        let mut last = String::new();
        for n in 0..400 {
            last = format!("reason {n}");
            store.refuse_layer(&layer, &last).unwrap();
            std::thread::yield_now();
            assert_eq!(reason(&store), last, "what was recorded counts");
        }
        stop.store(true, Ordering::Relaxed);
        sweeping.join().unwrap();
        last
    });
    store.commit().unwrap();
    assert_eq!(reason(&store), last);
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    assert_eq!(reason(&open(dir.path())), last, "the packs say the same");
}

#[test]
fn the_space_of_swept_packs_is_free_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let all: Vec<_> = (0..12)
        .map(|n| publish(&store, &format!("layer {n}"), n * 8..n * 8 + 8).0)
        .collect();
    // Every pack has been read.
    for layer in &all {
        assert_ready(&store, layer);
    }
    let packs = dir.path().join("packs");
    let (before, counted) = (disk_usage(&packs), store.pack_bytes());
    collect(&store, &removing(&all[1..]));
    assert_eq!(deleted_but_open(dir.path()), Vec::<String>::new());
    assert_ready(&store, &all[0]);
    let after = disk_usage(&packs);
    assert!(after * 3 < before, "{before} {after}");
    assert!(store.pack_bytes() * 3 < counted);
    // A file takes whole blocks.
    assert!(after.abs_diff(store.pack_bytes()) <= 4096 * (files(&packs).len() as u64 + 1));
}

#[test]
fn a_layer_that_is_removed_while_it_is_read_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (layer, toc) = publish(&store, "read", 0..8);
    let hold = store.hold_layer(&layer).unwrap();
    collect(&store, &removing(&[layer]));
    assert!(
        store.layer(&layer).unwrap().is_none(),
        "it is gone for whoever comes now"
    );
    for chunk in toc.chunks().entries() {
        assert!(store.read_chunk(&chunk.digest).unwrap().is_some());
    }
    drop(hold);
    collect(&store, &removing(&[]));
    let first = toc.chunks().entries()[0].digest;
    assert!(store.read_chunk(&first).unwrap().is_none(), "and then for everybody");
    publish(&store, "read", 0..8);
    assert_ready(&store, &layer);
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_that_are_asked_for_by_digest_are_a_use_of_their_layer() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let server = Server::start(&origin, dir.path()).await;
    let store = &server.app.store;
    let (old, toc) = publish(store, "old", 0..4);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let (new, _) = publish(store, "new", 8..12);
    let used = |layer| store.layer_used_ms(layer).unwrap();
    assert!(used(&old) < used(&new));
    tokio::time::sleep(Duration::from_millis(5)).await;
    let unknown = BlobDigest::of(b"unknown");
    let ask = ChunksRequest {
        chunks: toc.chunks().entries().iter().map(|c| c.digest).collect(),
        layers: vec![old, unknown],
    };
    let url = format!("http://{}{}", server.address, routes::CHUNKS);
    let answer = reqwest::Client::new().post(url).json(&ask).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.bytes().await.unwrap().is_empty());
    assert!(used(&old) > used(&new));
    until("the end of the reading", || {
        // What is not read any more goes; what was never here is not remembered.
        let plan = store.plan(&removing(&[]), &|| true).unwrap().unwrap();
        let all = Wanted {
            bytes_max: 0,
            ..removing(&[])
        };
        let gone = store.plan(&all, &|| true).unwrap().unwrap().victims;
        plan.kept == 2 && gone.len() == 2
    })
    .await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_under_way_keeps_its_partial_however_old_it_looks() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let content = support::noise(400_000, 7);
    let digest = origin.add_blob(REPOSITORY, content.clone());
    let gate = origin.hold(Target::Digest(digest), 200_000);
    let mut config = config(&origin, dir.path());
    config.cache.originals_bytes_max = Some(500_000);
    config.cache.originals_ttl_ms = 3_600_000;
    let server = Server::with(config).await;
    let url = server.blob_url(&digest);
    let fetched = {
        let client = reqwest::get(url);
        tokio::spawn(async move { client.await.unwrap().bytes().await.unwrap() })
    };
    let partial = server.app.originals.partial_path(&digest, UPSTREAM);
    let begun = || std::fs::metadata(&partial).is_ok_and(|m| m.blocks() * 512 >= 100_000);
    until("the fetch", begun).await;
    // As after hours without a byte.
    let file = std::fs::File::options().write(true).open(&partial).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(7200))
        .unwrap();
    let report = server.app.reclaimer.order(Order::Collect { dry_run: false }).await;
    assert_eq!(report.unwrap().originals_count, 0);
    assert!(partial.exists(), "somebody goes on with it");
    gate.open();
    assert!(fetched.await.unwrap() == content);
    let kept = server.app.originals.path(&digest);
    until("the blob", || kept.exists()).await;
    assert_eq!(origin.bytes_sent(&digest), content.len() as u64);
    // One that nobody goes on with does go.
    let left = BlobDigest::of(b"left");
    let mut partial = server.app.originals.partial(&left, UPSTREAM).unwrap();
    partial.set_size(9).unwrap();
    let old = SystemTime::now() - Duration::from_secs(7200);
    partial.file().set_modified(old).unwrap();
    drop(partial);
    let path = server.app.originals.partial_path(&left, UPSTREAM);
    server
        .app
        .reclaimer
        .order(Order::Collect { dry_run: false })
        .await
        .unwrap();
    assert!(!path.exists());
    server.stop().await;
}

/// A layer of noise, which does not compress.
fn noisy_layer(store: &Store, n: u32, chunks: u32) -> BlobDigest {
    let conversion = store.begin_conversion();
    let layer = BlobDigest::of(format!("noise {n}").as_bytes());
    let entries = (0..chunks).map(|i| {
        let raw = support::noise(16 << 10, u64::from(5000 + n * 1000 + i));
        let digest = ChunkDigest::of(&raw);
        let frame = zstd::bulk::compress(&raw, 1).unwrap();
        let (frame_len, _) = conversion.append_chunk(&digest, 16 << 10, &frame).unwrap();
        ChunkEntry {
            digest,
            raw_len: 16 << 10,
            frame_len,
        }
    });
    let toc = toc_of(&layer, entries.collect());
    conversion.publish_layer(&layer, &toc).unwrap();
    layer
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_holds_what_the_budgets_say_each_for_itself() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    let (originals_max, chunks_max) = (3_000_000, 6 << 20);
    config.cache.originals_bytes_max = Some(originals_max);
    config.cache.chunks_bytes_max = Some(chunks_max);
    let data_dir = config.data_dir.clone();
    let server = Server::with(config).await;
    let (originals, packs) = (data_dir.join("originals"), data_dir.join("packs"));
    // Only originals first: packs are none of their business, and the other way round.
    for n in 0..10 {
        let digest = origin.add_blob(REPOSITORY, support::noise(500_000, n));
        assert_eq!(server.fetch(&server.blob_url(&digest)).await.0, 200);
    }
    let slack = 64 << 10;
    until("the budget of originals", || {
        disk_usage(&originals) <= originals_max + slack
    })
    .await;
    // One thread does both: a round that had begun is over.
    let order = server.app.reclaimer.order(Order::Collect { dry_run: false });
    order.await.unwrap();
    let held = server.app.originals.usage().bytes();
    assert!(held * 4 > originals_max * 3, "no more went than had to: {held}");
    let store = server.app.store.clone();
    tokio::task::spawn_blocking(move || {
        for n in 0..24 {
            let layer = noisy_layer(&store, n, 64);
            assert_ready(&store, &layer);
        }
    })
    .await
    .unwrap();
    until("the budget of chunks", || disk_usage(&packs) <= chunks_max).await;
    let store = &server.app.store;
    assert!(store.pack_bytes() * 2 > chunks_max, "{}", store.pack_bytes());
    // A sweep may be under way still, and blocks are given when bytes are synced.
    until("that what is counted is what is there", || {
        store.commit().unwrap();
        disk_usage(&packs).abs_diff(store.pack_bytes()) <= 4 * slack
    })
    .await;
    assert_eq!(server.app.originals.usage().bytes(), held, "originals are as they were");
    assert_eq!(deleted_but_open(&data_dir), Vec::<String>::new());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_changes_nothing_and_foretells_what_is_done() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let images = [61, 62, 63].map(SyntheticImage::seeded);
    let mut config = config(&origin, dir.path());
    config.cache.originals_ttl_ms = 2_000;
    config.cache.chunks_ttl_ms = 2_000;
    // Everything fits; a pack is an eighth.
    config.cache.chunks_bytes_max = Some(24 << 20);
    let data_dir = config.data_dir.clone();
    let server = Server::with(config).await;
    let app = &server.app;
    for (n, image) in images.iter().enumerate() {
        image.push(&origin, REPOSITORY, &format!("v{n}"));
        assert_eq!(server.fetch(&server.manifest_url(image.manifest_digest)).await.0, 200);
        for layer in &image.layers {
            assert_eq!(server.fetch(&server.blob_url(&layer.digest)).await.0, 200);
            let settled = app.layers.settle(&layer.digest, Duration::from_secs(60)).await;
            assert!(settled.unwrap().is_some());
        }
    }
    let pin = PinTarget::Digest(images[1].manifest_digest);
    app.store.set_pin(&pin, true).unwrap();
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    // Used now.
    for layer in &images[2].layers {
        assert_eq!(server.fetch(&server.blob_url(&layer.digest)).await.0, 200);
        app.store.touch_layer(&layer.digest);
    }
    let order = async |dry_run| app.reclaimer.order(Order::Collect { dry_run }).await.unwrap();
    let is_ready = |image: &SyntheticImage| {
        let ready = |d| matches!(app.store.layer(d).unwrap(), Some(LayerRecord::Ready { .. }));
        image.layers.iter().all(|l| ready(&l.digest))
    };
    let state = || {
        let packs: Vec<u64> = app.store.sealed_packs().iter().map(|(_, len)| *len).collect();
        let files = files(&data_dir.join("originals"));
        (files, packs, app.store.current_pack())
    };
    let before = state();
    let foretold = order(true).await;
    assert_eq!(
        (foretold.layers_count as usize, foretold.dry_run),
        (images[0].layers.len(), true)
    );
    assert!(state() == before);
    let again = order(true).await;
    assert_eq!(again, foretold);
    // The next rounds of the clock are far off.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(state() == before, "a dry run brings nothing forward");
    assert!(images.iter().all(is_ready));
    let done = order(false).await;
    let names = |gone: &Report| {
        let of = |list: &[headstart_server::reclaim::Gone]| {
            let mut names: Vec<_> = list.iter().map(|g| (g.digest, g.bytes, g.reason.clone())).collect();
            names.sort();
            names
        };
        (of(&gone.originals), of(&gone.layers))
    };
    assert_eq!(names(&done), names(&foretold));
    assert_eq!(done.packs_count, foretold.packs_count);
    // Records of who went are written, a few hundred bytes each.
    let slack = 1000 * (1 + done.layers_count);
    assert!(
        done.packs_bytes.abs_diff(foretold.packs_bytes) <= slack,
        "{foretold:?} {done:?}"
    );
    assert!(foretold.packs_bytes > 2 * slack, "{foretold:?}");
    assert_eq!(images.each_ref().map(is_ready), [false, true, true]);
    let nothing = order(false).await;
    assert_eq!((nothing.originals_count, nothing.layers_count), (0, 0), "{nothing:?}");
    server.stop().await;
}
