//! Which layers go: least recently used first, older than an age, neither pinned nor held.
//!
//! In: a store with layers, uses, pins. Out: who is left.
//! Not here: what a sweep does about it ([`super::sweeps`]).

use std::collections::HashSet;
use std::time::Duration;

use headstart_layer_format::ChunkDigest;
use headstart_server::store::plan::Wanted;

use crate::layers::{assert_ready, chunk_bytes, publish};
use crate::{collect, is_ready, keep_all, open, rebuilt};

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
    let store = rebuilt(dir.path(), store);
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
    let store = rebuilt(dir.path(), store);
    // Nothing is known: used now, so that no age applies to it.
    assert!(store.layer_used_ms(&b).unwrap() > used[0]);
}

/// Two conversions whose chunks and all ready layers together were more than the budget: nothing was evicted, since the
/// layers alone did fit, so both waited until they gave up, and again, for ever.
#[test]
fn ready_layers_go_for_what_conversions_hold() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let [old, new] = [("old", 0), ("new", 8)].map(|(name, n)| publish(&store, name, n..n + 4).0);
    std::thread::sleep(Duration::from_millis(3));
    store.touch_layer(&new);
    let plan = |bytes_max| {
        let wanted = Wanted {
            bytes_max,
            ..keep_all()
        };
        store.plan(&wanted, &|| true).unwrap().unwrap()
    };
    let both = plan(u64::MAX).live.bytes;
    assert_eq!(plan(both).victims.len(), 0);

    let running = store.begin_conversion();
    // One that is new, and one of the layer that was used last, which is not counted twice.
    for n in [100, 8] {
        let bytes = chunk_bytes(n);
        running
            .append_chunk(&ChunkDigest::of(&bytes), bytes.len() as u32, &bytes)
            .unwrap();
    }
    let victims: Vec<_> = plan(both).victims.iter().map(|v| v.layer).collect();
    assert_eq!(victims, [old]);
    let with_it = plan(u64::MAX).live.bytes;
    assert!(with_it > both && plan(with_it).victims.is_empty());
    drop(running);
    assert_eq!(plan(both).victims.len(), 0);
}
