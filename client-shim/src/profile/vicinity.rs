//! Which parts of a layer are worth fetching, by those that were read.
//!
//! In: the chunks of a layer as they are read. Out: regions, neighbours in the tar and so mostly in a directory. Invariant: a
//! region is given out once; beside regions that were read into, one is given out only if more than half of the regions of a
//! block around it were: so less is given out in vain than was of use, times one, whatever is read in whatever order.
//! Not here: fetching them (`profile/explore.rs`).

use std::ops::Range;

use headstart_layer_format::limits::CHUNK_REQUEST_MAX;
use headstart_layer_format::toc::ChunkTable;

/// What compresses well ends a region too: it is in memory as a whole when it is checked.
const RAW_SPANS: u64 = 8;
/// Chunks of a region: they may be asked for by name, in one request.
const CHUNKS_MAX: u64 = CHUNK_REQUEST_MAX as u64;
/// Regions of the largest block: a power of two.
const BLOCK_LEVELS: u32 = 6;

#[derive(Debug)]
pub(super) struct Vicinity {
    /// First chunk of each region, and the end of the last.
    edges: Vec<u32>,
    read: Vec<bool>,
    given: Vec<bool>,
}

impl Vicinity {
    /// Regions of about `span` compressed bytes.
    pub(super) fn new(table: &ChunkTable, span: u64) -> Self {
        let mut edges = vec![0];
        let (mut frames, mut raw, mut chunks) = (0, 0, 0);
        for (index, entry) in (0u32..).zip(table.entries()) {
            if chunks > 0 && (frames >= span || raw >= span.saturating_mul(RAW_SPANS) || chunks >= CHUNKS_MAX) {
                edges.push(index);
                (frames, raw, chunks) = (0, 0, 0);
            }
            frames += u64::from(entry.frame_len);
            raw += u64::from(entry.raw_len);
            chunks += 1;
        }
        if !table.is_empty() {
            edges.push(table.len());
        }
        let regions = edges.len() - 1;
        Self {
            edges,
            read: vec![false; regions],
            given: vec![false; regions],
        }
    }

    /// A chunk is read, the first of its region: which that is, and the regions to fetch now. Its own first, if it was not
    /// given out before, then those behind it, then those before it.
    pub(super) fn read(&mut self, chunk: u32) -> Option<(usize, Vec<usize>)> {
        let own = self.edges.partition_point(|edge| *edge <= chunk).checked_sub(1)?;
        if self.read.get(own) != Some(&false) {
            return None;
        }
        self.read[own] = true;
        let block = (0..=BLOCK_LEVELS).rev().map(|level| self.block(own, level));
        let dense = block.into_iter().find(|block| {
            let read = self.read[block.clone()].iter().filter(|read| **read).count();
            read * 2 > block.len()
        });
        // A block of one region was read as a whole.
        let block = dense.unwrap_or(own..own + 1);
        let order = (own..block.end).chain((block.start..own).rev());
        let given = order.filter(|region| !std::mem::replace(&mut self.given[*region], true));
        Some((own, given.collect()))
    }

    pub(super) fn regions(&self) -> usize {
        self.read.len()
    }

    /// All regions that were not given out yet.
    pub(super) fn rest(&mut self) -> Vec<usize> {
        let all = 0..self.given.len();
        all.filter(|region| !std::mem::replace(&mut self.given[*region], true))
            .collect()
    }

    pub(super) fn chunks(&self, region: usize) -> Range<u32> {
        let edge = |at: usize| self.edges.get(at).copied().unwrap_or_default();
        edge(region)..edge(region + 1)
    }

    fn block(&self, region: usize, level: u32) -> Range<usize> {
        let start = region >> level << level;
        start..(start + (1 << level)).min(self.read.len())
    }
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::ChunkDigest;
    use headstart_layer_format::toc::ChunkEntry;

    use super::*;

    fn given(vicinity: &mut Vicinity, chunk: u32) -> Vec<usize> {
        vicinity.read(chunk).map_or_else(Vec::new, |(_, given)| given)
    }

    fn vicinity(chunks: u32, span: u64) -> Vicinity {
        vicinity_of(chunks, 128, span)
    }

    fn vicinity_of(chunks: u32, raw_len: u32, span: u64) -> Vicinity {
        let entry = |n: u32| ChunkEntry {
            digest: ChunkDigest::of(&n.to_le_bytes()),
            raw_len,
            frame_len: 100,
        };
        Vicinity::new(&ChunkTable::new((0..chunks).map(entry).collect()).unwrap(), span)
    }

    #[test]
    fn regions_are_neighbours_of_about_a_span() {
        let some = vicinity(10, 300);
        let regions: Vec<_> = (0..some.regions()).map(|r| some.chunks(r)).collect();
        assert_eq!(regions, [0..3, 3..6, 6..9, 9..10]);
        let tight = vicinity_of(10, 4096, 300);
        assert_eq!(
            tight.regions(),
            10,
            "what compresses well is bounded by what it becomes"
        );
        assert_eq!(
            vicinity_of(10_000, 1, u64::MAX).regions(),
            3,
            "and by what one request may name"
        );
        assert!(vicinity(0, 300).read(0).is_none());
        assert_eq!(vicinity(1, 0).read(0), Some((0, vec![0])));
        assert!(vicinity(3, 100).read(3).is_none(), "no such chunk");
    }

    #[test]
    fn whoever_reads_here_and_there_gets_that_and_who_reads_on_gets_ever_more() {
        let mut some = vicinity(64, 100);
        assert_eq!(given(&mut some, 40), [40]);
        assert!(some.read(40).is_none(), "once");
        assert_eq!(given(&mut some, 20), [20]);
        let mut reader = vicinity(64, 100);
        let all: Vec<usize> = (0..64).map(|chunk| given(&mut reader, chunk).len()).collect();
        assert!(all.iter().filter(|given| **given > 0).count() <= 9, "{all:?}");
        assert_eq!(all.iter().sum::<usize>(), 64);
    }

    #[test]
    fn what_is_given_in_vain_is_less_than_what_was_read() {
        // Some hundred orders, none of which anybody chose.
        let mut random = 1u64;
        for _ in 0..200 {
            let mut some = vicinity(300, 100);
            let mut count = 0;
            for _ in 0..150 {
                random = random
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                count += given(&mut some, (random >> 33) as u32 % 300).len();
                let read = some.read.iter().filter(|read| **read).count();
                assert!(count < 2 * read, "{count} for {read}");
            }
        }
    }

    #[test]
    fn the_rest_is_what_was_not_given_out() {
        let mut some = vicinity(5, 100);
        some.read(2);
        assert_eq!(some.rest(), [0, 1, 3, 4]);
        assert!(some.rest().is_empty() && given(&mut some, 0).is_empty());
    }
}
