//! What must hold for any bytes found in a pack: entry points for fuzzers.
//!
//! In: bytes. Out: whether a record was found; a panic if recovery broke a promise: it never gives out a record that was
//! not written, and never loses one that the damage did not touch.
//! Invariant: pure functions of their input; the pack is an anonymous file in memory.
//! Not here: making inputs (`server/tests/fuzz`, `fuzz/`), the index.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::disk::Disk;
use super::pack::{PACK_HEADER_LEN, Pack, PackId};
use super::record::{HEADER_LEN, RecordHeader, RecordKind};
use super::recover::{Found, ScanEnd, scan};

/// Longest pack that is looked at.
const LEN_MAX: usize = 1 << 20;

/// The head of a pack of version 1 with a marker that is nowhere else.
const PACK_HEAD: [u8; PACK_HEADER_LEN as usize] = *b"HSPACK\r\n\x01\0\0\0\0\0\0\0\xffmarker\xff";
const MARKER: &[u8] = PACK_HEAD.split_at(16).1;

fn open(bytes: &[u8]) -> Option<Pack> {
    let file = rustix::fs::memfd_create("pack", rustix::fs::MemfdFlags::CLOEXEC).expect("memory for a file");
    let file = File::from(file);
    file.write_all_at(bytes, 0).expect("write to memory");
    Pack::of_file(Disk::default(), file, "pack".into(), PackId(1)).expect("read from memory")
}

fn records(pack: &Pack, from: u64, len: u64, verify: bool) -> (Vec<Found>, ScanEnd) {
    let mut out = Vec::new();
    let end = scan::<io::Error>(pack, from, len, verify, |found| {
        out.push(found);
        Ok(())
    });
    (out, end.expect("read from memory"))
}

/// Bytes taken for a pack, as they are and with all header checks put right.
pub fn pack(data: &[u8]) -> bool {
    if data.len() > LEN_MAX {
        return false;
    }
    let sealed = sealed(data);
    let accepted = scanned(data);
    if sealed == data {
        accepted
    } else {
        scanned(&sealed) || accepted
    }
}

/// Every record's header gets the check that it should have.
fn sealed(data: &[u8]) -> Vec<u8> {
    let mut out = data.to_vec();
    let Some(marker) = data.get(16..24) else { return out };
    let at: Vec<usize> = (24..data.len()).filter(|&i| data[i..].starts_with(marker)).collect();
    for at in at {
        let Some(&key_len) = out.get(at + 9) else { continue };
        let Some(key) = out.get(at + HEADER_LEN..at + HEADER_LEN + usize::from(key_len)) else {
            continue;
        };
        let mut crc = crc32fast::Hasher::new();
        crc.update(&out[at + 8..at + 24]);
        crc.update(key);
        let crc = crc.finalize().to_le_bytes();
        out[at + 24..at + 28].copy_from_slice(&crc);
    }
    out
}

fn scanned(data: &[u8]) -> bool {
    let Some(pack) = open(data) else { return false };
    let len = data.len() as u64;
    if let Some((at, contents)) = pack.contents(len).expect("read from memory") {
        let mut end = PACK_HEADER_LEN;
        for entry in contents.entries(pack.id) {
            assert!(entry.at.offset >= end, "records of a footer overlap");
            end = entry.at.offset + u64::from(entry.at.payload_len);
        }
        assert!(end <= at, "a footer knows of records behind it");
    }
    for verify in [false, true] {
        let (found, end) = records(&pack, PACK_HEADER_LEN, len, verify);
        let mut at = PACK_HEADER_LEN;
        for one in &found {
            assert!(one.location.offset >= at, "records overlap");
            at = one.location.offset + one.header.record_len();
            let loaded = matches!(one.header.kind, RecordKind::Fact | RecordKind::LayerState);
            if verify || loaded {
                let read = pack.read(one.location, one.header.kind, &one.header.key);
                let payload = read
                    .expect("read from memory")
                    .expect("a record that was found is there");
                assert!(!loaded || payload == one.payload);
                assert_eq!(crc32fast::hash(&payload), one.header.payload_crc);
            }
            let encoded = one.header.encode(pack.marker());
            assert!(data[one.location.offset as usize..].starts_with(&encoded));
        }
        assert!(end.end <= len && end.end == at, "the end is behind the last record");
        if verify {
            assert!(
                records(&pack, end.end, len, true).0.is_empty(),
                "a record in the torn tail"
            );
            let (again, cut) = records(&pack, PACK_HEADER_LEN, end.end, true);
            assert_eq!(
                (again.len(), cut),
                (found.len(), end),
                "cutting the tail changes the rest"
            );
        }
    }
    !records(&pack, PACK_HEADER_LEN, len, true).0.is_empty()
}

/// Takes numbers from the input; zeros behind its end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    /// Below `n`, which is not 0.
    fn below(&mut self, n: usize) -> usize {
        let number = usize::from(self.byte()) << 16 | usize::from(self.byte()) << 8 | usize::from(self.byte());
        number % n
    }
}

struct Written {
    header: RecordHeader,
    payload: Vec<u8>,
    offset: usize,
}

impl Written {
    fn end(&self) -> usize {
        self.offset + self.header.record_len() as usize
    }
}

/// A pack as the first part of a script describes it.
fn write(script: &mut Script<'_>) -> (Vec<u8>, Vec<Written>) {
    let (mut bytes, mut written) = (PACK_HEAD.to_vec(), Vec::new());
    let pack = open(&bytes).expect("a pack");
    for number in 0..1 + script.byte() % 12 {
        let (kind, key_len) = match script.byte() % 4 {
            0 => (RecordKind::Chunk, 32),
            1 => (RecordKind::Toc, 32),
            2 => (RecordKind::Fact, 0),
            _ => (RecordKind::LayerState, 33 + 32 * usize::from(number % 2)),
        };
        let seed = script.byte();
        let byte = |i: usize| (i as u8).wrapping_mul(seed | 1).wrapping_add((i >> 8) as u8) ^ number;
        let key: Vec<u8> = (0..key_len).map(byte).collect();
        let payload: Vec<u8> = (0..script.below(3000)).map(byte).collect();
        let raw_len = if kind == RecordKind::Chunk { 4096 } else { 0 };
        let header = RecordHeader::new(kind, &key, raw_len, &payload).expect("a small record");
        let offset = bytes.len();
        bytes.extend(header.encode(pack.marker()));
        bytes.extend_from_slice(&payload);
        written.push(Written {
            header,
            payload,
            offset,
        });
    }
    (bytes, written)
}

/// The pack that [`pack_damage`] begins with.
pub fn pack_of(script: &[u8]) -> Vec<u8> {
    write(&mut Script(script)).0
}

/// A script: records that are written, then what happens to the file.
pub fn pack_damage(data: &[u8]) -> bool {
    let mut script = Script(data);
    let (mut bytes, written) = write(&mut script);
    // Per byte: as it was written, and where it was written.
    let mut same = vec![true; bytes.len()];
    let mut moved = false;
    for _ in 0..script.byte() % 8 {
        let len = bytes.len();
        if len <= MARKER.len() + 16 {
            break;
        }
        // A damaged head of a pack is another matter: then nothing of it is read.
        let body = len - PACK_HEAD.len();
        if body == 0 {
            break;
        }
        let at = PACK_HEAD.len() + script.below(body);
        match script.byte() % 6 {
            0 | 1 => {
                bytes[at] ^= script.byte().max(1);
                same[at] = false;
            }
            2 => {
                let end = (at + script.below(600)).min(len);
                bytes[at..end].fill(0);
                same[at..end].fill(false);
            }
            3 => {
                bytes.truncate(at);
                same.truncate(at);
            }
            // A block that went to the wrong place, and one that is missing.
            4 => {
                let to = PACK_HEAD.len() + script.below(body);
                let n = script.below(2000).min(len - at).min(len - to);
                bytes.copy_within(at..at + n, to);
                same[to..to + n].fill(false);
            }
            _ => {
                let end = (at + script.below(2000)).min(len);
                bytes.drain(at..end);
                same.truncate(bytes.len());
                moved = true;
            }
        }
    }
    let pack = open(&bytes).expect("the head is as it was");
    let (found, _) = records(&pack, PACK_HEADER_LEN, bytes.len() as u64, true);
    for one in &found {
        let read = pack.read(one.location, one.header.kind, &one.header.key);
        let payload = read
            .expect("read from memory")
            .expect("a record that was found is there");
        let was_written = |w: &Written| w.header == one.header && w.payload == payload;
        assert!(
            written.iter().any(was_written),
            "a record that was never written: {one:?}"
        );
    }
    for w in written.iter().filter(|w| !moved && w.end() <= bytes.len()) {
        let intact = same[w.offset..w.end()].iter().all(|&same| same);
        let is_found = found.iter().any(|f| f.location.offset == w.offset as u64);
        assert!(!intact || is_found, "an intact record at {} was lost", w.offset);
    }
    !found.is_empty()
}
