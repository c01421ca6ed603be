//! Facts through sweeps, also ones that are killed at any step.
//!
//! In: facts, some superseded. Out: the latest of each, with and without the index.
//! Not here: power cuts (`src/store/crash`).

use std::collections::HashSet;

use headstart_layer_format::{BlobDigest, ChainId, DiffId};
use headstart_server::store::audit::Audited;
use headstart_server::store::facts::{ConfigFact, ImageFact, LayerFact, ManifestFact, TagFact};
use headstart_server::store::forget::Here;
use headstart_server::store::pins::PinTarget;
use headstart_server::store::plan::{Live, Wanted};
use headstart_server::store::sweep::Step;
use headstart_server::store::{LayerRecord, Store};

use crate::layers::{assert_ready, chunk_bytes, copy_tree, publish, put_chunk};
use crate::{assert_facts, collect, is_ready, keep_all, open, rebuilt, record_facts, source};

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
    let store = rebuilt(dir.path(), store);
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
                if keep_index {
                    // (A pack that was doomed and gone was one that the index should not know of.)
                    let look = Store::open_to_check(copy.path()).unwrap();
                    assert!(!look.open_report().packs_lack, "{step:?}");
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

/// States of layers that are not ready do not gather: the oldest pack's go with it, and the others follow.
#[test]
fn states_that_say_no_more_than_none_go_with_the_oldest_pack() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let name = |kind: &str, n: u32| BlobDigest::of(format!("{kind} {n}").as_bytes());
    let (kept, _) = publish(&store, "kept", 0..4);
    for n in 0..40 {
        publish(&store, &format!("evicted {n}"), 10 + n..12 + n);
        store.refuse_layer(&name("refused", n), "it is no tar").unwrap();
    }
    let wanted = Wanted {
        removed: (0..40).map(|n| name("evicted", n)).collect(),
        refusals_max: 25,
        ..keep_all()
    };
    assert_eq!(collect(&store, &wanted).len(), 40);
    let count = |store: &Store| {
        let layers = store.layers().unwrap();
        let refused = layers.iter().filter(|l| matches!(l.1, LayerRecord::Refused { .. }));
        let gone = layers.iter().filter(|l| l.1 == LayerRecord::Unconverted);
        (layers.len(), refused.count(), gone.count())
    };
    // Refused ones are remembered, up to a number; the least that a sweep must do is to turn the log once.
    for _ in 0..3 {
        collect(
            &store,
            &Wanted {
                refusals_max: 25,
                ..keep_all()
            },
        );
    }
    assert_eq!(count(&store), (26, 25, 0));
    assert_eq!(store.unready_layers().unwrap(), 25);
    let refused: Vec<_> = (0..40).map(|n| store.layer(&name("refused", n)).unwrap()).collect();
    // They are tried again, and may be refused again.
    store.refuse_layer(&name("refused", 0), "it is no tar").unwrap();
    assert!(store.layer(&name("refused", 0)).unwrap().is_some());
    assert_eq!(refused.iter().flatten().count(), 25);
    drop(store);
    let look = Store::open_to_check(dir.path()).unwrap();
    assert_eq!(look.open_report(), Default::default());
    drop(look);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = open(dir.path());
    assert_ready(&store, &kept);
    for n in 0..40 {
        assert!(!is_ready(&store, &name("evicted", n)), "the packs say the same");
    }
    assert!(count(&store).1 <= 26);
}

/// What a server learns of an image of one layer, which it shares with others, and of one of its own.
pub fn image(n: u32, shared: BlobDigest) -> (ManifestFact, TagFact, ConfigFact) {
    let name = |kind: &str| BlobDigest::of(format!("{kind} {n}").as_bytes());
    let (config, own) = (name("config"), name("own"));
    let layer = |digest| LayerFact {
        digest,
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        size: 99,
    };
    let manifest = ManifestFact {
        source: source(n % 7),
        digest: name("manifest"),
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        size: 1234,
        members: vec![config, shared, own],
        foreign: Vec::new(),
        image: Some(ImageFact {
            config,
            layers: vec![layer(shared), layer(own)],
        }),
    };
    let tag = TagFact {
        digest: manifest.digest,
        media_type: manifest.media_type.clone(),
        size: 1234,
        confirmed_unix_secs: 1_000_000 + u64::from(n),
    };
    // As `toc_of` has them.
    let diff_ids = [shared, own].map(|layer| DiffId::of(layer.to_string().as_bytes()));
    let config = ConfigFact {
        manifest: manifest.digest,
        diff_ids: diff_ids.to_vec(),
    };
    (manifest, tag, config)
}

pub fn record(store: &Store, n: u32, shared: BlobDigest) {
    let (manifest, tag, config) = image(n, shared);
    store.record_manifest(&manifest).unwrap();
    store.record_config(&config).unwrap();
    store.confirm_tag(&manifest.source, &format!("t{n}"), &tag).unwrap();
    store.add_member(&manifest.source, &manifest.members[2]).unwrap();
}

pub fn is_known(store: &Store, n: u32, shared: BlobDigest) -> bool {
    let (manifest, tag, config) = image(n, shared);
    let known = store.manifest(&manifest.digest).unwrap();
    let whole = known.as_ref() == Some(&manifest)
        && store.diff_ids(&manifest.digest).unwrap() == Some(config.diff_ids.clone())
        && store.tag(&manifest.source, &format!("t{n}")).unwrap() == Some(tag)
        && store.is_member(&manifest.source, &manifest.digest).unwrap()
        && store.is_member(&manifest.source, &manifest.members[2]).unwrap()
        && store.chain(&ChainId::chain(&config.diff_ids)[1]).unwrap().is_some();
    let nothing = known.is_none()
        && store.diff_ids(&manifest.digest).unwrap().is_none()
        && store.tag(&manifest.source, &format!("t{n}")).unwrap().is_none()
        && !store.is_member(&manifest.source, &manifest.digest).unwrap()
        // Of what is here, it is remembered where it is from.
        && (n == 50 || !store.is_member(&manifest.source, &manifest.members[2]).unwrap())
        && (n == 50 || store.sources(&manifest.members[2]).unwrap().is_empty())
        && store.chain(&ChainId::chain(&config.diff_ids)[1]).unwrap().is_none();
    assert!(whole || nothing, "all of it or nothing: {n}");
    whole
}

/// Of 300 images the manifests of the last twenty are here, one is pinned, and one has all of its layers.
#[test]
fn facts_of_images_that_are_gone_are_forgotten_when_they_are_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (shared, _) = publish(&store, "shared", 0..4);
    for n in 0..300 {
        record(&store, n, shared);
    }
    publish(&store, "own 50", 4..6);
    let digest = image(7, shared).0.digest;
    store.set_pin(&PinTarget::Digest(digest), true).unwrap();
    let here = Here {
        originals: (280..300)
            .map(|n| (image(n, shared).0.digest, 100 + u64::from(n)))
            .collect(),
        pinned: store.pinned().unwrap(),
    };
    let known = |store: &Store| (0..300).filter(|n| is_known(store, *n, shared)).collect::<Vec<_>>();
    assert_eq!(known(&store).len(), 300);
    let bytes = |store: &Store| {
        let packs = store.sealed_packs().into_iter().chain([store.current_pack()]);
        packs
            .map(|(pack, len)| store.overhead(pack, len, &|| true).unwrap().facts)
            .sum::<u64>()
    };
    let before = bytes(&store);
    let rows = store.index_rows().unwrap();
    // Those that came first go first.
    store.forget_facts(before / 3, &here, &|| true).unwrap().unwrap();
    let left = known(&store);
    assert!(
        left.contains(&7) && left.contains(&50) && left.contains(&299),
        "{left:?}"
    );
    assert!(
        !left.contains(&0) && left.contains(&270) && (150..250).contains(&left.len()),
        "{left:?}"
    );
    assert!(bytes(&store) < before * 3 / 4, "{before} {}", bytes(&store));
    // All that may go: first what nobody has asked for since it went.
    store
        .forget_facts(bytes(&store) * 7 / 10, &here, &|| true)
        .unwrap()
        .unwrap();
    let left = known(&store);
    assert!(left.contains(&7) && left.contains(&299) && left.len() < 80, "{left:?}");
    let left_then = left.clone();
    assert!(store.index_rows().unwrap() * 2 < rows);
    assert!(store.is_member(&source(0), &shared).unwrap(), "it is here");
    assert_ready(&store, &shared);
    // Records that have no rows are no damage, also while they are there.
    let mut found = Vec::new();
    let mut step = |at: Audited| {
        if let Audited::Found(finding) = at {
            found.push(finding);
        }
        true
    };
    for (pack, len) in store.audit_packs().unwrap() {
        store.audit_pack(pack, len, &mut step).unwrap();
    }
    store.audit_index(&mut step).unwrap();
    assert_eq!(found, []);
    // The records go with their packs.
    for _ in 0..3 {
        collect(&store, &keep_all());
    }
    assert!(store.pack_bytes() < before / 2, "{} of {before}", store.pack_bytes());
    assert_eq!(known(&store), left_then);
    let store = rebuilt(dir.path(), store);
    assert_eq!(known(&store), left_then, "the packs say the same");
    // Asked for again, they are recorded again; and once more what is there twice is written once.
    for _ in 0..3 {
        for n in 0..50 {
            record(&store, n, shared);
        }
        assert_eq!((0..50).filter(|n| is_known(&store, *n, shared)).count(), 50);
        store.forget_facts(u64::MAX, &here, &|| true).unwrap().unwrap();
        assert_eq!(known(&store), [7]);
    }
    for n in 0..50 {
        record(&store, n, shared);
    }
    // The same fact twice, and what undoes it in between: the last counts.
    let target = PinTarget::Digest(BlobDigest::of(b"to and fro"));
    for pinned in [true, false, true] {
        store.set_pin(&target, pinned).unwrap();
    }
    collect(&store, &keep_all());
    collect(&store, &keep_all());
    assert!(store.pins().unwrap().contains(&target));
    let once = bytes(&store);
    assert!(once < before / 4, "{once} of {before}");
    let store = rebuilt(dir.path(), store);
    assert!(store.pins().unwrap().contains(&target));
    assert_eq!((0..50).filter(|n| is_known(&store, *n, shared)).count(), 50);
}

/// The pack that is written to is swept after those that were moved into it.
#[test]
fn a_fact_that_moves_twice_in_a_cycle_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (shared, _) = publish(&store, "shared", 0..4);
    (0..5).for_each(|n| record(&store, n, shared));
    store.seal_current_pack().unwrap();
    let cycle = store.cycle();
    for _ in 0..3 {
        for (pack, _) in store.sealed_packs() {
            let swept = store.sweep_pack(&cycle, pack, &Live::everything(), &mut |_| true);
            swept.unwrap().unwrap();
        }
        store.seal_current_pack().unwrap();
    }
    drop(cycle);
    let store = rebuilt(dir.path(), store);
    assert!((0..5).all(|n| is_known(&store, n, shared)));
}

// ---- a server and what it fetches again -------------------------------------------------------------------------
