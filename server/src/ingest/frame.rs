//! One chunk as a zstd frame (RFC 8878), compressed or plain.
//!
//! In: raw bytes. Out: a frame that states its size and needs no dictionary. Invariant: it decompresses to exactly these
//! bytes. What compression would make smaller by less than [`GAIN_MIN`] is put into raw blocks: whoever reads it copies it.
//! Not here: which chunks there are.

use std::io;

use headstart_layer_format::limits::CHUNK_SIZE_MAX;

/// Of the raw size, one part in so many.
const GAIN_MIN: usize = 32;
/// Of a block, by the format.
const BLOCK_MAX: usize = 128 << 10;
/// Magic, descriptor, size.
const HEAD_LEN: usize = 9;
const BLOCK_HEAD_LEN: usize = 3;

/// The frame, in `out`.
pub fn write<'a>(
    raw: &[u8],
    compressor: &mut zstd::bulk::Compressor<'static>,
    out: &'a mut Vec<u8>,
) -> io::Result<&'a [u8]> {
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
        let mut compressor = zstd::bulk::Compressor::new(1).unwrap();
        let frame = write(raw, &mut compressor, &mut Vec::new()).unwrap().to_vec();
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
}
