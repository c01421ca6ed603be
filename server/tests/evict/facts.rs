//! Facts through sweeps, also ones that are killed at any step.
//!
//! In: facts, some superseded. Out: the latest of each, with and without the index.
//! Not here: power cuts (`src/store/crash`).

use std::collections::HashSet;

use headstart_layer_format::BlobDigest;
use headstart_server::store::facts::TagFact;
use headstart_server::store::plan::Wanted;
use headstart_server::store::sweep::Step;
use headstart_server::store::{LayerRecord, Store};

use crate::layers::{assert_ready, chunk_bytes, copy_tree, publish, put_chunk};
use crate::{assert_facts, collect, is_ready, keep_all, open, record_facts, source};

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

// ---- a server and what it fetches again -------------------------------------------------------------------------
