//! Where the data space is cut into chunks.
//!
//! In: file bodies in tar order, in pieces of any size. Out: the raw bytes of each chunk, in order, padding included.
//! Invariant: cuts depend on the bodies alone. They do not depend on how the bytes arrive, nor on names or metadata.
//! Not here: hashing and compression of chunks ([`super::chunks`]).
//!
//! Small files are packed into groups of about 128 KiB. Whether a group ends behind a file is decided by the file's own
//! checksum, so when a file is added or changed, the group that holds it changes and the cuts behind soon fall on the
//! same files again. A large file starts a chunk of its own and is cut at fixed distances from its start, so it has the
//! same chunks wherever it is. `layer-format/FORMAT.md` has the figures that these sizes were chosen by.

use headstart_layer_format::limits::{BODY_ALIGN, CHUNK_SIZE_MAX};

/// What decides about cuts. Everything stored was cut by [`CutSizes::DEFAULT`]; others are for measuring ([`super::survey`]).
#[derive(Clone, Copy, Debug)]
pub struct CutSizes {
    /// From this size on a file has chunks of its own.
    pub large_file_min: u64,
    /// Fixed cut of large files. One FUSE read is at most 1 MiB; smaller chunks compress worse and cost more requests.
    pub large_chunk: u64,
    /// A large file's rest of at most this joins its last chunk.
    pub large_rest_max: u64,
    /// No group ends before this, and one ends before it would exceed `group_max`.
    pub group_min: u64,
    pub group_max: u64,
    /// Up to here a group rarely ends, from here on it often does: narrows the spread around the size aimed at.
    pub group_target: u64,
    /// A group ends behind a file with a chance of its padded size over this...
    pub early_bytes_per_cut: u64,
    /// ... and later over this.
    pub late_bytes_per_cut: u64,
    /// Bodies begin at multiples of this.
    pub align: u64,
}

impl CutSizes {
    pub const DEFAULT: Self = Self {
        large_file_min: 128 << 10,
        large_chunk: 512 << 10,
        large_rest_max: 64 << 10,
        group_min: 32 << 10,
        group_max: 256 << 10,
        group_target: 112 << 10,
        early_bytes_per_cut: 384 << 10,
        late_bytes_per_cut: 48 << 10,
        align: BODY_ALIGN,
    };

    /// Groups of about `group_kib`, in the proportions of the default's 128, and large files cut every `large_kib`.
    /// `None`: such chunks could not be stored.
    pub fn about(group_kib: u64, large_kib: u64) -> Option<Self> {
        let chunk_max_kib = u64::from(CHUNK_SIZE_MAX) >> 10;
        let may_be = 8..=chunk_max_kib / 2;
        if !may_be.contains(&group_kib) || !may_be.contains(&large_kib) || !large_kib.is_multiple_of(4) {
            return None;
        }
        let (d, group) = (Self::DEFAULT, |n: u64| n * group_kib / 128);
        Some(Self {
            large_file_min: group(d.large_file_min),
            large_chunk: large_kib << 10,
            large_rest_max: (large_kib << 10) / 8,
            group_min: group(d.group_min),
            group_max: group(d.group_max),
            group_target: group(d.group_target),
            early_bytes_per_cut: group(d.early_bytes_per_cut),
            late_bytes_per_cut: group(d.late_bytes_per_cut),
            align: d.align,
        })
    }
}

const _: () = assert!(CutSizes::DEFAULT.large_chunk + CutSizes::DEFAULT.large_rest_max <= CHUNK_SIZE_MAX as u64);
const _: () = assert!(CutSizes::DEFAULT.group_max <= CHUNK_SIZE_MAX as u64);

/// Takes bodies, hands out chunks.
#[derive(Debug)]
pub struct Cutter {
    sizes: CutSizes,
    buf: Vec<u8>,
    /// For the next chunk.
    spare: Option<Vec<u8>>,
    body: Option<Body>,
}

#[derive(Debug)]
struct Body {
    /// Padded bytes that are still to come.
    left: u64,
    /// Padded size.
    size: u64,
    large: bool,
    crc: crc32fast::Hasher,
}

impl Cutter {
    pub fn new() -> Self {
        Self::with(CutSizes::DEFAULT)
    }

    pub fn with(sizes: CutSizes) -> Self {
        Self {
            sizes,
            buf: Vec::new(),
            spare: None,
            body: None,
        }
    }

    fn padded(&self, len: u64) -> u64 {
        len.next_multiple_of(self.sizes.align)
    }

    /// A body of `len` bytes (not 0) begins. May complete a chunk.
    pub fn begin(&mut self, len: u64) -> Option<Vec<u8>> {
        let size = self.padded(len);
        let large = len >= self.sizes.large_file_min;
        let full = self.buf.len() as u64 + size > self.sizes.group_max;
        let done = ((large || full) && !self.buf.is_empty()).then(|| self.take());
        self.body = Some(Body {
            left: size,
            size,
            large,
            crc: crc32fast::Hasher::new(),
        });
        done
    }

    /// Takes some of the bytes, at least one; returns how many, and a chunk if they completed one.
    pub fn push(&mut self, bytes: &[u8]) -> (usize, Option<Vec<u8>>) {
        let Some(body) = &mut self.body else {
            return (bytes.len(), None);
        };
        if !body.large {
            body.crc.update(bytes);
            body.left = body.left.saturating_sub(bytes.len() as u64);
            self.buf.extend_from_slice(bytes);
            return (bytes.len(), None);
        }
        // `left` counts from the start of the chunk being filled.
        let filled = self.buf.len() as u64;
        let end = if body.left <= self.sizes.large_chunk + self.sizes.large_rest_max {
            body.left
        } else {
            self.sizes.large_chunk
        };
        let n = (bytes.len() as u64).min(end - filled) as usize;
        self.buf.extend_from_slice(&bytes[..n]);
        if self.buf.len() as u64 == end {
            body.left -= end;
            return (n, Some(self.take()));
        }
        (n, None)
    }

    /// The body is complete: pads it, and may complete a chunk.
    pub fn end(&mut self) -> Option<Vec<u8>> {
        let body = self.body.take()?;
        let size = self.padded(self.buf.len() as u64);
        self.buf.resize(size as usize, 0);
        if self.buf.is_empty() {
            return None;
        }
        (body.large || self.ends_group(&body)).then(|| self.take())
    }

    fn ends_group(&self, body: &Body) -> bool {
        let group = self.buf.len() as u64;
        if group < self.sizes.group_min {
            return false;
        }
        let bytes_per_cut = if group < self.sizes.group_target {
            self.sizes.early_bytes_per_cut
        } else {
            self.sizes.late_bytes_per_cut
        };
        // The checksum as a fraction of 2^32 against size / bytes_per_cut.
        u64::from(body.crc.clone().finalize()) * bytes_per_cut < body.size << 32
    }

    /// What is left after the last body.
    pub fn finish(mut self) -> Option<Vec<u8>> {
        (!self.buf.is_empty()).then(|| self.take())
    }

    /// An empty buffer, for a chunk to come.
    pub fn give(&mut self, buffer: Vec<u8>) {
        self.spare = Some(buffer);
    }

    fn take(&mut self) -> Vec<u8> {
        let mut next = self.spare.take().unwrap_or_default();
        next.reserve(self.sizes.group_max.max(self.sizes.large_chunk) as usize);
        std::mem::replace(&mut self.buf, next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn padded(len: u64) -> u64 {
        len.next_multiple_of(BODY_ALIGN)
    }

    /// Feeds bodies in pieces of the given sizes, over and over.
    fn cut(bodies: &[Vec<u8>], pieces: &[usize]) -> Vec<Vec<u8>> {
        let mut cutter = Cutter::new();
        let mut out = Vec::new();
        let mut piece = pieces.iter().cycle();
        for body in bodies.iter().filter(|b| !b.is_empty()) {
            out.extend(cutter.begin(body.len() as u64));
            let mut rest = body.as_slice();
            while !rest.is_empty() {
                let want = (*piece.next().unwrap()).clamp(1, rest.len());
                let (n, chunk) = cutter.push(&rest[..want]);
                assert!(n > 0);
                out.extend(chunk);
                rest = &rest[n..];
            }
            out.extend(cutter.end());
        }
        out.extend(cutter.finish());
        out
    }

    fn body(seed: u64, len: usize) -> Vec<u8> {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..len)
            .map(|_| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x as u8
            })
            .collect()
    }

    fn data_space(bodies: &[Vec<u8>]) -> Vec<u8> {
        let mut out = Vec::new();
        for b in bodies {
            out.extend_from_slice(b);
            out.resize(padded(out.len() as u64) as usize, 0);
        }
        out
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn cuts_do_not_depend_on_how_the_bytes_arrive(
            lens in prop::collection::vec(prop_oneof![
                8 => 0usize..30_000,
                1 => 100_000usize..300_000,
                1 => 500_000usize..1_200_000,
                1 => Just(512 << 10), 1 => Just((512 << 10) + 1), 1 => Just(576 << 10), 1 => Just(4096),
            ], 0..40),
            pieces in prop::collection::vec(1usize..200_000, 1..6),
        ) {
            let bodies: Vec<_> = lens.iter().enumerate().map(|(i, &n)| body(i as u64 + 1, n)).collect();
            let whole = cut(&bodies, &[usize::MAX]);
            prop_assert_eq!(&whole, &cut(&bodies, &pieces));
            prop_assert!(whole.concat() == data_space(&bodies), "the chunks are not the data space");
            prop_assert!(whole.iter().all(|c| !c.is_empty() && (c.len() as u64).is_multiple_of(BODY_ALIGN)));
            prop_assert!(whole.iter().all(|c| c.len() as u64 <= CutSizes::DEFAULT.large_chunk + CutSizes::DEFAULT.large_rest_max));
        }
    }

    #[test]
    fn adding_one_small_file_changes_few_chunks_and_none_of_a_large_file() {
        let mut bodies: Vec<_> = (1..1500).map(|i| body(i, 100 + (i as usize * 7919) % 24_000)).collect();
        bodies.insert(700, body(9999, 5 << 20));
        let before: HashSet<_> = cut(&bodies, &[usize::MAX]).into_iter().collect();
        let mut changed = Vec::new();
        for at in (3..1400).step_by(41) {
            let mut more = bodies.clone();
            more.insert(at, body(777_000 + at as u64, 3000));
            changed.push(
                cut(&more, &[usize::MAX])
                    .into_iter()
                    .filter(|c| !before.contains(c))
                    .count(),
            );
        }
        let mean = changed.iter().sum::<usize>() as f64 / changed.len() as f64;
        assert!(before.len() > 60, "{}", before.len());
        assert!(mean < 3.0, "{mean} of {} chunks changed: {changed:?}", before.len());
    }

    #[test]
    fn groups_are_about_the_size_aimed_at() {
        let bodies: Vec<_> = (1..3000)
            .map(|i| body(i, 50 + (i as usize * 104_729) % 20_000))
            .collect();
        let chunks = cut(&bodies, &[usize::MAX]);
        let mean = chunks.iter().map(Vec::len).sum::<usize>() / chunks.len();
        assert!((80 << 10..176 << 10).contains(&mean), "{mean}");
    }

    /// Sizes for measuring make chunks that could be stored, in proportion.
    #[test]
    fn other_sizes_aim_elsewhere() {
        let bodies: Vec<_> = (1..2000)
            .map(|i| body(i, 50 + (i as usize * 104_729) % 20_000))
            .collect();
        let mut cutter = Cutter::with(CutSizes::about(64, 128).unwrap());
        let mut chunks = Vec::new();
        for body in &bodies {
            chunks.extend(cutter.begin(body.len() as u64));
            assert_eq!(cutter.push(body).0, body.len());
            chunks.extend(cutter.end());
        }
        chunks.extend(cutter.finish());
        let mean = chunks.iter().map(Vec::len).sum::<usize>() / chunks.len();
        assert!((40 << 10..88 << 10).contains(&mean), "{mean}");
        assert_eq!(chunks.concat(), data_space(&bodies));
        for (group, large) in [(7, 512), (256, 7), (4096, 512), (256, 4096), (256, 513)] {
            assert!(CutSizes::about(group, large).is_none());
        }
    }
}
