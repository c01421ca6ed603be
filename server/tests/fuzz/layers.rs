//! Compressed layers of all kinds, good and lying.
//!
//! In: a tar, random numbers. Out: a blob. Invariant: each kind of stream that registries hold can come out; what is
//! changed behind a check (gzip's CRC, zstd's checksum) may have that check put right.
//! Not here: tars (`tars.rs`).

use std::io::Write;

use flate2::{Compression, GzBuilder, write::GzEncoder};
use headstart_loadtest::corpus::Rng;

use headstart_loadtest::fuzzing::mutate::{self, below, pick};

/// Kinds of [`compress`].
pub const KINDS: u64 = 12;

pub fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8], checksum: bool) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(checksum).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn skippable(number: u8, content: &[u8]) -> Vec<u8> {
    let head = [0x50 | number, 0x2a, 0x4d, 0x18];
    [&head[..], &(content.len() as u32).to_le_bytes(), content].concat()
}

/// The tar as one of the kinds of blob.
pub fn compress(tar: &[u8], kind: u64) -> Vec<u8> {
    let (front, back) = tar.split_at(tar.len() / 3);
    match kind {
        0 => gzip(tar, 6),
        1 => [gzip(front, 1), gzip(b"", 1), gzip(back, 9)].concat(),
        // Stored blocks: the tar's bytes are there as they are.
        2 => gzip(tar, 0),
        3 => {
            let named = GzBuilder::new()
                .filename("layer.tar")
                .comment("made by hand")
                .extra("XX\x04\x00abcd");
            let mut encoder = named.write(Vec::new(), Compression::new(4));
            encoder.write_all(tar).unwrap();
            encoder.finish().unwrap()
        }
        // Bytes behind the end: zeros, as some writers pad.
        4 => [gzip(tar, 4), vec![0; 512]].concat(),
        5 => zstd(tar, true),
        6 => [
            skippable(0, b"first"),
            zstd(front, false),
            skippable(15, b""),
            zstd(back, true),
        ]
        .concat(),
        7 => [zstd(tar, false), skippable(3, &[7; 40])].concat(),
        8 => [gzip(tar, 4), b"no member".to_vec()].concat(),
        9 => [gzip(tar, 4), vec![0x1f, 0x8b]].concat(),
        10 => [
            zstd(front, false),
            zstd(back, false),
            skippable(0, &zstd(b"{}", false)),
            skippable(0, &[7; 64]),
        ]
        .concat(),
        _ => tar.to_vec(),
    }
}

/// A blob of `tar`, damaged in most cases.
pub fn mutate(rng: &mut Rng, tar: &[u8], other: &[u8]) -> Vec<u8> {
    let kind = rng.below(KINDS);
    let mut blob = compress(tar, kind);
    match rng.below(6) {
        0 => {}
        1 if kind == 2 && blob.len() > 40 => {
            // Inside a stored block, with the trailer put right if it is the only block.
            let at = 15 + below(rng, blob.len() - 40);
            blob[at] ^= 1 << rng.below(8);
            let mut crc = flate2::Crc::new();
            crc.update(&blob[15..blob.len() - 8]);
            let at = blob.len() - 8;
            blob[at..at + 4].copy_from_slice(&crc.sum().to_le_bytes());
        }
        2 if !blob.is_empty() => {
            // Heads: flags, lengths, windows.
            let at = below(rng, blob.len().min(20));
            blob[at] = *pick(rng, &[0, 1, 4, 8, 0x10, 0x1f, 0x20, 0x80, 0xc0, 0xff]);
        }
        3 => {
            let kind = rng.below(KINDS);
            let more = compress(&other[..other.len().min(2000)], kind);
            blob.extend(more);
        }
        4 => blob = blob.repeat(2),
        _ => mutate::bytes(rng, &mut blob, other),
    }
    blob
}
