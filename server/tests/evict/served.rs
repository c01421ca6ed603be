//! Budgets and ages of a server: what goes is fetched and converted again, and only that.
//!
//! In: a server before an origin that counts. Out: disk within the budgets, requests at the origin.
//! Not here: stores alone.

use std::collections::HashSet;
use std::time::Duration;

use headstart_layer_format::api::{ImageStatus, LayerState};
use headstart_layer_format::{BlobDigest, ChunkDigest, routes};
use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::{Auth, Origin};
use headstart_server::reclaim::Order;
use headstart_server::store::pins::PinTarget;
use headstart_server::store::plan::Wanted;
use headstart_server::store::usage::Kept;

use crate::layers::{assert_ready, publish, toc_of};
use crate::support::{self, REPOSITORY, Server, config, until};
use crate::{collect, is_ready, keep_all};

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
        // Uses in one tick of the clock have no order to be known again.
        tokio::time::sleep(Duration::from_millis(20)).await;
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
