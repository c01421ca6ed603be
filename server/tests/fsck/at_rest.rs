//! `fsck` without a server: every damage is found, and with `--repair` mended.
//!
//! In: a healthy directory, damaged in one way at a time. Out: findings, quarantine, an image that is served as ever.
//! Not here: the damages ([`super::damage`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use headstart_layer_format::{BlobDigest, ChunkDigest};
use headstart_loadtest::origin::Origin;
use headstart_server::store::Store;

use crate::damage::{FACT, damages, flip, original, records};
use crate::support::{REPOSITORY, Server};
use crate::{CHUNKS_BYTES_MAX, Patient, assert_served, config, contents, fsck, image, layers, template};

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_is_found_and_mended_and_nothing_else_is_touched() {
    let image = image(1);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let healthy = template(&origin, &image).await;
    let patient = Patient::new();
    let (data, toml) = (&patient.data, &patient.toml);

    patient.heal(&healthy);
    let before = contents(data);
    let (code, report, output) = fsck(toml, &[]);
    assert_eq!((code, report.damaged_count), (Some(0), 0), "{output:?}");
    assert_eq!(report.originals_count, 4, "manifest, config, two layers");
    assert_eq!(report.packs_count as usize, layers::packs(data).len());
    assert!(report.records_count >= 8 && report.rows_count > 20, "{report:?}");
    assert_eq!(contents(data), before, "a look changes nothing");
    let (code, report, _) = fsck(toml, &["--repair"]);
    assert_eq!((code, report.damaged_count), (Some(0), 0));
    let kept = |files: BTreeMap<PathBuf, BlobDigest>| -> BTreeMap<_, _> {
        let index = data.join("index");
        files
            .into_iter()
            .filter(|(path, _)| !path.starts_with(&index))
            .collect()
    };
    assert_eq!(kept(contents(data)), kept(before), "there is nothing to repair");

    for (name, what, damage) in damages(&image) {
        patient.heal(&healthy);
        damage(data);
        let before = contents(data);
        let (code, report, output) = fsck(toml, &[]);
        assert_eq!(contents(data), before, "{name}: a look changes nothing");
        if what.is_empty() {
            assert_eq!((code, report.damaged_count), (Some(0), 0), "{name}: {output:?}");
        } else {
            assert_eq!(code, Some(1), "{name}: {output:?}");
            assert!(
                report.damages.iter().any(|d| d.what == what && !d.repaired),
                "{name}: {report:?}"
            );
            assert!(
                String::from_utf8_lossy(&output.stderr).contains("damaged and not repaired"),
                "{output:?}"
            );
        }
        let (code, report, output) = fsck(toml, &["--repair"]);
        assert_eq!(code, Some(0), "{name}: {output:?}");
        assert_eq!(report.damaged_count == 0, what.is_empty(), "{name}: {report:?}");
        let (code, report, output) = fsck(toml, &[]);
        assert_eq!(
            (code, report.damaged_count),
            (Some(0), 0),
            "{name}: once more: {output:?}"
        );
        // What was set aside was damaged, and what was not is in its place.
        for entry in fs::read_dir(data.join("quarantine")).into_iter().flatten() {
            let entry = entry.unwrap();
            let bytes = fs::read(entry.path()).unwrap();
            let (_, of) = entry
                .file_name()
                .to_str()
                .unwrap()
                .split_once('-')
                .map(|(a, b)| (a.to_owned(), b.to_owned()))
                .unwrap();
            assert_ne!(BlobDigest::of(&bytes).hex(), of, "{name}");
        }
        for path in contents(&data.join("originals")).keys() {
            let (hex, bytes) = (path.file_name().unwrap().to_str().unwrap(), fs::read(path).unwrap());
            assert!(hex == "boot-id" || BlobDigest::of(&bytes).hex() == hex, "{name}: {hex}");
        }
        let untouched = image.layers[1].digest;
        assert!(original(data, &untouched).exists(), "{name}");

        let server = Server::with(config(&origin, data)).await;
        assert_eq!(server.app.store.open_report().damaged_records, 0, "{name}");
        assert!(!server.app.store.open_report().index_rebuilt, "{name}");
        assert_served(&server, &image).await;
        server.stop().await;
    }
}

/// A record with the right CRC may still hold the wrong bytes: what was wrong in memory before it was written.
#[test]
fn contents_are_compared_with_their_digests_and_not_with_checksums_only() {
    let patient = Patient::new();
    let (data, toml) = (&patient.data, &patient.toml);
    let store = Store::open(data).unwrap();
    let (good, _) = layers::publish(&store, "good", 0..3);
    let raw = layers::chunk_bytes(7);
    let wrong = headstart_layer_format::toc::ChunkEntry {
        digest: ChunkDigest::of(b"something else"),
        ..layers::put_chunk(&store, &raw)
    };
    let frame = zstd::bulk::compress(&raw, 3).unwrap();
    store.append_chunk(&wrong.digest, wrong.raw_len, &frame).unwrap();
    let bad = BlobDigest::of(b"bad");
    store.publish_layer(&bad, &layers::toc_of(&bad, vec![wrong])).unwrap();
    drop(store);
    let (code, report, output) = fsck(toml, &[]);
    assert_eq!((code, report.damaged_count), (Some(1), 1), "{output:?}");
    assert_eq!(report.damages[0].what, "chunk");
    assert_eq!(fsck(toml, &["--repair"]).0, Some(0));
    assert_eq!(fsck(toml, &[]).1.damages, []);
    let store = Store::open(data).unwrap();
    assert_eq!(store.layer(&bad).unwrap(), None, "it is to be converted again");
    layers::assert_ready(&store, &good);
}

/// What the index knows of a damaged fact is in the packs again: also without the index, nothing is forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn facts_whose_records_are_damaged_survive_the_index() {
    let image = image(2);
    let origin = Origin::with_image(REPOSITORY, "v1", &image);
    let healthy = template(&origin, &image).await;
    let patient = Patient::new();
    let (data, toml) = (&patient.data, &patient.toml);
    patient.heal(&healthy);
    let knows = |data: &Path| {
        let store = Store::open_with(data, CHUNKS_BYTES_MAX / 8).unwrap();
        let mut members: Vec<_> = image.layers.iter().map(|l| store.sources(&l.digest).unwrap()).collect();
        members.push(store.sources(&image.manifest_digest).unwrap());
        (members, store.all_tags().unwrap(), store.pins().unwrap())
    };
    let before = knows(data);
    assert!(before.0.iter().all(|sources| sources.len() == 1) && before.1.len() == 1 && before.2.len() == 1);
    for path in layers::packs(data) {
        let mut pack = fs::read(&path).unwrap();
        for record in records(&pack).into_iter().filter(|r| r.kind == FACT) {
            flip(&mut pack, record);
        }
        fs::write(&path, pack).unwrap();
    }
    let (code, _, output) = fsck(toml, &["--repair"]);
    assert_eq!(code, Some(0), "{output:?}");
    assert_eq!(knows(data), before);
    fs::remove_dir_all(data.join("index")).unwrap();
    assert_eq!(knows(data), before, "the packs say the same");
}
