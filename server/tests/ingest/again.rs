//! Conversions of what is stored already, in part or as a whole.
//!
//! In: a store that has chunks. Out: the same TOC, and only what is new is stored.
//! Not here: kills (`kill/`).

use std::sync::atomic::Ordering;

use headstart_layer_format::Toc;
use headstart_loadtest::corpus::{Compression, Dialect, LayerBuilder, Meta, Rng, SyntheticImage};
use headstart_server::ingest::{IngestConfig, convert};
use headstart_server::store::Store;

use crate::refusals::broken_after;
use crate::{Room, failure, progress, room};

/// What a conversion stored before it died is there for the next one.
#[test]
fn a_conversion_that_died_half_way_is_resumed_by_its_chunks() {
    let mut b = LayerBuilder::new(Dialect::Gnu);
    let mut rng = Rng::new(11);
    for i in 0..12 {
        b.file(format!("f{i}"), Meta::default(), rng.bytes(1 << 20));
    }
    let layer = b.finish(Compression::Plain);
    let room = room();
    failure(room.convert(&layer.digest, broken_after(&layer.blob, 9 << 20)));
    let Room { store, dir } = room;
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.layer(&layer.digest).unwrap(), None);
    let progress = progress();
    convert(
        &layer.blob[..],
        &layer.digest,
        &store,
        &IngestConfig::default(),
        &progress,
    )
    .unwrap();
    let reused = progress.reused_chunks.load(Ordering::Relaxed);
    assert!(reused >= 7 << 20, "{reused} bytes reused");
    let (_, bytes) = store.toc(&layer.digest).unwrap().unwrap();
    let toc = Toc::decode(&bytes).unwrap();
    assert!(Room { store, dir }.rebuild(&toc) == layer.tar);
}

#[test]
fn a_rebuilt_layer_with_new_times_and_one_more_file_shares_nearly_all_chunks() {
    let build = |mtime: i64, more: bool| {
        let mut rng = Rng::new(12);
        let mut b = LayerBuilder::new(Dialect::Pax);
        for i in 0..800 {
            let content = rng.text(200 + (i * 7919) % 20_000);
            b.file(format!("d/f{i}"), Meta::default().mtime(mtime, 0), content);
            if i == 300 && more {
                b.file(
                    "d/f300-new",
                    Meta::default().mtime(mtime, 0),
                    "one more file".repeat(300),
                );
            }
        }
        b.file("d/large", Meta::default().mtime(mtime, 0), rng.bytes(4 << 20));
        b.finish(Compression::Gzip)
    };
    let (first, second) = (build(1, false), build(2_000_000, true));
    assert_ne!(first.digest, second.digest);
    let room = room();
    room.convert(&first.digest, &first.blob[..]).unwrap();
    let progress = progress();
    let config = IngestConfig::default();
    convert(&second.blob[..], &second.digest, &room.store, &config, &progress).unwrap();
    let new = progress.new_chunks.load(Ordering::Relaxed);
    let reused = progress.reused_chunks.load(Ordering::Relaxed);
    assert!(new > 0 && new * 8 < reused, "{new} new, {reused} reused");
}

#[test]
fn losing_the_index_leaves_toc_and_chunks_as_they_were() {
    let room = room();
    let image = SyntheticImage::seeded(13);
    let before: Vec<_> = image
        .layers
        .iter()
        .map(|l| room.convert(&l.digest, &l.blob[..]).unwrap().encode().unwrap())
        .collect();
    let Room { store, dir } = room;
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let room = Room { store, dir };
    for (layer, before) in image.layers.iter().zip(before) {
        let (_, bytes) = room.store.toc(&layer.digest).unwrap().expect("still ready");
        assert_eq!(bytes, before);
        assert!(room.rebuild(&Toc::decode(&bytes).unwrap()) == layer.tar);
    }
}

/// `ingest.zstd_level` is what chunks are compressed with, and no part of what they are.
#[test]
fn a_higher_level_stores_the_same_chunks_in_fewer_bytes() {
    let mut b = LayerBuilder::new(Dialect::Pax);
    b.file("text", Meta::default(), Rng::new(21).text(2 << 20));
    let layer = b.finish(Compression::Gzip);
    let with = |zstd_level| {
        let (room, progress) = (room(), progress());
        let config = IngestConfig {
            zstd_level,
            ..IngestConfig::default()
        };
        convert(&layer.blob[..], &layer.digest, &room.store, &config, &progress).unwrap();
        let (_, bytes) = room.store.toc(&layer.digest).unwrap().unwrap();
        let toc = Toc::decode(&bytes).unwrap();
        assert!(room.rebuild(&toc) == layer.tar);
        let chunks: Vec<_> = toc.chunks().entries().iter().map(|c| (c.digest, c.raw_len)).collect();
        (chunks, progress.new_frames.load(Ordering::Relaxed))
    };
    let ((quick, larger), (slow, smaller)) = (with(1), with(15));
    assert_eq!(quick, slow);
    assert!(smaller * 10 < larger * 9, "{larger} and {smaller} bytes");
}
