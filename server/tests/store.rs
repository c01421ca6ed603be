//! The store against crashes and damage: reopening, losing the index, torn tails, flipped bytes.
//!
//! Each test writes through the public API, hurts the files as a crash or a bad disk would, opens again and asks:
//! is every answer either the right one or a miss?

#[path = "support/layers.rs"]
mod layers;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use headstart_layer_format::toc::ChunkEntry;
use headstart_layer_format::{BlobDigest, ChainId, ChunkDigest, DiffId, Toc};
use headstart_server::store::facts::{ConfigFact, ImageFact, LayerFact, ManifestFact, Source, TagFact};
use headstart_server::store::{LayerRecord, Store};
use layers::{assert_ready, copy_tree, packs, publish, toc_of};

/// Small packs, so that the tests roll through several.
const PACK_SIZE_MAX: u64 = 16 << 10;

fn open(dir: &Path) -> Store {
    Store::open_with(dir, PACK_SIZE_MAX).expect("open the store")
}

fn source() -> Source {
    Source {
        upstream: "docker.io".into(),
        repository: "library/thing".into(),
    }
}

fn manifest(layers: &[BlobDigest]) -> ManifestFact {
    let config = BlobDigest::of(b"config");
    ManifestFact {
        source: source(),
        digest: BlobDigest::of(b"manifest"),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        size: 1234,
        members: layers.iter().copied().chain([config]).collect(),
        foreign: Vec::new(),
        image: Some(ImageFact {
            config,
            layers: layers
                .iter()
                .map(|&digest| LayerFact {
                    digest,
                    media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
                    size: 99,
                })
                .collect(),
        }),
    }
}

/// What must not change: every fact, TOC and chunk that the tests below wrote.
fn record_everything(store: &Store) -> (ManifestFact, Vec<DiffId>) {
    let (layer, toc) = publish(store, "layer-a", 0..8);
    let fact = manifest(&[layer]);
    let diff_ids = vec![*toc.diff_id()];
    store.record_manifest(&fact).unwrap();
    store
        .record_config(&ConfigFact {
            manifest: fact.digest,
            diff_ids: diff_ids.clone(),
        })
        .unwrap();
    store.confirm_tag(&source(), "latest", &tag(&fact, 1000)).unwrap();
    store.refuse_layer(&BlobDigest::of(b"bad layer"), "not a tar").unwrap();
    (fact, diff_ids)
}

fn tag(fact: &ManifestFact, confirmed_unix_secs: u64) -> TagFact {
    TagFact {
        digest: fact.digest,
        media_type: fact.media_type.clone(),
        size: fact.size,
        confirmed_unix_secs,
    }
}

fn assert_everything(store: &Store, fact: &ManifestFact, diff_ids: &[DiffId]) {
    let layer = BlobDigest::of(b"layer-a");
    assert_eq!(store.manifest(&fact.digest).unwrap().as_ref(), Some(fact));
    assert_eq!(store.diff_ids(&fact.digest).unwrap().as_deref(), Some(diff_ids));
    assert_eq!(store.tag(&source(), "latest").unwrap(), Some(tag(fact, 1000)));
    assert_eq!(store.tag(&source(), "other").unwrap(), None);
    for member in fact.members.iter().chain([&fact.digest]) {
        assert!(store.is_member(&source(), member).unwrap());
        assert_eq!(store.sources(member).unwrap(), [source()]);
    }
    let chain = store.chain(&ChainId::bottom(diff_ids[0])).unwrap().expect("the chain");
    assert_eq!((chain.layer, &chain.manifests[..]), (layer, &[fact.digest][..]));
    let refused = store.layer(&BlobDigest::of(b"bad layer")).unwrap();
    assert!(matches!(refused, Some(LayerRecord::Refused { reason, .. }) if reason == "not a tar"));
    assert_ready(store, &layer);
}

#[test]
fn everything_survives_reopening_and_the_loss_of_the_index() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (fact, diff_ids) = record_everything(&store);
    assert_everything(&store, &fact, &diff_ids);
    assert!(
        !dir.path().join("index.aside").exists(),
        "a new store distrusts nothing"
    );
    drop(store);
    let store = open(dir.path());
    assert!(!store.open_report().index_rebuilt);
    assert_everything(&store, &fact, &diff_ids);
    assert!(packs(dir.path()).len() > 1, "the test should roll packs");
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open(dir.path());
    assert!(store.open_report().index_rebuilt);
    assert_everything(&store, &fact, &diff_ids);
    let layer = BlobDigest::of(b"layer-a");
    let toc = store.toc(&layer).unwrap();
    drop(store);
    let store = open(dir.path());
    assert!(!store.open_report().index_rebuilt, "a rebuilt index is kept");
    assert_eq!(store.toc(&layer).unwrap(), toc);
}

/// On a busy machine a thread of sled's outlived the index that it was of, with the lock on its file, and the next opening
/// took that for damage.
#[test]
fn an_index_that_is_locked_for_a_moment_is_not_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (fact, diff_ids) = record_everything(&store);
    drop(store);
    let file = std::fs::File::open(dir.path().join("index/db")).unwrap();
    file.lock().unwrap();
    std::thread::scope(|scope| {
        let opened = scope.spawn(|| open(dir.path()));
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!opened.is_finished(), "it waits for the lock");
        drop(file);
        let store = opened.join().unwrap();
        assert!(!store.open_report().index_rebuilt);
        assert_everything(&store, &fact, &diff_ids);
    });
}

#[test]
fn a_broken_index_is_moved_aside_and_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (fact, diff_ids) = record_everything(&store);
    drop(store);
    for garbage in [&b""[..], &[0xa5; 300_000]] {
        for file in ["db", "conf"] {
            std::fs::write(dir.path().join("index").join(file), garbage).unwrap();
        }
        let store = open(dir.path());
        assert!(store.open_report().index_rebuilt);
        assert_everything(&store, &fact, &diff_ids);
    }
    std::fs::write(dir.path().join("index.suspect"), b"").unwrap();
    let store = open(dir.path());
    assert!(store.open_report().index_rebuilt);
    assert_everything(&store, &fact, &diff_ids);
    assert!(dir.path().join("index.aside").exists());
    assert!(!dir.path().join("index.suspect").exists());
}

#[test]
fn a_second_process_is_refused_and_does_not_touch_anything() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (fact, diff_ids) = record_everything(&store);
    let second = Store::open_with(dir.path(), PACK_SIZE_MAX);
    assert!(matches!(second, Err(headstart_server::store::StoreError::Locked(_))));
    assert_everything(&store, &fact, &diff_ids);
}

/// A crash leaves a prefix of the log. Whatever the prefix, what it publishes is whole, and work can go on.
#[test]
fn any_prefix_of_the_log_opens_and_publishes_nothing_half() {
    let origin = tempfile::tempdir().unwrap();
    let store = Store::open_with(origin.path(), 1 << 30).unwrap();
    record_everything(&store);
    publish(&store, "layer-b", 4..12);
    drop(store);
    let pack = packs(origin.path()).remove(0);
    let len = std::fs::metadata(&pack).unwrap().len();
    let layers = [BlobDigest::of(b"layer-a"), BlobDigest::of(b"layer-b")];
    let mut ready_counts = Vec::new();
    // Every 499th byte hits headers, keys and payloads of all kinds of records.
    for cut in (0..=len).step_by(499).chain([len]) {
        for keep_index in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            copy_tree(origin.path(), dir.path());
            if !keep_index {
                std::fs::remove_dir_all(dir.path().join("index")).unwrap();
            }
            let file = File::options()
                .write(true)
                .open(dir.path().join("packs/00000001.pack"))
                .unwrap();
            file.set_len(cut).unwrap();
            drop(file);
            let store = Store::open_with(dir.path(), 1 << 30).unwrap();
            let ready = layers.iter().filter(|l| store.layer(l).unwrap().is_some()).count();
            for layer in layers.iter().filter(|l| store.layer(l).unwrap().is_some()) {
                assert_ready(&store, layer);
            }
            ready_counts.push(ready);
            publish(&store, "layer-b", 4..12);
            assert_ready(&store, &layers[1]);
            drop(store);
            let store = Store::open_with(dir.path(), 1 << 30).unwrap();
            assert_eq!(store.open_report().cut_bytes, 0);
            assert_ready(&store, &layers[1]);
        }
    }
    assert_eq!(ready_counts.first(), Some(&0));
    assert_eq!(ready_counts.last(), Some(&2));
}

/// One flipped byte anywhere: right bytes or a miss, also after the index was rebuilt over the damage.
#[test]
fn a_flipped_byte_is_a_miss_never_wrong_bytes() {
    let origin = tempfile::tempdir().unwrap();
    let store = Store::open_with(origin.path(), 1 << 30).unwrap();
    let (fact, _) = record_everything(&store);
    let layer = BlobDigest::of(b"layer-a");
    let (_, toc_bytes) = store.toc(&layer).unwrap().unwrap();
    let chunks = Toc::decode(&toc_bytes).unwrap().chunks().entries().to_vec();
    drop(store);
    let len = std::fs::metadata(packs(origin.path()).remove(0)).unwrap().len();
    let mut misses = 0;
    for at in (24..len).step_by(701) {
        for keep_index in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            copy_tree(origin.path(), dir.path());
            if !keep_index {
                std::fs::remove_dir_all(dir.path().join("index")).unwrap();
            }
            let pack = dir.path().join("packs/00000001.pack");
            let file = File::options().read(true).write(true).open(pack).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
            drop(file);
            let store = Store::open_with(dir.path(), 1 << 30).unwrap();
            for c in &chunks {
                match store.read_chunk(&c.digest).unwrap() {
                    Some(frame) => {
                        let raw = zstd::bulk::decompress(&frame, c.raw_len as usize).unwrap();
                        assert_eq!(ChunkDigest::of(&raw), c.digest);
                    }
                    None => misses += 1,
                }
            }
            match store.toc(&layer).unwrap() {
                Some((_, bytes)) => assert_eq!(bytes, toc_bytes),
                None => misses += 1,
            }
            match store.manifest(&fact.digest).unwrap() {
                Some(found) => assert_eq!(found, fact),
                None => misses += 1,
            }
            // Converting again mends it.
            publish(&store, "layer-a", 0..8);
            assert_ready(&store, &layer);
        }
    }
    assert!(misses > 0);
}

#[test]
fn a_pack_that_vanished_is_a_miss_and_the_store_still_opens() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    record_everything(&store);
    drop(store);
    let all = packs(dir.path());
    assert!(all.len() > 1);
    std::fs::remove_file(&all[0]).unwrap();
    let store = open(dir.path());
    publish(&store, "layer-a", 0..8);
    assert_ready(&store, &BlobDigest::of(b"layer-a"));
}

#[test]
fn a_layer_is_not_ready_when_a_chunk_of_its_toc_is_not_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let layer = BlobDigest::of(b"l");
    let lost = ChunkEntry {
        digest: ChunkDigest::of(b"nowhere"),
        raw_len: 4096,
        frame_len: 10,
    };
    assert!(store.publish_layer(&layer, &toc_of(&layer, vec![lost])).is_err());
    assert_eq!(store.layer(&layer).unwrap(), None);
}

/// Two images may claim one chain ID for different layers; a claim that the conversion disproved is not repeated.
#[test]
fn a_disproved_chain_claim_is_not_answered() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (good, toc) = publish(&store, "good", 0..2);
    let (evil, _) = publish(&store, "evil", 2..4);
    let claimed = *toc.diff_id();
    for (name, layer) in [("good image", good), ("evil image", evil)] {
        let mut fact = manifest(&[layer]);
        fact.digest = BlobDigest::of(name.as_bytes());
        store.record_manifest(&fact).unwrap();
        let config = ConfigFact {
            manifest: fact.digest,
            diff_ids: vec![claimed],
        };
        store.record_config(&config).unwrap();
    }
    assert_eq!(store.chain(&ChainId::bottom(claimed)).unwrap().unwrap().layer, good);
}
