//! Mutations of any bytes, and of text.
//!
//! In: an input, another one, random numbers. Out: an input that differs in one to six ways.
//! Invariant: results stay below [`LEN_MAX`]. Not here: what knows about tars or layers (`server/tests/fuzz`).

use crate::corpus::Rng;

/// Longest input that a mutation makes.
pub const LEN_MAX: usize = 192 << 10;

/// Numbers at which arithmetic goes wrong.
const EDGES: [u64; 20] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x1ff,
    0x200,
    0xfff,
    0x1000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    1 << 40,
    (1 << 40) + 1,
    i64::MAX as u64 - 511,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

pub fn below(rng: &mut Rng, n: usize) -> usize {
    rng.below(n as u64) as usize
}

pub fn edge(rng: &mut Rng) -> u64 {
    let edge = *pick(rng, &EDGES);
    match rng.below(4) {
        0 => edge.wrapping_add(rng.below(3)).wrapping_sub(1),
        1 => rng.below(1 << 16),
        _ => edge,
    }
}

pub fn pick<'a, T>(rng: &mut Rng, of: &'a [T]) -> &'a T {
    &of[below(rng, of.len())]
}

/// A stretch of `len` bytes or fewer.
fn stretch(rng: &mut Rng, len: usize, most: usize) -> std::ops::Range<usize> {
    let start = below(rng, len.max(1)).min(len);
    start..start + below(rng, most.min(len - start) + 1)
}

/// Changes bytes without knowing what they are.
pub fn bytes(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..1 + rng.below(6) {
        one(rng, input, other);
    }
    input.truncate(LEN_MAX);
}

fn one(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8]) {
    let len = input.len();
    if len == 0 {
        input.extend(rng.bytes(1 + rng.clone().below(64) as usize));
        return;
    }
    let at = below(rng, len);
    match rng.below(13) {
        0 | 1 => input[at] ^= 1 << rng.below(8),
        2 => input[at] = *pick(rng, &[0, 1, 0x20, 0x2f, 0x7f, 0x80, 0xff]),
        3 => input[at] = rng.next_u64() as u8,
        4 => input.truncate(at),
        5 => drop(input.drain(stretch(rng, len, 600))),
        6 => {
            let copied = input[stretch(rng, len, 600)].to_vec();
            input.splice(at..at, copied);
        }
        7 => {
            let from = stretch(rng, len, 600);
            let n = from.len().min(len - at);
            let from = from.start;
            input.copy_within(from..from + n, at);
        }
        8 if !other.is_empty() => {
            let piece = other[stretch(rng, other.len(), 4096)].to_vec();
            input.splice(at..at, piece);
        }
        9 if !other.is_empty() => {
            input.truncate(at);
            input.extend_from_slice(&other[below(rng, other.len())..]);
        }
        10 => {
            let n = [2, 4, 8][below(rng, 3)].min(len - at);
            let number = edge(rng);
            let number = if rng.below(2) == 0 {
                number.to_le_bytes()
            } else {
                number.to_be_bytes()
            };
            let number = if number[0] == 0 { &number[8 - n..] } else { &number[..n] };
            input[at..at + n].copy_from_slice(number);
        }
        11 => {
            // A varint.
            let mut n = edge(rng);
            let mut varint = Vec::new();
            while n >= 0x80 {
                varint.push(n as u8 | 0x80);
                n >>= 7;
            }
            varint.push(n as u8);
            input.splice(at..at + 1, varint);
        }
        _ => {
            let n = 1 + rng.below(40) as usize;
            let fill = *pick(rng, &[0, 0xff, b'0', b'/']);
            input.splice(at..at, vec![fill; n]);
        }
    }
}

/// Changes text: words come and go, numbers become others.
pub fn text(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    for _ in 0..1 + rng.below(4) {
        let at = below(rng, input.len() + 1);
        match rng.below(8) {
            0..3 => {
                let word = pick(rng, words).as_bytes().to_vec();
                input.splice(at..at, word);
            }
            3 | 4 => {
                let digits = |b: &u8| b.is_ascii_digit();
                let Some(start) = input[at..].iter().position(digits).map(|i| at + i) else {
                    continue;
                };
                let end = input[start..]
                    .iter()
                    .position(|b| !digits(b))
                    .map_or(input.len(), |i| start + i);
                let number = edge(rng).to_string().into_bytes();
                input.splice(start..end, number);
            }
            5 => {
                let piece = stretch(rng, input.len(), 80);
                let copied = input[piece].to_vec();
                input.splice(at..at, copied);
            }
            6 => drop(input.drain(stretch(rng, input.len(), 60))),
            _ => one(rng, input, other),
        }
    }
    input.truncate(LEN_MAX);
}
