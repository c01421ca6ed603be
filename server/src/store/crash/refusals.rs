//! Reads that fail: what cannot be read now is not damaged, what the disk has lost is, and neither keeps a store from
//! opening.
//!
//! In: a store whose disk refuses some reads. Out: errors, misses, the right bytes.
//! Not here: writes that fail ([`super`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use headstart_layer_format::BlobDigest;
use rustix::io::Errno;

use super::layers::{assert_ready, publish};
use super::{PACK_SIZE_MAX, dir};
use crate::store::audit::{Audited, Finding, Subject};
use crate::store::disk::{Disk, Op, Witness};
use crate::store::mend::Mended;
use crate::store::pack::PackId;
use crate::store::pins::PinTarget;
use crate::store::plan::Live;
use crate::store::{Store, StoreError};

/// Refuses reads of a file, from a place on, or its opening.
#[derive(Debug, Default)]
struct Refusing(Mutex<Option<(PathBuf, u64, Errno)>>);

impl Refusing {
    fn set(&self, rule: Option<(PathBuf, u64, Errno)>) {
        *self.0.lock().unwrap() = rule;
    }
}

impl Witness for Refusing {
    fn about_to(&self, op: Op<'_>) -> io::Result<()> {
        let rule = self.0.lock().unwrap();
        let Some((path, from, errno)) = &*rule else {
            return Ok(());
        };
        let is_refused = match op {
            Op::Open(file) => file == path && *errno != Errno::IO,
            Op::Read(file, at, len) => file == path && at + len as u64 > *from,
            _ => false,
        };
        if is_refused { Err((*errno).into()) } else { Ok(()) }
    }
}

fn open(root: &Path, refusing: &Arc<Refusing>) -> Store {
    Store::open_on(Disk::with(refusing.clone()), root, PACK_SIZE_MAX).expect("the store opens")
}

/// Two layers and a pin in several packs. The first pack's path.
fn fill(store: &Store, root: &Path) -> (Vec<BlobDigest>, PathBuf) {
    let target = PinTarget::Digest(BlobDigest::of(b"pinned"));
    store.set_pin(&target, true).unwrap();
    let layers = ["a", "b"].map(|name| publish(store, name, 0..20).0).to_vec();
    assert!(!store.sealed_packs().is_empty());
    (layers, root.join("packs/00000001.pack"))
}

fn findings(store: &Store) -> Result<Vec<Finding>, StoreError> {
    let mut found = Vec::new();
    let mut step = |at: Audited| {
        if let Audited::Found(finding) = at {
            found.push(finding);
        }
        true
    };
    for (pack, len) in store.audit_packs()? {
        store.audit_pack(pack, len, &mut step)?;
    }
    store.audit_index(&mut step)?;
    Ok(found)
}

#[test]
fn a_want_of_descriptors_or_memory_damages_nothing() {
    let root = dir();
    let refusing = Arc::new(Refusing::default());
    let store = open(root.path(), &refusing);
    let (layers, first) = fill(&store, root.path());
    drop(store);
    for errno in [Errno::MFILE, Errno::NOMEM] {
        let store = open(root.path(), &refusing);
        refusing.set(Some((first.clone(), 0, errno)));
        let chunk = headstart_layer_format::ChunkDigest::of(&super::layers::chunk_bytes(0));
        assert!(store.read_chunk(&chunk).is_err(), "an error is no miss");
        assert!(findings(&store).is_err(), "and no damage");
        let pack = Finding {
            subject: Subject::Pack(PackId(1)),
            why: "",
        };
        assert!(store.mend(&pack).is_err(), "and no reason to set a pack aside");
        let swept = store.sweep_pack(&store.cycle(), PackId(1), &Live::everything(), &mut |_| true);
        assert!(
            swept.is_err() && first.exists(),
            "and nothing is deleted that was not moved"
        );
        refusing.set(None);
        assert_eq!(findings(&store).unwrap(), []);
        layers.iter().for_each(|layer| assert_ready(&store, layer));
        drop(store);
    }
}

#[test]
fn what_the_disk_has_lost_is_a_miss_and_the_store_opens_all_the_same() {
    for from in [0, 5000] {
        let root = dir();
        let refusing = Arc::new(Refusing::default());
        let store = open(root.path(), &refusing);
        let (layers, first) = fill(&store, root.path());
        drop(store);
        std::fs::remove_dir_all(root.path().join("index")).unwrap();
        refusing.set(Some((first, from, Errno::IO)));
        let store = open(root.path(), &refusing);
        assert!(store.open_report().damaged_records > 0 || from > 0);
        // Conversions of both again.
        let again: Vec<_> = ["a", "b"].map(|name| publish(&store, name, 0..20).0).to_vec();
        for layer in &layers {
            for n in 0..20 {
                let chunk = headstart_layer_format::ChunkDigest::of(&super::layers::chunk_bytes(n));
                let _ = store.read_chunk(&chunk).expect("a miss at worst");
            }
            let _ = store.toc(layer).expect("a miss at worst");
        }
        assert_eq!(again, layers);
        for name in ["a", "b"] {
            publish(&store, name, 0..20);
        }
        layers.iter().for_each(|layer| assert_ready(&store, layer));
        assert_eq!(
            store.pins().unwrap().len(),
            usize::from(from > 0),
            "the pin was at the beginning"
        );
    }
}

/// A pack that could not be opened once comes back: what it says is not later than what was said since.
#[test]
fn a_pack_that_comes_back_does_not_overrule_later_ones() {
    let root = dir();
    let refusing = Arc::new(Refusing::default());
    let store = open(root.path(), &refusing);
    let (_, first) = fill(&store, root.path());
    let target = PinTarget::Digest(BlobDigest::of(b"pinned"));
    drop(store);
    refusing.set(Some((first.clone(), 0, Errno::IO)));
    let store = open(root.path(), &refusing);
    assert!(store.pins().unwrap().is_empty());
    store.set_pin(&target, true).unwrap();
    store.set_pin(&target, false).unwrap();
    drop(store);
    refusing.set(None);
    let store = open(root.path(), &refusing);
    assert!(store.open_report().index_rebuilt);
    assert_eq!(store.pins().unwrap(), [], "it was unpinned since");
    drop(store);
    assert!(
        !open(root.path(), &refusing).open_report().index_rebuilt,
        "once is enough"
    );
}

/// An ordinary sweep comes by damage that no scrub has seen yet.
#[test]
fn a_sweep_of_a_damaged_pack_forgets_no_pin_and_no_member() {
    use std::os::unix::fs::FileExt as _;
    let root = dir();
    let refusing = Arc::new(Refusing::default());
    let store = open(root.path(), &refusing);
    let (layers, first) = fill(&store, root.path());
    let source = super::workload::source();
    store.add_member(&source, &layers[0]).unwrap();
    store.seal_current_pack().unwrap();
    store.commit().unwrap();
    // Every fact in every pack.
    for (pack, _) in store.sealed_packs() {
        let path = first.with_file_name(format!("{:08}.pack", pack.0));
        let bytes = std::fs::read(&path).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        for fact in [&b"{\"pin\""[..], b"{\"member\""] {
            for at in (0..bytes.len()).filter(|&at| bytes[at..].starts_with(fact)) {
                file.write_all_at(b"#", at as u64).unwrap();
            }
        }
    }
    let cycle = store.cycle();
    for (pack, _) in store.sealed_packs() {
        store
            .sweep_pack(&cycle, pack, &Live::everything(), &mut |_| true)
            .unwrap();
    }
    drop((cycle, store));
    std::fs::remove_dir_all(root.path().join("index")).unwrap();
    let store = open(root.path(), &refusing);
    assert_eq!(store.pins().unwrap().len(), 1);
    assert_eq!(store.sources(&layers[0]).unwrap(), [source]);
}

/// A file that looked strange may be the pack that is written by the time it is set aside.
#[test]
fn the_pack_that_is_written_is_never_set_aside() {
    let root = dir();
    let refusing = Arc::new(Refusing::default());
    let store = open(root.path(), &refusing);
    fill(&store, root.path());
    let (current, _) = store.current_pack();
    for pack in [current, PackId(current.0 + 1)] {
        assert!(store.set_pack_aside(pack, &root.path().join("aside")).is_err());
    }
    assert_eq!(
        store
            .mend(&Finding {
                subject: Subject::Pack(current),
                why: ""
            })
            .unwrap(),
        Mended::Rewrite(current)
    );
    let (layer, _) = publish(&store, "later", 0..3);
    drop(store);
    assert_ready(&open(root.path(), &refusing), &layer);
}
