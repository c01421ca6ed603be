//! Content-defined cuts of a byte stream, to compare ours with ([`super::survey`]); nothing stored is cut so.
//!
//! In: a stream, in pieces of any size. Out: where its chunks end. Invariant: a cut depends on the bytes since the one
//! before; behind an insertion, cuts soon fall on the same bytes again.
//! Not here: hashing of chunks. The method is that of FastCDC: a rolling sum of random numbers, one for each byte value,
//! compared with a stricter mask before the size aimed at than behind it.

/// No chunk ends before this (but the last), and none is longer than [`MAX`].
const MIN: usize = 64 << 10;
const TARGET: usize = 224 << 10;
const MAX: usize = 1 << 20;
/// High bits, which all of the last 64 bytes have a say in. One cut in a megabyte before the target, in 64 KiB behind it.
const STRICT: u64 = !0 << 44;
const LOOSE: u64 = !0 << 48;

const TABLE: [u64; 256] = table();

/// splitmix64 from a fixed seed.
const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut state = 0x6865_6164_7374_6172_u64;
    let mut i = 0;
    while i < table.len() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[i] = z ^ (z >> 31);
        i += 1;
    }
    table
}

#[derive(Debug, Default)]
pub struct Gear {
    sum: u64,
    /// Bytes since the last cut.
    len: usize,
}

impl Gear {
    /// How many of the bytes belong to the chunk at hand, and whether it ends behind them.
    pub fn push(&mut self, bytes: &[u8]) -> (usize, bool) {
        for (i, &byte) in bytes.iter().enumerate() {
            self.sum = (self.sum << 1).wrapping_add(TABLE[usize::from(byte)]);
            self.len += 1;
            let mask = if self.len < TARGET { STRICT } else { LOOSE };
            if self.len >= MIN && (self.sum & mask == 0 || self.len >= MAX) {
                *self = Self::default();
                return (i + 1, true);
            }
        }
        (bytes.len(), false)
    }
}

#[cfg(test)]
mod tests {
    use headstart_loadtest::corpus::Rng;

    use super::*;

    fn cut<'a>(mut bytes: &'a [u8], piece: usize) -> Vec<&'a [u8]> {
        let (mut gear, mut chunks) = (Gear::default(), Vec::new());
        let mut len = 0;
        while len < bytes.len() {
            let end = bytes.len().min(len + piece);
            let (n, ends) = gear.push(&bytes[len..end]);
            len += n;
            if ends {
                let (chunk, rest): (&'a [u8], &'a [u8]) = bytes.split_at(len);
                chunks.push(chunk);
                (bytes, len) = (rest, 0);
            }
        }
        chunks.push(bytes);
        chunks
    }

    #[test]
    fn cuts_come_back_behind_an_insertion_and_do_not_depend_on_pieces() {
        let bytes = Rng::new(7).bytes(12 << 20);
        let chunks = cut(&bytes, usize::MAX >> 1);
        assert_eq!(chunks, cut(&bytes, 1000));
        assert_eq!(chunks.concat(), bytes);
        let mean = bytes.len() / chunks.len();
        assert!((192 << 10..400 << 10).contains(&mean), "{mean}");
        let (_last, whole) = chunks.split_last().unwrap();
        assert!(whole.iter().all(|c| (MIN..=MAX).contains(&c.len())));

        let moved = [&b"inserted"[..], &bytes].concat();
        let known: std::collections::HashSet<_> = chunks.iter().collect();
        let again = cut(&moved, usize::MAX >> 1);
        let new: usize = again.iter().filter(|c| !known.contains(c)).map(|c| c.len()).sum();
        assert!(new <= 3 * MAX, "{new} of {}", moved.len());
    }
}
