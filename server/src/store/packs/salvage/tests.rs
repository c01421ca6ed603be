//! What was said last counts, whichever pack could not be synced.
//!
//! In: two packs, and syncs that fail while the second is written. Out: the later of what they say, at once, after
//! another opening, and with an index made of the packs.
//! Not here: that nothing promised is lost (`store/crash`).

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use headstart_layer_format::BlobDigest;

use crate::store::Store;
use crate::store::disk::{Disk, Op, Witness};
use crate::store::facts::{ManifestFact, Source, TagFact};
use crate::store::layers::{CONVERTER_VERSION, LayerRecord};
use crate::store::learned::Fact;
use crate::store::pins::PinTarget;
use crate::store::refusal::Terms;

const WAIT: Duration = Duration::from_secs(60);
const FIRST: &str = "00000001.pack";
const SECOND: &str = "00000002.pack";

/// Packs of which the next sync, or every cut, fails; a sync that is held says so, and waits.
#[derive(Debug, Default)]
struct Failing {
    syncs: Mutex<HashSet<&'static str>>,
    cuts: Mutex<HashSet<&'static str>>,
    held: Mutex<Option<(Sender<()>, Receiver<()>)>>,
    /// Writes to the second pack that still succeed, if they are to fail then.
    writes: Mutex<Option<usize>>,
}

impl Witness for Failing {
    fn about_to(&self, op: Op<'_>) -> io::Result<()> {
        let named =
            |path: &Path, names: &HashSet<&'static str>| names.iter().copied().find(|name| path.ends_with(name));
        let refused = || Err(io::Error::other("a test's refusal"));
        match op {
            Op::Sync(path) => {
                let mut syncs = self.syncs.lock().unwrap();
                let Some(name) = named(path, &syncs) else { return Ok(()) };
                syncs.remove(name);
                drop(syncs);
                let held = self.held.lock().unwrap().take();
                if let Some((syncing, go_on)) = held {
                    syncing.send(()).unwrap();
                    let _ = go_on.recv_timeout(WAIT);
                }
                refused()
            }
            Op::Write(path, ..) if path.ends_with(SECOND) => {
                let mut writes = self.writes.lock().unwrap();
                match *writes {
                    None => Ok(()),
                    Some(0) => refused(),
                    Some(n) => {
                        *writes = Some(n - 1);
                        Ok(())
                    }
                }
            }
            Op::SetLen(path, _) if named(path, &self.cuts.lock().unwrap()).is_some() => refused(),
            _ => Ok(()),
        }
    }
}

fn source(repository: &str) -> Source {
    Source {
        upstream: "u".into(),
        repository: repository.into(),
    }
}

fn tag(digest: &[u8]) -> TagFact {
    TagFact {
        digest: BlobDigest::of(digest),
        media_type: "m".into(),
        size: 1,
        confirmed_unix_secs: 7,
    }
}

fn manifest(repository: &str) -> ManifestFact {
    ManifestFact {
        source: source(repository),
        digest: BlobDigest::of(b"manifest"),
        media_type: "m".into(),
        size: 1,
        members: Vec::new(),
        foreign: Vec::new(),
        image: None,
    }
}

fn pin(n: u32) -> PinTarget {
    PinTarget::Digest(BlobDigest::of(&n.to_le_bytes()))
}

fn refused(reason: &str) -> LayerRecord {
    LayerRecord::Refused {
        reason: reason.into(),
        converter: CONVERTER_VERSION,
        terms: Terms::default(),
    }
}

const LAYER: &[u8] = b"layer";

fn say_first(store: &Store) {
    for name in ["moves", "goes"] {
        store.confirm_tag(&source("r"), name, &tag(b"first")).unwrap();
    }
    store.record_manifest(&manifest("first")).unwrap();
    for (n, pinned) in [(0, true), (1, false)] {
        store.append_fact(&Fact::Pin { target: pin(n), pinned }).unwrap();
    }
    let packs = &store.inner.packs;
    packs.append_layer(&BlobDigest::of(LAYER), &refused("first")).unwrap();
}

fn say_then(store: &Store) {
    store.confirm_tag(&source("r"), "moves", &tag(b"then")).unwrap();
    let (source, tag) = (source("r"), "goes".to_owned());
    let behind = store.current_pack().0.0;
    store.append_fact(&Fact::Untagged { source, tag, behind }).unwrap();
    store.record_manifest(&manifest("then")).unwrap();
    for (n, pinned) in [(0, false), (1, true)] {
        store.append_fact(&Fact::Pin { target: pin(n), pinned }).unwrap();
    }
    let packs = &store.inner.packs;
    packs.append_layer(&BlobDigest::of(LAYER), &refused("then")).unwrap();
}

fn assert_then(store: &Store, what: &str) {
    let known = |name: &str| store.tag(&source("r"), name).unwrap().map(|fact| fact.digest);
    assert_eq!(known("moves"), Some(BlobDigest::of(b"then")), "{what}");
    assert_eq!(known("goes"), None, "{what}");
    assert_eq!(
        store.manifest(&BlobDigest::of(b"manifest")).unwrap(),
        Some(manifest("then")),
        "{what}"
    );
    for repository in ["first", "then"] {
        let is_member = store.is_member(&source(repository), &BlobDigest::of(b"manifest"));
        assert!(is_member.unwrap(), "{what}: {repository}");
    }
    assert_eq!(store.pins().unwrap(), [pin(1)], "{what}");
    assert_eq!(
        store.layer(&BlobDigest::of(LAYER)).unwrap(),
        Some(refused("then")),
        "{what}"
    );
}

/// Opened again, as it is and with an index made of the packs.
fn assert_then_as_well_when_opened_again(dir: &Path, store: Store, what: &str) {
    drop(store);
    let store = Store::open(dir).unwrap();
    assert_then(&store, &format!("{what}, opened again"));
    drop(store);
    std::fs::remove_dir_all(dir.join("index")).unwrap();
    assert_then(&Store::open(dir).unwrap(), &format!("{what}, rebuilt"));
}

/// While a commit waits for the disk, another thread may seal the pack and go on in the next. What the first had was
/// written again behind that, and overruled it: a tag was back where it had pointed, a pin that was taken back held.
#[test]
fn what_came_while_a_sync_failed_stays_the_latest() {
    for (what, failing) in [("the first", vec![FIRST]), ("both", vec![FIRST, SECOND])] {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Failing::default());
        let store = Store::open_on(Disk::with(disk.clone()), dir.path(), 1 << 20).unwrap();
        say_first(&store);
        let (syncing, is_syncing) = channel();
        let (let_on, go_on) = channel();
        *disk.held.lock().unwrap() = Some((syncing, go_on));
        disk.syncs.lock().unwrap().insert(FIRST);
        std::thread::scope(|scope| {
            let commits = scope.spawn(|| store.commit());
            is_syncing.recv_timeout(WAIT).unwrap();
            // The sync with which it is sealed succeeds: the kernel has forgotten what it could not write.
            store.seal_current_pack().unwrap();
            say_then(&store);
            disk.syncs.lock().unwrap().extend(failing);
            disk.syncs.lock().unwrap().remove(FIRST);
            if what == "both" {
                store.seal_current_pack().unwrap_err();
            }
            drop(let_on);
            // Or the store's own thread was the first.
            let _ = commits.join().unwrap();
        });
        assert!(disk.syncs.lock().unwrap().is_empty());
        store.commit().unwrap();
        assert_then(&store, what);
        assert_then_as_well_when_opened_again(dir.path(), store, what);
    }
}

/// What an attempt had written when the disk was full was taken for the latest by the next one.
#[test]
fn what_a_salvage_that_failed_has_written_overrules_nothing() {
    for written in 0..12 {
        let dir = tempfile::tempdir().unwrap();
        let disk = Arc::new(Failing::default());
        let store = Store::open_on(Disk::with(disk.clone()), dir.path(), 1 << 20).unwrap();
        say_first(&store);
        say_then(&store);
        *disk.writes.lock().unwrap() = Some(written);
        disk.syncs.lock().unwrap().insert(FIRST);
        // Or the store's own thread is the first.
        let _ = store.commit();
        assert!(disk.syncs.lock().unwrap().is_empty());
        for _ in 0..2 {
            assert!(store.commit().is_err() || written > 10, "{written}");
        }
        *disk.writes.lock().unwrap() = None;
        store.commit().unwrap();
        let what = format!("{written} writes");
        assert_then(&store, &what);
        assert_then_as_well_when_opened_again(dir.path(), store, &what);
    }
}

#[test]
fn what_came_into_a_pack_that_could_not_be_synced_stays_the_latest() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Failing::default());
    let store = Store::open_on(Disk::with(disk.clone()), dir.path(), 1 << 20).unwrap();
    say_first(&store);
    store.seal_current_pack().unwrap();
    say_then(&store);
    disk.syncs.lock().unwrap().insert(SECOND);
    // Or the store's own thread is the first.
    let _ = store.commit();
    assert!(disk.syncs.lock().unwrap().is_empty());
    store.commit().unwrap();
    assert_then(&store, "the second");
    assert_then_as_well_when_opened_again(dir.path(), store, "the second");
}

/// It could not be cut, either: the next opening took its end for the latest that was said.
#[test]
fn what_is_left_of_a_pack_that_could_not_be_cut_does_not_overrule_what_came_since() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Failing::default());
    let store = Store::open_on(Disk::with(disk.clone()), dir.path(), 1 << 20).unwrap();
    disk.cuts.lock().unwrap().insert(FIRST);
    say_first(&store);
    disk.syncs.lock().unwrap().insert(FIRST);
    let _ = store.commit();
    assert!(disk.syncs.lock().unwrap().is_empty());
    store.commit().unwrap();
    say_then(&store);
    store.flush().unwrap();
    assert_then(&store, "not cut");
    assert_then_as_well_when_opened_again(dir.path(), store, "not cut");
}
