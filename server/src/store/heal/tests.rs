//! A store goes on while its index is rebuilt, and after.
//!
//! Not here: what makes an index fail (`tests/disk_full.rs`, `tests/fsck/rot.rs`).

use std::sync::atomic::AtomicBool;
use std::thread::sleep;

use headstart_layer_format::BlobDigest;

use super::*;
use crate::metrics::Metrics;
use crate::store::audit::Audited;
use crate::store::crash::layers::{assert_ready, publish};
use crate::store::facts::{Source, TagFact};
use crate::store::index::Why;
use crate::store::pins::PinTarget;
use crate::store::plan::Live;
use crate::store::sweep::Step;

const SUSPECT: &str = "index.suspect";

fn source() -> Source {
    Source {
        upstream: "u".into(),
        repository: "r".into(),
    }
}

fn confirm(store: &Store, tag: &str) {
    let fact = TagFact {
        digest: BlobDigest::of(tag.as_bytes()),
        media_type: "m".into(),
        size: 1,
        confirmed_unix_secs: 7,
    };
    store.confirm_tag(&source(), tag, &fact).unwrap();
}

/// What an audit says is wrong.
fn wrong(store: &Store) -> Vec<String> {
    let mut found = Vec::new();
    let mut step = |at: Audited| {
        if let Audited::Found(finding) = at {
            found.push(format!("{finding:?}"));
        }
        true
    };
    for (pack, len) in store.audit_packs().unwrap() {
        store.audit_pack(pack, len, &mut step).unwrap();
    }
    store.audit_index(&mut step).unwrap();
    found
}

#[test]
fn an_index_that_failed_is_rebuilt_while_the_store_is_in_use_and_says_what_it_said() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let metrics = Metrics::new();
    store.observe(metrics.clone());
    let (early, _) = publish(&store, "early", 0..4);
    confirm(&store, "early");
    store.set_note(b"note", Some(b"kept")).unwrap();
    store.touch_layer(&early);
    store.save_layer_uses(0).unwrap();
    let used = store.inner.index.used(&early).unwrap();
    assert!(used.is_some());
    store.inner.index.note_forgetting().unwrap();

    // So many that it is worth a compaction.
    for n in 0..4000u32 {
        store.set_note(b"other", Some(&n.to_le_bytes().repeat(100))).unwrap();
    }
    store.set_note(b"other", None).unwrap();
    store.flush().unwrap();

    store.inner.index.distrust();
    sleep(Duration::from_millis(2500));
    assert_eq!(store.inner.index.doubt(), Some(Why::Audit), "nobody has asked for it");
    // While it is not believed: facts wait, conversions go on as far as it goes, and what it says is served.
    confirm(&store, "meanwhile");
    assert_eq!(store.tag(&source(), "meanwhile").unwrap(), None);
    let (meanwhile, _) = publish(&store, "meanwhile", 2..7);
    assert_ready(&store, &early);
    // What it does not find may be there all the same.
    store.unconvert_layer(&early, "a test's").unwrap();
    assert_ready(&store, &early);
    assert!(
        !store.compact_index_over(0, &|| true).unwrap(),
        "a copy of it would be as doubtful"
    );

    store.heal_index();
    let until = Instant::now() + Duration::from_secs(60);
    let counted = "headstart_index_rebuilds_total{reason=\"audit\"} 1";
    while !metrics.render().contains(counted) {
        assert!(Instant::now() < until, "it is rebuilt");
        sleep(Duration::from_millis(20));
    }
    assert_eq!(store.inner.index.doubt(), None);
    assert!(!dir.path().join(SUSPECT).exists());
    let check = |store: &Store, tags: &[&str], layers: &[BlobDigest]| {
        layers.iter().for_each(|layer| assert_ready(store, layer));
        for tag in tags {
            assert!(store.tag(&source(), tag).unwrap().is_some(), "{tag}");
        }
        assert_eq!(store.notes().unwrap(), [(b"note".to_vec(), b"kept".to_vec())]);
        assert_eq!(store.inner.index.used(&early).unwrap(), used);
        assert!(store.inner.index.is_forgetting().unwrap());
        assert_eq!(wrong(store), [""; 0]);
    };
    check(&store, &["early"], &[early, meanwhile]);
    confirm(&store, "late");
    let (late, _) = publish(&store, "late", 5..9);
    check(&store, &["early", "late"], &[early, meanwhile, late]);
    // Not again at once.
    store.inner.index.distrust();
    sleep(Duration::from_millis(2500));
    assert_eq!(store.inner.index.doubt(), Some(Why::Audit), "a minute has not passed");
    store.inner.index.believe_for_a_test();
    store.flush().unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(!store.open_report().index_rebuilt);
    check(&store, &["early", "late"], &[early, meanwhile, late]);
}

/// Rows, notes, pins and layers that come while it is rebuilt, over and over, in small packs.
#[test]
fn nothing_that_is_written_meanwhile_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), 64 << 10).unwrap();
    let done = AtomicBool::new(false);
    let count = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut count = 0;
            while !done.load(Relaxed) {
                let (layer, _) = publish(&store, &format!("layer {count}"), count * 3..count * 3 + 5);
                assert!(store.set_pin(&PinTarget::Digest(layer), true).unwrap());
                store.set_note(&count.to_be_bytes(), Some(b"n")).unwrap();
                count += 1;
            }
            count
        });
        for _ in 0..8 {
            sleep(Duration::from_millis(30));
            store.inner.index.distrust();
            assert!(heal(&store.inner, &|| true).unwrap());
            store.inner.index.believed().unwrap();
        }
        assert!(!heal(&store.inner, &|| false).unwrap(), "it was told to stop");
        done.store(true, Relaxed);
        writing.join().unwrap()
    });
    assert!(count > 8, "{count}");
    let check = |store: &Store, notes: u32| {
        let pins = store.pins().unwrap();
        assert_eq!(
            (pins.len(), store.notes().unwrap().len()),
            (count as usize, notes as usize)
        );
        for n in 0..count {
            let layer = BlobDigest::of(format!("layer {n}").as_bytes());
            assert_ready(store, &layer);
            assert!(pins.contains(&PinTarget::Digest(layer)));
        }
        assert_eq!(wrong(store), [""; 0]);
    };
    check(&store, count);
    store.flush().unwrap();
    drop(store);
    let store = Store::open_with(dir.path(), 64 << 10).unwrap();
    assert!(!store.open_report().index_rebuilt);
    check(&store, count);
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    check(&Store::open_with(dir.path(), 64 << 10).unwrap(), 0);
}

/// Its word for what may go is worth nothing then.
#[test]
fn a_sweep_does_not_delete_by_the_word_of_an_index_that_was_in_doubt() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (layer, _) = publish(&store, "layer", 0..4);
    let seal = || {
        store.seal_current_pack().unwrap();
        store.commit().unwrap();
        store.sealed_packs()[0].0
    };
    let pack = seal();
    for at in [Step::Moved, Step::Committed] {
        // Of the doubt, and of what came after it.
        for heals in [false, true] {
            let swept = store.sweep_pack(&store.cycle(), pack, &Live::everything(), &mut |step| {
                if step == at {
                    store.inner.index.distrust();
                    if heals {
                        assert!(heal(&store.inner, &|| true).unwrap());
                    }
                }
                true
            });
            assert!(
                matches!(swept, Err(StoreError::Index(IndexError::Suspect))),
                "{swept:?}"
            );
            assert_eq!(store.sealed_packs()[0].0, pack);
        }
    }
    // While a pack goes, nothing is rebuilt: the new one would have rows of what is gone.
    let mut healing = Healing::default();
    let swept = store.sweep_pack(&store.cycle(), pack, &Live::everything(), &mut |step| {
        if step == Step::Doomed {
            store.inner.index.distrust();
            healing.look(&store.inner, &|| true);
            assert!(store.inner.index.doubt().is_some());
        }
        true
    });
    assert!(swept.unwrap().is_some());
    healing.look(&store.inner, &|| true);
    store.inner.index.believed().unwrap();
    assert_ready(&store, &layer);
    assert_eq!(wrong(&store), [""; 0]);
}

/// The new one is in use, and the disk takes nothing: then it does not count at an opening.
#[test]
fn a_crash_before_the_new_one_is_durable_has_the_opening_rebuild_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (layer, _) = publish(&store, "layer", 0..4);
    store.inner.index.distrust();
    // The directory is in the way of the file that says that it is whole.
    let old = store.inner.rebuild("index.1", &|| true).unwrap().unwrap();
    std::fs::create_dir(dir.path().join("index.1/whole")).unwrap();
    assert!(store.inner.settle("index.1").is_err());
    assert!(dir.path().join(SUSPECT).exists());
    assert_ready(&store, &layer);
    old.close();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert!(store.open_report().index_rebuilt);
    assert_ready(&store, &layer);
}
