//! What must be so, whatever happened.
//!
//! In: a directory, and what was promised. Out: a panic unless it opens, every answer is right or a miss, what was promised
//! is there, and work goes on: what is missing is brought again, and is there the next time.
//! Not here: how the directory came about.

use std::collections::BTreeMap;
use std::path::Path;

use headstart_layer_format::{BlobDigest, ChunkDigest};

use super::journal::{Key, Value};
use super::layers::{assert_ready, chunk_bytes};
use super::open;
use super::workload::{THINGS, chunks_of, fact, layer, original, pin, publish, source, tag};
use crate::store::disk::Disk;
use crate::store::originals::Originals;
use crate::store::{LayerRecord, Store};

pub fn check(root: &Path, promises: &BTreeMap<Key, Value>, what: &str) {
    let (store, originals) = open(root, Disk::default());
    keeps(&store, &originals, promises, what);
    for n in 0..THINGS {
        // What cannot be read is a miss, and the layer is converted again.
        publish(&store, n).unwrap_or_else(|error| panic!("{what}: layer {n} again: {error}"));
        assert_ready(&store, &layer(n));
        originals.put(&BlobDigest::of(&original(n)), &original(n)).unwrap();
    }
    drop((store, originals));
    let (store, _) = open(root, Disk::default());
    assert_eq!(
        store.open_report().damaged_records,
        0,
        "{what}: what was opened once is whole"
    );
    (0..THINGS).for_each(|n| assert_ready(&store, &layer(n)));
}

/// Every answer of these is right or a miss, and what was promised is no miss.
pub fn keeps(store: &Store, originals: &Originals, promises: &BTreeMap<Key, Value>, what: &str) {
    let promised = |key: &Key| promises.get(key).copied();
    for n in 0..THINGS {
        let is_ready = matches!(store.layer(&layer(n)).unwrap(), Some(LayerRecord::Ready { .. }));
        if promised(&Key::Layer(n)) == Some(true) {
            assert!(is_ready, "{what}: layer {n} was ready");
            assert_ready(store, &layer(n));
        }
        for chunk in chunks_of(n) {
            let raw = chunk_bytes(chunk);
            if let Some(frame) = store.read_chunk(&ChunkDigest::of(&raw)).unwrap() {
                let read = zstd::bulk::decompress(&frame, raw.len()).unwrap();
                assert!(read == raw, "{what}: chunk {chunk}");
            }
        }
        let toc = store.toc(&layer(n)).unwrap();
        assert!(
            toc.is_some() || promised(&Key::Layer(n)) != Some(true),
            "{what}: layer {n}"
        );

        let digest = BlobDigest::of(&original(n));
        let read = std::fs::read(originals.path(&digest)).ok();
        match read {
            Some(read) => assert!(read == original(n), "{what}: original {n}"),
            None => assert_ne!(promised(&Key::Original(n)), Some(true), "{what}: original {n} was here"),
        }

        let known = store.manifest(&fact(n).digest).unwrap();
        let tagged = store.tag(&source(), &format!("t{n}")).unwrap();
        if promised(&Key::Fact(n)) == Some(true) {
            assert!(known.is_some() && tagged.is_some(), "{what}: fact {n} was known");
            assert!(store.is_member(&source(), &layer(n)).unwrap(), "{what}: member {n}");
        }
        assert!(known.is_none_or(|known| known == fact(n)), "{what}: fact {n}");
        assert!(tagged.is_none_or(|tagged| tagged == tag(n)), "{what}: tag {n}");
        if let Some(pinned) = promised(&Key::Pin(n)) {
            assert_eq!(store.pins().unwrap().contains(&pin(n)), pinned, "{what}: pin {n}");
        }
    }
}
