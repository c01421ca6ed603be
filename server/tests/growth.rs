//! A day of growth, and the size of things: images come and go under a budget while others are read; an index of
//! millions.
//!
//! In: a server in this process with a small budget, synthetic images (`HEADSTART_GROWTH_LAYERS`; `scripts/campaign.sh`
//! has thousands) with everything that a server learns of one, readers. Out: disk within the budget and one pack, the
//! index within its bound, neither of which grows with the number of images; no reader that fails.
//! Not here: which layers go (`evict.rs`), power cuts (`src/store/crash`).

#[path = "support/layers.rs"]
mod layers;
mod support;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId};
use headstart_loadtest::corpus::SyntheticImage;
use headstart_loadtest::origin::Origin;
use headstart_server::store::facts::{ConfigFact, ImageFact, LayerFact, ManifestFact, Source, TagFact};
use headstart_server::store::originals::Originals;
use headstart_server::store::pins::PinTarget;
use headstart_server::store::{LayerRecord, Store, StoreError};
use support::{REPOSITORY, Server};

const CHUNKS_BYTES_MAX: u64 = 768 << 10;
/// Of states that say no more than none there are twice as many, and what a cycle adds: 137 bytes each, and an entry in
/// a footer. With the smallest of budgets, that counts.
const REFUSALS_MAX: u64 = 50;
/// A thousand chunks, some hundred images with a dozen rows each.
const ROWS_MAX: u64 = 6000;
const ORIGINALS_BYTES_MAX: u64 = 1 << 20;
const ORIGINAL: usize = 20_000;
/// Small, so that there is something to compact.
const INDEX_SLACK: u64 = 64 << 10;
const ROW_BYTES_MAX: u64 = 600;

/// Of all files below.
fn sizes(dir: &Path) -> u64 {
    let each = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => sizes(&entry.path()),
            // It may be gone since.
            _ => entry.metadata().map_or(0, |m| m.len()),
        });
    each.sum()
}

fn name(n: u64) -> String {
    format!("layer {n}")
}

/// As a conversion; layers share chunks with those before and after.
fn convert(store: &Store, n: u64) -> Result<(), StoreError> {
    let conversion = store.begin_conversion();
    let layer = BlobDigest::of(name(n).as_bytes());
    let mut entries = Vec::new();
    for chunk in n * 3..n * 3 + 6 {
        let raw = layers::chunk_bytes(chunk as u32);
        let digest = ChunkDigest::of(&raw);
        let frame_len = match conversion.chunk_frame_len(&digest)? {
            Some(len) => len,
            None => {
                let frame = zstd::bulk::compress(&raw, 1).unwrap();
                conversion.append_chunk(&digest, raw.len() as u32, &frame)?.0
            }
        };
        let raw_len = raw.len() as u32;
        entries.push(headstart_layer_format::toc::ChunkEntry {
            digest,
            raw_len,
            frame_len,
        });
    }
    conversion
        .publish_layer(&layer, &layers::toc_of(&layer, entries))
        .map(drop)
}

/// What a server learns of an image whose manifest, config and layer it has served.
fn learn(store: &Store, originals: &Originals, n: u64) {
    let source = Source {
        upstream: support::UPSTREAM.into(),
        repository: format!("{REPOSITORY}{}", n % 5),
    };
    let (config, manifest) = (format!("config {n}"), format!("manifest {n}"));
    let [config, manifest] = [config, manifest].map(|text| {
        let bytes = text.repeat(60).into_bytes();
        let digest = BlobDigest::of(&bytes);
        originals.put(&digest, &bytes).unwrap();
        digest
    });
    let layer = |n: u64| LayerFact {
        digest: BlobDigest::of(name(n).as_bytes()),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        size: ORIGINAL as u64,
    };
    // The first is one that many have, and that is asked for all the time.
    let layers = vec![layer(n / 100 * 100), layer(n)];
    let fact = ManifestFact {
        source: source.clone(),
        digest: manifest,
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        size: 720,
        members: layers.iter().map(|layer| layer.digest).chain([config]).collect(),
        image: Some(ImageFact { config, layers }),
        foreign: Vec::new(),
    };
    store.record_manifest(&fact).unwrap();
    let diff_ids = [n / 100 * 100, n].map(|n| DiffId::of(name(n).as_bytes())).to_vec();
    store.record_config(&ConfigFact { manifest, diff_ids }).unwrap();
    for member in &fact.members {
        store.add_member(&source, member).unwrap();
    }
    for tag in [format!("build-{n}"), "latest".to_owned()] {
        let fact = TagFact {
            digest: manifest,
            media_type: fact.media_type.clone(),
            size: 720,
            confirmed_unix_secs: 1_700_000_000 + n,
        };
        store.confirm_tag(&source, &tag, &fact).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_day_of_images_stays_within_its_budgets_and_no_reader_fails() {
    let count: u64 = std::env::var("HEADSTART_GROWTH_LAYERS").map_or(500, |n| n.parse().unwrap());
    let origin = Origin::with_image(REPOSITORY, "v1", &SyntheticImage::seeded(1));
    let dir = tempfile::tempdir().unwrap();
    let mut config = support::config(&origin, dir.path());
    config.cache.chunks_bytes_max = Some(CHUNKS_BYTES_MAX);
    config.cache.refusals_max = REFUSALS_MAX;
    // The reclaimer looks by itself, as it does every ten minutes.
    config.cache.index_look_ms = 100;
    config.cache.index_spare_bytes = INDEX_SLACK;
    config.cache.originals_bytes_max = Some(ORIGINALS_BYTES_MAX);
    let server = Server::with(config).await;
    let app = server.app.clone();
    let (done, newest, read) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let mut evicted = 0;
    tokio::task::block_in_place(|| {
        std::thread::scope(|scope| {
            let stop = Stop(&done);
            for reader in 0..2 {
                let (store, originals) = (app.store.clone(), app.originals.clone());
                let (done, newest, read) = (&done, &newest, &read);
                scope.spawn(move || {
                    for turn in 0u64.. {
                        std::thread::sleep(Duration::from_millis(2));
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        // Those that came last, and some that may be gone.
                        let back = (turn * 7 + reader) % 40;
                        let n = newest.load(Ordering::Relaxed).saturating_sub(back);
                        let layer = BlobDigest::of(name(n).as_bytes());
                        if let Some(_hold) = store.hold_layer(&layer)
                            && let Some(LayerRecord::Ready { .. }) = store.layer(&layer).unwrap()
                        {
                            layers::assert_ready(&store, &layer);
                            read.fetch_add(1, Ordering::Relaxed);
                        }
                        let bytes = support::noise(ORIGINAL, n);
                        if let Some((file, _)) = originals.get(&BlobDigest::of(&bytes)).unwrap() {
                            let mut whole = vec![0; ORIGINAL];
                            std::os::unix::fs::FileExt::read_exact_at(&file, &mut whole, 0).unwrap();
                            assert!(whole == bytes);
                        }
                    }
                });
            }
            for n in 0..count {
                convert(&app.store, n).unwrap();
                let bytes = support::noise(ORIGINAL, n);
                app.originals.put(&BlobDigest::of(&bytes), &bytes).unwrap();
                learn(&app.store, &app.originals, n);
                newest.store(n, Ordering::Relaxed);
                let packs = sizes(&dir.path().join("packs"));
                let bound = CHUNKS_BYTES_MAX + CHUNKS_BYTES_MAX / 8;
                assert!(packs <= bound, "{packs} bytes of packs after {n} layers");
                if n % 50 == 49 {
                    // Nothing holds up a fetch: originals are evicted behind it, within a second or so.
                    let path = dir.path().join("originals");
                    let patience = Instant::now() + Duration::from_secs(30);
                    while sizes(&path) > ORIGINALS_BYTES_MAX && Instant::now() < patience {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    let originals = sizes(&path);
                    assert!(originals <= ORIGINALS_BYTES_MAX, "{originals} bytes of originals");
                    let measured = || (app.store.index_bytes().unwrap(), app.store.index_rows().unwrap());
                    // What comes between two looks, and sled's segments.
                    let bound = |rows: u64| INDEX_SLACK + rows * ROW_BYTES_MAX + (2 << 20);
                    let (mut index, mut rows) = measured();
                    while (index > bound(rows) || rows > ROWS_MAX) && Instant::now() < patience {
                        std::thread::sleep(Duration::from_millis(50));
                        (index, rows) = measured();
                    }
                    assert!(
                        index <= bound(rows),
                        "{index} bytes of index, {rows} rows, after {n} layers"
                    );
                    assert!(rows <= ROWS_MAX, "{rows} rows after {n} layers");
                    println!("{n}: packs {packs}, originals {originals}, index {index}, rows {rows}");
                }
            }
            drop(stop);
        });
        for n in 0..count {
            let layer = BlobDigest::of(name(n).as_bytes());
            evicted += u64::from(app.store.layer(&layer).unwrap().is_none());
        }
    });
    let read = read.into_inner();
    assert!(evicted > count / 4, "{evicted} of {count} layers went");
    assert!(read > count, "{read} layers were read");
    println!("{count} layers came, {evicted} went, {read} were read");
    drop(app);
    server.stop().await;
    let store = Store::open(dir.path()).unwrap();
    assert!(!store.open_report().index_rebuilt && store.open_report().damaged_records == 0);
    layers::assert_ready(&store, &BlobDigest::of(name(count - 1).as_bytes()));
}

/// In the oldest pack everything lives, so that it would never be swept for its own sake, and what says that tags were
/// forgotten would stay for ever: each may take back something in an older pack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_takes_forgotten_tags_back_does_not_pile_up_behind_a_pack_that_lives() {
    const IMAGES: u32 = 1600;
    let origin = Origin::with_image(REPOSITORY, "v1", &SyntheticImage::seeded(1));
    let dir = tempfile::tempdir().unwrap();
    let mut config = support::config(&origin, dir.path());
    config.cache.chunks_bytes_max = Some(CHUNKS_BYTES_MAX);
    let server = Server::with(config).await;
    let store = server.app.store.clone();
    tokio::task::block_in_place(|| {
        let (base, _) = layers::publish(&store, "base", 0..40);
        store.set_pin(&PinTarget::Digest(base), true).unwrap();
        for n in 0..IMAGES {
            tag_image(&store, n);
            if n % 10 == 9 {
                store.commit().unwrap();
                let patience = Instant::now() + Duration::from_secs(60);
                while store.pack_bytes() > CHUNKS_BYTES_MAX {
                    assert!(
                        Instant::now() < patience,
                        "{} bytes after {n} images",
                        store.pack_bytes()
                    );
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            if n % 100 == 99 {
                println!("{n}: {} bytes, {:?}", store.pack_bytes(), store.sealed_packs());
            }
        }
        layers::assert_ready(&store, &base);
    });
    drop(store);
    server.stop().await;
}

fn tag_image(store: &Store, n: u32) {
    let source = Source {
        upstream: support::UPSTREAM.into(),
        repository: REPOSITORY.into(),
    };
    let fact = ManifestFact {
        source: source.clone(),
        digest: BlobDigest::of(&n.to_le_bytes()),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        size: 720,
        members: Vec::new(),
        image: None,
        foreign: Vec::new(),
    };
    store.record_manifest(&fact).unwrap();
    for alias in 0..3 {
        let fact = TagFact {
            digest: fact.digest,
            media_type: fact.media_type.clone(),
            size: 720,
            confirmed_unix_secs: 1_700_000_000,
        };
        store
            .confirm_tag(&source, &format!("build-{n}-{alias}"), &fact)
            .unwrap();
    }
}

/// The readers end, also when something fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How large the index is, how long opening and rebuilding take: `HEADSTART_INDEX_CHUNKS=1000000 cargo test --release
/// --test growth -- --ignored --nocapture index_of`.
#[test]
#[ignore = "a measurement"]
fn index_of_many_chunks() {
    let count: u64 = std::env::var("HEADSTART_INDEX_CHUNKS").map_or(100_000, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let begun = Instant::now();
    for n in 0..count {
        let digest = ChunkDigest::of(&n.to_le_bytes());
        store.append_chunk(&digest, 4096, &[0; 64]).unwrap();
    }
    store.flush().unwrap();
    println!("{count} chunks written in {:?}", begun.elapsed());
    drop(store);
    let size = |name: &str| -> u64 { sizes(&dir.path().join(name)) };
    println!("packs {} bytes, index {} bytes", size("packs"), size("index"));
    let open = |what: &str| {
        let begun = Instant::now();
        let store = Store::open(dir.path()).unwrap();
        println!("{what} in {:?}", begun.elapsed());
        store
    };
    drop(open("opened"));
    fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open("rebuilt");
    assert!(store.open_report().index_rebuilt);
    drop(store);
    println!("the rebuilt index has {} bytes", size("index"));
    drop(open("opened"));
}
