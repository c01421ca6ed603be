//! Eviction: what goes, in which order, and that nothing is lost or wrong when it is interrupted.
//!
//! In: stores, and servers with budgets and ages. Out: what is kept, what goes, what is fetched again.
//! Here is what several of them need.
//! Not here: a day of it (`growth.rs`), orders of the operator (`reclaim.rs`).

#[path = "../support/layers.rs"]
mod layers;
#[path = "../support/mod.rs"]
mod support;

mod facts;
mod forgotten;
mod order;
mod served;
mod sweeps;

use std::collections::HashSet;
use std::path::Path;

use headstart_layer_format::{BlobDigest, DiffId};
use headstart_server::store::facts::{ConfigFact, ImageFact, LayerFact, ManifestFact, Source, TagFact};
use headstart_server::store::pins::PinTarget;
use headstart_server::store::plan::{Reason, Wanted};
use headstart_server::store::{LayerRecord, Store};

const PACK_SIZE_MAX: u64 = 16 << 10;

fn open(dir: &Path) -> Store {
    Store::open_with(dir, PACK_SIZE_MAX).expect("open the store")
}

/// Opened again, with an index that was made from the packs.
fn rebuilt(dir: &Path, store: Store) -> Store {
    drop(store);
    std::fs::remove_dir_all(dir.join("index")).expect("remove the index");
    open(dir)
}

fn keep_all() -> Wanted {
    Wanted {
        bytes_max: u64::MAX,
        reason: Reason::Budget,
        used_before_unix_ms: 0,
        pinned: HashSet::new(),
        removed: HashSet::new(),
        refusals_max: u64::MAX,
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
        foreign: Vec::new(),
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
