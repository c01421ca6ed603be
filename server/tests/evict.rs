//! Eviction: what goes, in which order, and that nothing is lost or wrong when it is interrupted.
//!
//! The first half works on a store alone and stops sweeps at every step; the second half runs a server behind which an
//! origin counts what is fetched again.

#[path = "support/layers.rs"]
mod layers;
mod support;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use headstart_layer_format::api::{ImageStatus, LayerState};
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId, routes};
use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::{Auth, Origin};
use headstart_server::reclaim::Order;
use headstart_server::store::facts::{ConfigFact, ImageFact, LayerFact, ManifestFact, Source, TagFact};
use headstart_server::store::pins::PinTarget;
use headstart_server::store::plan::{Reason, Wanted};
use headstart_server::store::sweep::Step;
use headstart_server::store::usage::Kept;
use headstart_server::store::{LayerRecord, Store};
use layers::{assert_ready, chunk_bytes, copy_tree, publish, put_chunk, toc_of};
use support::{REPOSITORY, Server, config};

const PACK_SIZE_MAX: u64 = 16 << 10;

fn open(dir: &Path) -> Store {
    Store::open_with(dir, PACK_SIZE_MAX).expect("open the store")
}

fn keep_all() -> Wanted {
    Wanted {
        bytes_max: u64::MAX,
        reason: Reason::Budget,
        used_before_unix_ms: 0,
        pinned: HashSet::new(),
        removed: HashSet::new(),
    }
}

/// Evicts what does not fit and rewrites every pack. Who went.
fn collect(store: &Store, wanted: &Wanted) -> Vec<BlobDigest> {
    let cycle = store.cycle();
    let mut plan = store.plan(wanted, &|| true).unwrap().unwrap();
    let gone = store.evict(&mut plan).unwrap();
    store.seal_current_pack().unwrap();
    for (pack, _) in store.sealed_packs() {
        store
            .sweep_pack(&cycle, pack, &plan.live, &mut |_| true)
            .unwrap()
            .unwrap();
    }
    gone.iter().map(|v| v.layer).collect()
}

fn is_ready(store: &Store, layer: &BlobDigest) -> bool {
    matches!(store.layer(layer).unwrap(), Some(LayerRecord::Ready { .. }))
}

fn source(n: u32) -> Source {
    Source {
        upstream: "docker.io".into(),
        repository: format!("library/thing{n}"),
    }
}

/// Facts of every kind, some superseded by later ones.
fn record_facts(store: &Store, layer: BlobDigest, diff_id: DiffId) -> ManifestFact {
    let config = BlobDigest::of(b"config");
    let mut fact = ManifestFact {
        source: source(1),
        digest: BlobDigest::of(b"manifest"),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        size: 1234,
        members: vec![config, layer],
        image: Some(ImageFact {
            config,
            layers: vec![LayerFact {
                digest: layer,
                media_type: "application/vnd.oci.image.layer.v1.tar".into(),
                size: 99,
            }],
        }),
    };
    store.record_manifest(&fact).unwrap();
    fact.source = source(2);
    store.record_manifest(&fact).unwrap();
    let manifest = fact.digest;
    let diff_ids = vec![diff_id];
    store.record_config(&ConfigFact { manifest, diff_ids }).unwrap();
    for (old, digest) in [(0, BlobDigest::of(b"older")), (9_000, manifest)] {
        let tag = TagFact {
            digest,
            media_type: fact.media_type.clone(),
            size: 1,
            confirmed_unix_secs: 1_000 + old,
        };
        store.confirm_tag(&source(1), "latest", &tag).unwrap();
    }
    store.refuse_layer(&BlobDigest::of(b"bad layer"), "not a tar").unwrap();
    store
        .set_pin(&PinTarget::Digest(BlobDigest::of(b"never")), true)
        .unwrap();
    store
        .set_pin(&PinTarget::Digest(BlobDigest::of(b"never")), false)
        .unwrap();
    let tag = "latest".to_owned();
    store.set_pin(&PinTarget::Tag { source: source(1), tag }, true).unwrap();
    store.add_member(&source(3), &BlobDigest::of(b"member")).unwrap();
    fact
}

fn assert_facts(store: &Store, fact: &ManifestFact) {
    let manifest = fact.digest;
    assert_eq!(store.manifest(&manifest).unwrap().as_ref(), Some(fact));
    assert_eq!(store.diff_ids(&manifest).unwrap().map(|ids| ids.len()), Some(1));
    assert_eq!(store.tag(&source(1), "latest").unwrap().unwrap().digest, manifest);
    for n in [1, 2] {
        for digest in fact.members.iter().chain([&manifest]) {
            assert!(store.is_member(&source(n), digest).unwrap(), "{n} {digest}");
        }
    }
    assert!(store.is_member(&source(3), &BlobDigest::of(b"member")).unwrap());
    assert!(!store.is_member(&source(3), &manifest).unwrap());
    assert_eq!(store.pins().unwrap().len(), 1);
    assert!(store.pinned().unwrap().contains(&fact.members[1]));
    let refused = store.layer(&BlobDigest::of(b"bad layer")).unwrap();
    assert!(matches!(refused, Some(LayerRecord::Refused { .. })));
}

#[test]
fn the_least_recently_used_layers_go_and_shared_chunks_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let names = ["a", "b", "c", "d"];
    // Neighbours share half of their chunks.
    let all: Vec<_> = (0..4)
        .map(|n| publish(&store, names[n as usize], n * 4..n * 4 + 8).0)
        .collect();
    for layer in [2, 0, 3, 1] {
        std::thread::sleep(Duration::from_millis(3));
        store.touch_layer(&all[layer]);
    }
    let before = store.pack_bytes();
    assert_eq!(collect(&store, &keep_all()), []);
    assert!(store.pack_bytes() <= before + 200);
    let plan = store.plan(&keep_all(), &|| true).unwrap().unwrap();
    assert_eq!(plan.kept, 4);
    let half = Wanted {
        bytes_max: plan.live.bytes * 17 / 20,
        ..keep_all()
    };
    let gone = collect(&store, &half);
    assert_eq!(gone, [all[0], all[2]], "the two that were not used lately");
    for (n, layer) in all.iter().enumerate() {
        assert_eq!(is_ready(&store, layer), [1, 3].contains(&n));
    }
    for layer in [&all[1], &all[3]] {
        assert_ready(&store, layer);
    }
    assert!(store.pack_bytes() < before * 9 / 10);
    // Chunks that only evicted layers had are gone, and come back with a conversion.
    assert!(store.read_chunk(&ChunkDigest::of(&chunk_bytes(0))).unwrap().is_none());
    publish(&store, "a", 0..8);
    assert_ready(&store, &all[0]);
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open(dir.path());
    for n in [0, 1, 3] {
        assert_ready(&store, &all[n]);
    }
    assert!(!is_ready(&store, &all[2]));
}

#[test]
fn age_pins_and_holds_decide_before_bytes_do() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let [a, b, c] = ["a", "b", "c"].map(|name| publish(&store, name, name.len() as u32..4).0);
    let everything_is_old = Wanted {
        used_before_unix_ms: u64::MAX,
        pinned: HashSet::from([a]),
        ..keep_all()
    };
    let hold = store.hold_layer(&b).unwrap();
    assert_eq!(collect(&store, &everything_is_old), [c]);
    assert_ready(&store, &a);
    assert_ready(&store, &b);
    drop(hold);
    let nothing_fits = Wanted {
        bytes_max: 0,
        ..everything_is_old
    };
    assert_eq!(collect(&store, &nothing_fits), [b]);
    let removed = Wanted {
        removed: HashSet::from([a]),
        ..nothing_fits
    };
    assert_eq!(collect(&store, &removed), [a], "the operator's word is above a pin");
}

#[test]
fn the_order_survives_a_restart_and_is_all_that_a_lost_index_costs() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let [a, b] = [("a", 0), ("b", 8)].map(|(name, n)| publish(&store, name, n..n + 4).0);
    std::thread::sleep(Duration::from_millis(3));
    store.touch_layer(&a);
    store.save_layer_uses(0).unwrap();
    let used = [&a, &b].map(|layer| store.layer_used_ms(layer).unwrap());
    assert!(used[0] > used[1]);
    drop(store);
    let store = open(dir.path());
    assert_eq!([&a, &b].map(|layer| store.layer_used_ms(layer).unwrap()), used);
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open(dir.path());
    // Nothing is known: used now, so that no age applies to it.
    assert!(store.layer_used_ms(&b).unwrap() > used[0]);
}

#[test]
fn a_running_conversion_keeps_what_it_was_told_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (old, old_toc) = publish(&store, "old", 0..8);
    let nothing = Wanted {
        bytes_max: 0,
        ..keep_all()
    };
    let conversion = store.begin_conversion();
    let mut entries = Vec::new();
    for (n, entry) in (0u32..).zip(old_toc.chunks().entries()).take(4) {
        let found = conversion.chunk_frame_len(&entry.digest).unwrap();
        assert_eq!(found, Some(entry.frame_len), "chunk {n} is a hit");
        entries.push(*entry);
    }
    assert_eq!(collect(&store, &nothing), [old]);
    // The sweep that follows knows of no layer with these chunks.
    let new = BlobDigest::of(b"new");
    conversion.publish_layer(&new, &toc_of(&new, entries.clone())).unwrap();
    assert_ready(&store, &new);
    // A plan from before the layer, and a conversion that has ended by the time of the sweep.
    let cycle = store.cycle();
    let mut plan = store.plan(&nothing, &|| true).unwrap().unwrap();
    assert_eq!(store.evict(&mut plan).unwrap().len(), 1);
    let conversion = store.begin_conversion();
    for entry in &entries {
        assert!(conversion.chunk_frame_len(&entry.digest).unwrap().is_some());
    }
    conversion.publish_layer(&new, &toc_of(&new, entries)).unwrap();
    drop(conversion);
    store.seal_current_pack().unwrap();
    for (pack, _) in store.sealed_packs() {
        store
            .sweep_pack(&cycle, pack, &plan.live, &mut |_| true)
            .unwrap()
            .unwrap();
    }
    assert_ready(&store, &new);
    // The others' chunks are gone.
    let last = old_toc.chunks().entries()[7].digest;
    assert!(store.read_chunk(&last).unwrap().is_none());
}

#[test]
fn readers_go_on_while_packs_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (layer, _) = publish(&store, "layer", 0..16);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_ready(&store, &layer);
                }
            });
        }
        for round in 0..20 {
            publish(&store, &format!("garbage {round}"), 100..104);
            let keep = Wanted {
                pinned: HashSet::from([layer]),
                bytes_max: 0,
                ..keep_all()
            };
            collect(&store, &keep);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(store.open_report().damaged_records, 0);
    assert_ready(&store, &layer);
}

#[test]
fn facts_survive_and_superseded_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (layer, toc) = publish(&store, "layer", 0..4);
    let fact = record_facts(&store, layer, *toc.diff_id());
    assert_facts(&store, &fact);
    for n in 0..200u64 {
        let tag = TagFact {
            digest: fact.digest,
            media_type: fact.media_type.clone(),
            size: 1,
            confirmed_unix_secs: 20_000 + n * 7_200,
        };
        store.confirm_tag(&source(1), "latest", &tag).unwrap();
    }
    let before = store.pack_bytes();
    collect(&store, &keep_all());
    assert!(store.pack_bytes() + 30_000 < before, "{before} {}", store.pack_bytes());
    for _ in 0..3 {
        collect(&store, &keep_all());
        assert_facts(&store, &fact);
    }
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open(dir.path());
    assert_facts(&store, &fact);
    assert_ready(&store, &layer);
}

/// Stops after each of the steps of a sweep, as a kill would: the directory is copied as it is at that moment. Whatever
/// the moment, and with or without the index, kept layers are whole, evicted ones stay evicted, facts are the latest,
/// and work goes on.
#[test]
fn a_sweep_may_be_killed_at_any_step() {
    let origin = tempfile::tempdir().unwrap();
    let store = open(origin.path());
    let (kept, toc) = publish(&store, "kept", 0..6);
    let fact = record_facts(&store, kept, *toc.diff_id());
    let (evicted, _) = publish(&store, "evicted", 4..12);
    let (late, late_toc) = publish(&store, "late", 10..14);
    let wanted = Wanted {
        removed: HashSet::from([evicted]),
        ..keep_all()
    };
    let cycle = store.cycle();
    let mut plan = store.plan(&wanted, &|| true).unwrap().unwrap();
    store.evict(&mut plan).unwrap();
    store.seal_current_pack().unwrap();
    let mut killed = 0;
    let mut records = 0;
    for (pack, _) in store.sealed_packs() {
        let mut step = |step: Step| {
            records += u32::from(matches!(step, Step::Record { .. }));
            // Every seventh record is enough; every other step counts.
            if matches!(step, Step::Record { .. }) && !records.is_multiple_of(7) {
                return true;
            }
            for keep_index in [true, false] {
                let copy = tempfile::tempdir().unwrap();
                copy_tree(origin.path(), copy.path());
                if !keep_index {
                    std::fs::remove_dir_all(copy.path().join("index")).unwrap();
                }
                let store = open(copy.path());
                for layer in [&kept, &late] {
                    assert!(is_ready(&store, layer), "{step:?} {keep_index}");
                    assert_ready(&store, layer);
                }
                assert!(!is_ready(&store, &evicted), "{step:?} {keep_index}");
                assert_facts(&store, &fact);
                killed += 1;
                if killed % 8 == 0 {
                    publish(&store, "evicted", 4..12);
                    collect(&store, &keep_all());
                    for layer in [&kept, &late, &evicted] {
                        assert_ready(&store, layer);
                    }
                    assert_facts(&store, &fact);
                }
            }
            true
        };
        store.sweep_pack(&cycle, pack, &plan.live, &mut step).unwrap().unwrap();
    }
    assert!(killed > 30, "{killed}");
    drop(cycle);
    assert_eq!(store.toc(&late).unwrap().unwrap().1, late_toc.encode().unwrap());
    drop(store);
    let store = open(origin.path());
    assert!(!store.open_report().index_rebuilt);
    assert_ready(&store, &kept);
    // A chunk may be appended right after: dedup must not point into a deleted pack.
    let entry = put_chunk(&store, &chunk_bytes(8));
    store.commit().unwrap();
    assert!(store.read_chunk(&entry.digest).unwrap().is_some());
}

// ---- a server and what it fetches again -------------------------------------------------------------------------

async fn settled(server: &Server, image: &SyntheticImage) -> ImageStatus {
    for _ in 0..20 {
        let url = format!(
            "http://{}{}?wait_ms=20000",
            server.address,
            routes::image(&image.manifest_digest)
        );
        let status: ImageStatus = server.get(&url).await.json().await.unwrap();
        let under_way = |s: LayerState| matches!(s, LayerState::Queued | LayerState::Converting | LayerState::Unknown);
        if !status.layers.iter().any(|l| under_way(l.state)) {
            return status;
        }
    }
    panic!("the image does not settle");
}

async fn pull(server: &Server, image: &SyntheticImage) {
    assert_eq!(server.fetch(&server.manifest_url(image.manifest_digest)).await.0, 200);
    for layer in &image.layers {
        let (status, body) = server.fetch(&server.blob_url(&layer.digest)).await;
        assert_eq!((status, &body.unwrap()[..]), (200, &layer.blob[..]));
    }
    assert!(settled(server, image).await.is_ready());
}

/// Until the condition holds; the reclaimer works on its own thread.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{what} does not come true");
}

#[tokio::test(flavor = "multi_thread")]
async fn originals_stay_within_their_budget_the_oldest_go_and_are_fetched_again() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let blobs: Vec<_> = (0..8).map(|n| support::noise(300_000, n)).collect();
    let digests: Vec<_> = blobs.iter().map(|b| origin.add_blob(REPOSITORY, b.clone())).collect();
    let mut config = config(&origin, dir.path());
    config.cache.originals_bytes_max = Some(1_000_000);
    let server = Server::with(config.clone()).await;
    let usage = || server.app.originals.usage().bytes();
    for (blob, digest) in blobs.iter().zip(&digests).take(3) {
        assert_eq!(server.fetch(&server.blob_url(digest)).await.1.unwrap(), blob);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // A reader has the second open while it goes.
    let (file, _) = open_file(&server, &digests[1]);
    tokio::time::sleep(Duration::from_millis(5)).await;
    // Opening was a use as well; two more uses make the second the oldest.
    for digest in [&digests[2], &digests[0]] {
        assert_eq!(server.fetch(&server.blob_url(digest)).await.0, 200);
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    for digest in &digests[3..4] {
        assert_eq!(server.fetch(&server.blob_url(digest)).await.0, 200);
    }
    let here = |n: usize| server.app.originals.path(&digests[n]).exists();
    until("the eviction of the oldest", || here(3) && !here(1)).await;
    assert_eq!([here(0), here(1), here(2), here(3)], [true, false, true, true]);
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut { file }, &mut read).unwrap();
    assert!(read == blobs[1], "an open file is whole though its name is gone");
    // It comes again, and everything stays within the budget.
    assert_eq!(server.fetch(&server.blob_url(&digests[1])).await.1.unwrap(), blobs[1]);
    assert_eq!(origin.bytes_sent(&digests[1]), 600_000);
    for digest in &digests {
        assert_eq!(server.fetch(&server.blob_url(digest)).await.0, 200);
    }
    until("the budget", || here(7) && usage() <= 1_000_000).await;
    // A restart knows sizes and order again.
    let before: Vec<_> = server.app.originals.usage().oldest_first();
    server.stop().await;
    let server = Server::with(config).await;
    until("the scan", || server.app.originals.usage().is_scanned()).await;
    let after = server.app.originals.usage().oldest_first();
    let order = |kept: &[Kept]| kept.iter().map(|k| (k.digest, k.bytes)).collect::<Vec<_>>();
    assert_eq!(order(&after), order(&before));
    server.stop().await;
}

fn open_file(server: &Server, digest: &BlobDigest) -> (std::fs::File, u64) {
    server.app.originals.get(digest).unwrap().expect("an original")
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_layer_is_converted_again_and_only_what_is_missing_is_fetched() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let image = SyntheticImage::seeded(31);
    image.push(&origin, REPOSITORY, "v1");
    let server = Server::start(&origin, dir.path()).await;
    pull(&server, &image).await;
    let layer = &image.layers[0];
    let sent = || image.layers.iter().map(|l| origin.bytes_sent(&l.digest)).sum::<u64>();
    let once = sent();
    let calls = origin.calls().len();
    // Chunks go, originals stay: reconversion asks nobody.
    let wanted = Wanted {
        bytes_max: 0,
        ..keep_all()
    };
    let store = server.app.store.clone();
    let gone = tokio::task::spawn_blocking(move || collect(&store, &wanted))
        .await
        .unwrap();
    assert!(!gone.is_empty());
    assert!(settled(&server, &image).await.is_ready());
    assert_eq!((sent(), origin.calls().len()), (once, calls), "no upstream call");
    // Now the original goes too: it is fetched again, once, for a conversion on demand.
    let report = server
        .app
        .reclaimer
        .order(Order::Remove(HashSet::from([layer.digest])))
        .await
        .unwrap();
    assert_eq!((report.originals_count, report.layers_count), (1, 1));
    assert!(!server.app.originals.path(&layer.digest).exists());
    assert!(settled(&server, &image).await.is_ready());
    assert_eq!(sent(), once + layer.blob.len() as u64);
    let (status, body) = server.fetch(&server.blob_url(&layer.digest)).await;
    assert_eq!((status, &body.unwrap()[..]), (200, &layer.blob[..]));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn packs_stay_within_their_budget_while_many_layers_come_and_pins_stay() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let mut config = config(&origin, dir.path());
    // The largest layer must fit half of it.
    config.cache.chunks_bytes_max = Some(8 << 20);
    let server = Server::with(config).await;
    let store = server.app.store.clone();
    let bytes_max = store.bytes_max();
    let (highest, rounds) = tokio::task::spawn_blocking(move || {
        let pinned = publish(&store, "pinned", 0..8).0;
        store.set_pin(&PinTarget::Digest(pinned), true).unwrap();
        let (mut highest, mut evicted) = (0, false);
        let mut rounds = 0;
        // Noise does not compress: some 4 KiB a chunk, 256 KiB a layer, four times the budget in all.
        for n in 0..128u32 {
            let conversion = store.begin_conversion();
            let layer = BlobDigest::of(format!("layer {n}").as_bytes());
            let entries = (0..64).map(|i| {
                let raw = support::noise(4096, u64::from(1000 + n * 64 + i));
                let digest = ChunkDigest::of(&raw);
                let frame = zstd::bulk::compress(&raw, 1).unwrap();
                let (frame_len, _) = conversion.append_chunk(&digest, 4096, &frame).unwrap();
                headstart_layer_format::toc::ChunkEntry {
                    digest,
                    raw_len: 4096,
                    frame_len,
                }
            });
            let toc = toc_of(&layer, entries.collect());
            conversion.publish_layer(&layer, &toc).unwrap();
            assert_ready(&store, &layer);
            highest = highest.max(store.pack_bytes());
            evicted |= !is_ready(&store, &BlobDigest::of(b"layer 0"));
            rounds += 1;
        }
        assert!(evicted, "the oldest went");
        assert_ready(&store, &pinned);
        (highest, rounds)
    })
    .await
    .unwrap();
    assert_eq!(rounds, 128);
    assert!(highest <= bytes_max + bytes_max / 8, "{highest} of {bytes_max}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unused_layers_and_blobs_go_by_age_and_pins_hold_them() {
    let (origin, dir) = (Origin::start(Auth::Anonymous), tempfile::tempdir().unwrap());
    let [old, pinned] = [41, 42].map(SyntheticImage::seeded);
    old.push(&origin, REPOSITORY, "old");
    pinned.push(&origin, REPOSITORY, "pinned");
    let server = Server::start(&origin, dir.path()).await;
    for image in [&old, &pinned] {
        pull(&server, image).await;
    }
    let target = PinTarget::Digest(pinned.manifest_digest);
    assert!(server.app.store.set_pin(&target, true).unwrap());
    server.stop().await;
    let mut config = config(&origin, dir.path());
    config.cache.originals_ttl_ms = 1;
    config.cache.chunks_ttl_ms = 1;
    let server = Server::with(config).await;
    let app = server.app.clone();
    until("age", || {
        let layers_gone = old.layers.iter().all(|l| !is_ready(&app.store, &l.digest));
        layers_gone && old.layers.iter().all(|l| !app.originals.path(&l.digest).exists())
    })
    .await;
    assert!(
        app.originals.path(&old.manifest_digest).exists(),
        "manifests have an age of their own"
    );
    for layer in &pinned.layers {
        assert!(is_ready(&app.store, &layer.digest));
        assert!(app.originals.path(&layer.digest).exists());
    }
    let counted = "headstart_evictions_total{kind=\"layer\",reason=\"age\"}";
    // At the end of the round, after the sweeps.
    until("the count", || app.metrics.render().contains(counted)).await;
    drop(app);
    server.stop().await;
}
