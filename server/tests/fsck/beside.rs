//! Scrubs that repair, beside conversions, evictions, sweeps, reads, and originals that come and go.
//!
//! In: a busy server (`HEADSTART_SCRUB_ROUNDS`). Out: not one finding: nothing is damaged.
//! Not here: damage.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use headstart_layer_format::{BlobDigest, ChunkDigest};
use headstart_loadtest::origin::Origin;
use headstart_server::reclaim::Order;
use headstart_server::scrub;
use headstart_server::store::{LayerRecord, Store};
use tokio::sync::watch;

use crate::support::{REPOSITORY, Server};
use crate::{config, image, layers, support};

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
