//! Power loss: whatever was not synced is gone, and no chunk is claimed that is not there.
//!
//! The cache lies on a disk in a file, which is copied, mounted and looked at as it is at a moment.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use headstart_layer_format::{LayerOffset, LayerRange};
use headstart_shim::cache::{CacheDir, LayerFile, LazyConfig};
use headstart_shim::contents::EncodedToc;

use crate::support::{Disk, Item, LayerBuilder, TestLayer, noise};
use crate::upkeep::{file_in, put};

const CHUNK: usize = 64 << 10;
const CHUNKS: u32 = 48;

/// Every chunk that is claimed is right; returns how many are.
fn check(layer: &TestLayer, file: &LayerFile, bytes: &[u8]) -> u32 {
    let mut out = vec![0; CHUNK];
    let mut claimed = 0;
    for i in 0..CHUNKS {
        let range = LayerRange {
            start: LayerOffset(u64::from(i) * CHUNK as u64),
            len: CHUNK as u64,
        };
        if file.read(range, &mut out).unwrap() {
            claimed += 1;
            assert!(
                out == bytes[i as usize * CHUNK..][..CHUNK],
                "chunk {i} of {}",
                layer.digest
            );
        }
    }
    claimed
}

#[test]
fn no_chunk_is_claimed_that_power_loss_took() {
    let bytes = noise(CHUNKS as usize * CHUNK, 1);
    let layer = LayerBuilder::new().add("f", Item::file(bytes.clone())).build(CHUNK);
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::make(dir.path(), 32 << 20);
    let root = disk.at.join("layer");
    fs::create_dir(&root).unwrap();
    let file = file_in(&root, &layer);
    let mut copies = 0;
    let mut crash = |at_least: u32, at_most: u32| {
        copies += 1;
        let after = disk.after_power_loss(dir.path(), copies);
        let root = after.at.join("layer");
        fs::create_dir_all(&root).unwrap();
        let claimed = check(&layer, &file_in(&root, &layer), &bytes);
        assert!((at_least..=at_most).contains(&claimed), "{claimed} in copy {copies}");
    };
    (0..16).for_each(|i| put(&file, &layer, i));
    // Nothing was synced: nothing may be there, and nothing is claimed.
    crash(0, 0);
    assert_eq!(file.chunk_count(), 16);
    file.flush().unwrap();
    crash(16, 16);
    (16..32).for_each(|i| put(&file, &layer, i));
    crash(16, 16);
    // Chunks go and others come in their place, with and without a flush between.
    file.evict(4 * CHUNK as u64).unwrap();
    crash(1, 12);
    (0..8).for_each(|i| put(&file, &layer, i));
    crash(1, 12);
    file.flush().unwrap();
    (32..CHUNKS).for_each(|i| put(&file, &layer, i));
    crash(28, 32);
    file.flush().unwrap();
    assert_eq!(check(&layer, &file, &bytes), file.chunk_count());
    crash(file.chunk_count(), file.chunk_count());
    drop(file);
}

/// The layers that a node finds.
fn known(root: &Path) -> Vec<String> {
    let (_cache, layers) = CacheDir::open(root, &LazyConfig::default(), &Arc::default()).unwrap();
    layers.iter().map(|l| l.digest.to_string()).collect()
}

#[test]
fn a_new_layer_is_durable_with_its_first_flush_and_never_half_there() {
    let layer = LayerBuilder::new().add("f", Item::file(noise(CHUNK, 2))).build(CHUNK);
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::make(dir.path(), 32 << 20);
    let root = disk.at.join("cache");
    let (cache, _) = CacheDir::open(&root, &LazyConfig::default(), &Arc::default()).unwrap();
    let new = cache
        .admit(&layer.toc, &EncodedToc::new(layer.encoded.clone()))
        .unwrap();
    // Before that it may be lost; what remains of it must not be in the way.
    let after = disk.after_power_loss(dir.path(), 1);
    assert!(known(&after.at.join("cache")).len() <= 1);
    new.file.flush().unwrap();
    let after = disk.after_power_loss(dir.path(), 2);
    assert_eq!(known(&after.at.join("cache")), [layer.digest.to_string()]);
    // A kill is no power loss.
    drop((cache, new));
    assert_eq!(known(&root), [layer.digest.to_string()]);
}

#[test]
fn a_torn_layer_is_dropped() {
    let layer = LayerBuilder::new().add("f", Item::file(noise(CHUNK, 3))).build(CHUNK);
    let dir = tempfile::tempdir().unwrap();
    for torn in ["toc", "layer"] {
        let (cache, _) = CacheDir::open(dir.path(), &LazyConfig::default(), &Arc::default()).unwrap();
        cache
            .admit(&layer.toc, &EncodedToc::new(layer.encoded.clone()))
            .unwrap();
        drop(cache);
        let file = dir.path().join(layer.digest.hex()).join(torn);
        let half = fs::metadata(&file).unwrap().len() / 2;
        fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_len(half)
            .unwrap();
        assert_eq!(known(dir.path()), Vec::<String>::new(), "{torn}");
    }
}
