//! The corpus's own random numbers.
//!
//! In: a seed. Out: the same numbers on every machine and with every version of every crate (SplitMix64).
//! Invariant: a seed names a corpus for ever, so a failing seed in a log can be run again.
//! Not here: anything that needs to be unpredictable.

use bytes::Bytes;

#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`; 0 when `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next_u64() % n }
    }

    /// Incompressible bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 8);
        while out.len() < len {
            out.extend_from_slice(&self.next_u64().to_le_bytes());
        }
        out.truncate(len);
        out
    }

    /// Bytes that compress about as program text does.
    pub fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 12] = [
            "import ", "return ", "self", ".", "(", ")\n", "    ", "value", " = ", "None", "0x", "def ",
        ];
        let mut out = Vec::with_capacity(len + 16);
        while out.len() < len {
            match self.below(16) as usize {
                i if i < WORDS.len() => out.extend_from_slice(WORDS[i].as_bytes()),
                _ => out.extend_from_slice(format!("{:x} ", self.below(1 << 20)).as_bytes()),
            }
        }
        out.truncate(len);
        out
    }
}

/// `size` incompressible bytes: a blob to pull, not a layer.
pub fn big_blob(seed: u64, size: u64) -> Bytes {
    Rng::new(seed).bytes(size as usize).into()
}

/// Bytes that do not repeat, so that a shifted or doubled piece shows.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out
}
