//! One chunk as a zstd frame (RFC 8878), compressed or plain.
//!
//! In: raw bytes. Out: a frame that states its size and needs no dictionary. Invariant: it decompresses to exactly these
//! bytes. What compression would make smaller by less than [`GAIN_MIN`] is put into raw blocks: whoever reads it copies it.
//! Not here: which chunks there are.

use std::io;

use headstart_layer_format::limits::CHUNK_SIZE_MAX;
use zstd::bulk::Compressor;
use zstd::zstd_safe::CParameter;

/// zstd's level that is the default here.
const TUNED_LEVEL: i32 = 3;
/// Its tables for chunks of up to 512 KiB take 512 or 768 KiB, and looking things up there is most of what it does. These take
/// 192 KiB and stay in a core's own cache, beside the chunk. Measured on a Python and a Node image: 12 % less time, 1.1 and
/// 1.2 % more bytes (level 2 takes 15 % less, and 2.8 and 3.6 % more).
const TUNED: [CParameter; 3] = [
    CParameter::HashLog(15),
    CParameter::ChainLog(14),
    CParameter::MinMatch(5),
];

/// Of the raw size, one part in so many.
const GAIN_MIN: usize = 32;
/// Of a block, by the format.
const BLOCK_MAX: usize = 128 << 10;
/// Magic, descriptor, size.
const HEAD_LEN: usize = 9;
const BLOCK_HEAD_LEN: usize = 3;

/// For frames of this level.
pub fn compressor(level: i32) -> io::Result<Compressor<'static>> {
    let mut compressor = Compressor::new(level)?;
    if level == TUNED_LEVEL {
        for parameter in TUNED {
            compressor.set_parameter(parameter)?;
        }
    }
    Ok(compressor)
}

/// The frame, in `out`.
pub fn write<'a>(raw: &[u8], compressor: &mut Compressor<'static>, out: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
    out.clear();
    out.reserve(zstd::zstd_safe::compress_bound(raw.len()).max(plain_len(raw.len())));
    compressor.compress_to_buffer(raw, out)?;
    if out.len() + raw.len() / GAIN_MIN > raw.len() && raw.len() <= CHUNK_SIZE_MAX as usize {
        out.clear();
        plain(raw, out);
    }
    Ok(out)
}

fn plain_len(len: usize) -> usize {
    HEAD_LEN + len.div_ceil(BLOCK_MAX).max(1) * BLOCK_HEAD_LEN + len
}

/// `raw` is at most `u32::MAX` long.
fn plain(raw: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&0xfd2f_b528_u32.to_le_bytes());
    // The size in 4 bytes, and as the window ("single segment"); no checksum, no dictionary.
    out.push(0b1010_0000);
    out.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    let mut blocks = raw.chunks(BLOCK_MAX).peekable();
    if blocks.peek().is_none() {
        out.extend_from_slice(&[1, 0, 0]);
    }
    while let Some(block) = blocks.next() {
        // Bit 0: the last one. Bits 1 and 2: the type, 0 for raw.
        let head = (block.len() as u32) << 3 | u32::from(blocks.peek().is_none());
        out.extend_from_slice(&head.to_le_bytes()[..BLOCK_HEAD_LEN]);
        out.extend_from_slice(block);
    }
}

#[cfg(test)]
mod tests {
    use headstart_loadtest::corpus::Rng;

    use super::*;

    fn frame(raw: &[u8]) -> Vec<u8> {
        frame_by(&mut compressor(TUNED_LEVEL).unwrap(), raw)
    }

    fn frame_by(compressor: &mut Compressor<'static>, raw: &[u8]) -> Vec<u8> {
        let frame = write(raw, compressor, &mut Vec::new()).unwrap().to_vec();
        let size = zstd::zstd_safe::get_frame_content_size(&frame).unwrap();
        assert_eq!(size, Some(raw.len() as u64), "a frame must state its size");
        assert_eq!(zstd::bulk::decompress(&frame, raw.len()).unwrap(), raw);
        frame
    }

    #[test]
    fn what_does_not_shrink_is_plain_and_what_does_is_not() {
        let noise = Rng::new(3).bytes(CHUNK_SIZE_MAX as usize);
        for len in [
            1,
            100,
            BLOCK_MAX - 1,
            BLOCK_MAX,
            BLOCK_MAX + 1,
            3 * BLOCK_MAX,
            noise.len(),
        ] {
            let plain = frame(&noise[..len]);
            assert_eq!(plain.len(), plain_len(len));
            assert!(plain.ends_with(&noise[len - 1..len]));
        }
        frame(b"");
        // A little is not worth it, more is.
        let mut mixed = noise[..BLOCK_MAX].to_vec();
        mixed.extend(vec![0; BLOCK_MAX / 40]);
        assert_eq!(frame(&mixed).len(), plain_len(mixed.len()));
        mixed.extend(vec![0; BLOCK_MAX / 10]);
        assert!(frame(&mixed).len() < mixed.len() - BLOCK_MAX / 20);
    }

    /// Words that repeat far apart, numbers, and lines that are almost the same: a program's text, roughly.
    fn text(seed: u64, len: usize) -> Vec<u8> {
        let mut rng = Rng::new(seed);
        let words: Vec<Vec<u8>> = rng
            .bytes(4000)
            .chunks(8)
            .map(|word| {
                word[..3 + usize::from(word[7] % 5)]
                    .iter()
                    .map(|b| b'a' + b % 16)
                    .collect()
            })
            .collect();
        let mut out = Vec::with_capacity(len + 16);
        while out.len() < len {
            let at = rng.bytes(3);
            let many = usize::from(at[0] & 7) * usize::from(at[1]) / 4 + usize::from(at[2]);
            out.extend_from_slice(&words[many % words.len()]);
            out.push(b" \n.(;"[usize::from(at[0]) % 5]);
        }
        out.truncate(len);
        out
    }

    /// What the default level stores is close to what zstd's own of that number would; other levels are zstd's own.
    #[test]
    fn smaller_tables_cost_few_bytes() {
        let chunks: Vec<Vec<u8>> = (1..=12).map(|i| text(i, (i as usize) * (48 << 10))).collect();
        let sum = |compressor: &mut Compressor<'static>| -> usize {
            chunks.iter().map(|chunk| frame_by(compressor, chunk).len()).sum()
        };
        let ours = |level| sum(&mut compressor(level).unwrap());
        let zstds = |level| sum(&mut Compressor::new(level).unwrap());
        let (tuned, own) = (ours(TUNED_LEVEL), zstds(TUNED_LEVEL));
        assert!(tuned * 100 <= own * 102, "{tuned} bytes, zstd's own {own}");
        assert!(tuned < zstds(1), "{tuned} bytes, level 1: {}", zstds(1));
        for level in [-1, 1, 2, 4, 9] {
            assert_eq!(ours(level), zstds(level), "level {level}");
        }
    }
}
