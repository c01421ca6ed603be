//! What may happen to a data directory that nobody uses: {truncate, flip, delete} x {pack, sled, record, original}.
//!
//! In: a directory with the image. Out: one thing in it is different; and what `fsck` should say of that.
//! Not here: what becomes of it ([`super::at_rest`]).

use std::fs;
use std::path::{Path, PathBuf};

use headstart_layer_format::BlobDigest;
use headstart_loadtest::corpus::SyntheticImage;

use crate::layers;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) kind: u8,
    at: usize,
    payload_at: usize,
    end: usize,
}

/// Records of a pack, by STORE.md.
pub(crate) fn records(pack: &[u8]) -> Vec<Record> {
    let word = |at: usize| u32::from_le_bytes(pack[at..at + 4].try_into().unwrap()) as usize;
    let (mut at, mut out) = (24, Vec::new());
    while at + 28 <= pack.len() {
        assert_eq!(pack[at..at + 8], pack[16..24], "a record begins with the marker");
        let payload_at = at + 28 + usize::from(pack[at + 9]);
        let end = payload_at + word(at + 16);
        out.push(Record {
            kind: pack[at + 8],
            at,
            payload_at,
            end,
        });
        at = end;
    }
    out
}

pub(crate) const CHUNK: u8 = 1;
pub(crate) const TOC: u8 = 2;
pub(crate) const FACT: u8 = 3;
pub(crate) const STATE: u8 = 4;

/// Changes the pack with the first record of a kind.
pub(crate) fn damage_record(data: &Path, kind: u8, damage: impl Fn(&mut Vec<u8>, Record)) {
    for path in layers::packs(data) {
        let mut pack = fs::read(&path).unwrap();
        if let Some(record) = records(&pack).into_iter().find(|r| r.kind == kind) {
            damage(&mut pack, record);
            fs::write(&path, pack).unwrap();
            return;
        }
    }
    panic!("no record of kind {kind}");
}

#[expect(clippy::ptr_arg, reason = "as `truncate`, beside which it is passed")]
pub(crate) fn flip(pack: &mut Vec<u8>, record: Record) {
    pack[record.payload_at + (record.end - record.payload_at) / 2] ^= 1;
}

#[expect(clippy::ptr_arg, reason = "as `truncate`, beside which it is passed")]
pub(crate) fn flip_header(pack: &mut Vec<u8>, record: Record) {
    pack[record.at + 17] ^= 1;
}

#[expect(clippy::ptr_arg, reason = "as `truncate`, beside which it is passed")]
fn erase(pack: &mut Vec<u8>, record: Record) {
    pack[record.at..record.end].fill(0);
}

fn truncate(pack: &mut Vec<u8>, record: Record) {
    pack.truncate(record.payload_at + 1);
}

pub(crate) fn original(data: &Path, digest: &BlobDigest) -> PathBuf {
    data.join("originals/sha256")
        .join(&digest.hex()[..2])
        .join(digest.hex())
}

pub(crate) fn change(path: &Path, damage: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    damage(&mut bytes);
    fs::write(path, bytes).unwrap();
}

pub(crate) type Damage = Box<dyn Fn(&Path)>;

/// Name, what is to be found of it ("" where nothing is lost: a miss, or what an opening always mends), damage.
pub(crate) fn damages(image: &SyntheticImage) -> Vec<(&'static str, &'static str, Damage)> {
    let mut out: Vec<(&'static str, &'static str, Damage)> = Vec::new();
    let mut add = |name, what, damage: Damage| out.push((name, what, damage));
    let blob = image.layers[0].digest;
    let first = |data: &Path| layers::packs(data).swap_remove(0);
    let last = |data: &Path| layers::packs(data).pop().unwrap();

    add(
        "pack truncated",
        "index",
        Box::new(move |d| change(&first(d), |b| b.truncate(b.len() / 2))),
    );
    add(
        "pack emptied",
        "index",
        Box::new(move |d| change(&first(d), Vec::clear)),
    );
    add(
        "pack header flipped",
        "pack",
        Box::new(move |d| change(&first(d), |b| b[3] ^= 1)),
    );
    add(
        "pack deleted",
        "index",
        Box::new(move |d| fs::remove_file(first(d)).unwrap()),
    );
    add(
        "last pack truncated",
        "index",
        Box::new(move |d| change(&last(d), |b| b.truncate(b.len() - 1))),
    );
    add(
        "last pack deleted",
        "index",
        Box::new(move |d| fs::remove_file(last(d)).unwrap()),
    );

    add(
        "sled truncated",
        "",
        Box::new(|d| change(&d.join("index/db"), |b| b.truncate(b.len() / 2))),
    );
    let scramble = |b: &mut Vec<u8>| b.iter_mut().for_each(|byte| *byte ^= 0x55);
    add(
        "sled flipped",
        "index",
        Box::new(move |d| change(&d.join("index/db"), scramble)),
    );
    add(
        "sled deleted",
        "index",
        Box::new(|d| fs::remove_dir_all(d.join("index")).unwrap()),
    );

    add("chunk flipped", "chunk", Box::new(|d| damage_record(d, CHUNK, flip)));
    add(
        "chunk's header flipped",
        "chunk",
        Box::new(|d| damage_record(d, CHUNK, flip_header)),
    );
    add("chunk erased", "chunk", Box::new(|d| damage_record(d, CHUNK, erase)));
    add("TOC flipped", "toc", Box::new(|d| damage_record(d, TOC, flip)));
    add("TOC erased", "toc", Box::new(|d| damage_record(d, TOC, erase)));
    add("TOC truncated", "index", Box::new(|d| damage_record(d, TOC, truncate)));
    add("state flipped", "state", Box::new(|d| damage_record(d, STATE, flip)));
    add("state erased", "state", Box::new(|d| damage_record(d, STATE, erase)));
    add(
        "state truncated",
        "index",
        Box::new(|d| damage_record(d, STATE, truncate)),
    );
    add("fact flipped", "record", Box::new(|d| damage_record(d, FACT, flip)));
    add("fact erased", "record", Box::new(|d| damage_record(d, FACT, erase)));

    add(
        "original truncated",
        "original",
        Box::new(move |d| change(&original(d, &blob), |b| b.truncate(b.len() / 2))),
    );
    add(
        "original flipped",
        "original",
        Box::new(move |d| change(&original(d, &blob), |b| b[1000] ^= 1)),
    );
    // As if it had been evicted.
    add(
        "original deleted",
        "",
        Box::new(move |d| fs::remove_file(original(d, &blob)).unwrap()),
    );
    out
}
