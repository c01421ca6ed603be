//! Which bytes of a blob are here: a set of ranges.
//!
//! In: ranges as they arrive, in any order. Out: how far one may read from a byte, and what is missing.
//! Invariant: ranges are disjoint and do not touch, so there are about as many as there are fetches side by side.
//! Not here: who fetches what is missing ([`super::flight`]).

use std::{collections::BTreeMap, ops::Range};

/// Bytes that are here. Begin to end.
#[derive(Clone, Debug, Default)]
pub struct Landed(BTreeMap<u64, u64>);

impl Landed {
    pub fn insert(&mut self, range: Range<u64>) {
        if range.start >= range.end {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // All that begin at or before the new end and reach the new start, last first.
        while let Some((&s, &e)) = self.0.range(..=end).next_back().filter(|&(_, &e)| e >= start) {
            self.0.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.0.insert(start, end);
    }

    /// The end of what is here from `at` on; `at` itself when that byte is missing.
    pub fn end_from(&self, at: u64) -> u64 {
        let before = self.0.range(..=at).next_back();
        before.map_or(at, |(_, &end)| end.max(at))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn covers(&self, range: &Range<u64>) -> bool {
        self.end_from(range.start) >= range.end
    }

    /// What is missing of `range`, ascending.
    pub fn gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut out = Vec::new();
        let mut at = self.end_from(range.start);
        while at < range.end {
            let next = self.0.range(at..).next();
            let end = next.map_or(range.end, |(&start, _)| start.min(range.end));
            out.push(at..end);
            at = self.end_from(end);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_join() {
        let mut landed = Landed::default();
        landed.insert(5..10);
        landed.insert(20..30);
        landed.insert(10..12);
        landed.insert(3..3);
        assert_eq!(landed.0, BTreeMap::from([(5, 12), (20, 30)]));
        assert_eq!(
            (landed.end_from(4), landed.end_from(5), landed.end_from(12)),
            (4, 12, 12)
        );
        assert_eq!(landed.gaps(&(0..40)), [0..5, 12..20, 30..40]);
        assert_eq!(landed.gaps(&(6..25)), std::slice::from_ref(&(12..20)));
        assert!(landed.gaps(&(21..30)).is_empty());
        landed.insert(0..100);
        assert_eq!(landed.0, BTreeMap::from([(0, 100)]));
    }

    proptest! {
        #[test]
        fn it_is_the_set_that_a_list_of_flags_is(
            inserted in proptest::collection::vec((0u64..40, 0u64..12), 0..12),
            from in 0u64..40,
            len in 0u64..20,
        ) {
            let mut landed = Landed::default();
            let mut flags = [false; 64];
            for (start, len) in inserted {
                landed.insert(start..start + len);
                flags[start as usize..(start + len) as usize].fill(true);
            }
            let end = (from as usize..64).find(|&i| !flags[i]).unwrap_or(64) as u64;
            prop_assert_eq!(landed.end_from(from), end);
            let asked = from..from + len;
            prop_assert_eq!(landed.covers(&asked), asked.clone().all(|i| flags[i as usize]));
            let gaps = landed.gaps(&asked);
            let missing: Vec<u64> = gaps.iter().cloned().flatten().collect();
            let want: Vec<u64> = asked.filter(|&i| !flags[i as usize]).collect();
            prop_assert_eq!(missing, want);
            prop_assert!(gaps.windows(2).all(|w| w[0].end < w[1].start));
        }
    }
}
