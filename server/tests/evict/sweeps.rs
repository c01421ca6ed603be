//! Sweeping packs beside conversions and readers.
//!
//! In: a store whose packs are rewritten. Out: what was counted on stays, readers go on.
//! Not here: sweeps that are killed ([`super::facts`]).

use std::collections::HashSet;

use headstart_layer_format::BlobDigest;
use headstart_server::store::plan::Wanted;

use crate::layers::{assert_ready, publish, toc_of};
use crate::{collect, keep_all, open};

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
