//! What becomes of an index that is of another version, or of which sled panics.
//!
//! Not here: damage of its files (`tests/store.rs`, `crash`), compaction ([`crate::store::compact`]).

use super::*;
use crate::store::Store;
use crate::store::crash::layers::{assert_ready, publish};

#[test]
fn an_index_of_another_version_is_moved_aside_and_rebuilt() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (layer, _) = publish(&store, "layer", 0..4);
    store.flush().unwrap();
    drop(store);
    for other in [&2u32.to_le_bytes()[..], &9u32.to_le_bytes(), b"x"] {
        let index = Index::open_sled(dir.path(), DIR).unwrap();
        index.set_row(keys::VERSION, Some(other)).unwrap();
        index.flush().unwrap();
        drop(index);
        let version = other.try_into().ok().map(u32::from_le_bytes);
        let refused = Index::open(dir.path()).map(drop).unwrap_err();
        assert!(
            matches!(refused, IndexError::OtherVersion(found) if found == version),
            "{refused}"
        );
        let store = Store::open(dir.path()).unwrap();
        let report = store.open_report();
        assert!(report.index_rebuilt && report.damaged_records == 0 && !report.packs_lack);
        assert!(dir.path().join(ASIDE).is_dir(), "it is kept for a look");
        assert_ready(&store, &layer);
        drop(store);
    }
    assert!(!Store::open(dir.path()).unwrap().open_report().index_rebuilt);
}

#[test]
fn a_panic_of_sled_is_an_error_and_the_next_opening_rebuilds() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (layer, _) = publish(&store, "layer", 0..4);
    let index = &store.inner.index;
    let panicked = index.guard("look something up", |_| -> sled::Result<()> { panic!("a test's") });
    assert!(
        matches!(panicked, Err(IndexError::Panicked("look something up"))),
        "{panicked:?}"
    );
    let panicked = index.change("write something", [&b"k"[..]], |_| -> sled::Result<()> {
        panic!("a test's")
    });
    assert!(matches!(panicked, Err(IndexError::Panicked(_))));
    assert!(dir.path().join(SUSPECT).exists());
    // Whatever is asked meanwhile is answered, and what is written is not lost.
    assert_ready(&store, &layer);
    let (later, _) = publish(&store, "later", 2..7);
    drop(store);
    assert!(matches!(Index::open(dir.path()).map(drop), Err(IndexError::Suspect)));
    let store = Store::open(dir.path()).unwrap();
    assert!(store.open_report().index_rebuilt);
    assert!(!dir.path().join(SUSPECT).exists());
    [layer, later].iter().for_each(|layer| assert_ready(&store, layer));
    drop(store);
    assert!(!Store::open(dir.path()).unwrap().open_report().index_rebuilt);
}
