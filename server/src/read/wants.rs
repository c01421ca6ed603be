//! Range arithmetic: what a request wants of a blob or another representation, whose size may not be known yet.
//!
//! In: a `Range` header as parsed (`http/range.rs`). Out: where the first fetch for it begins; and, once the size is known,
//! what is sent ([`Resolved`]) and whether that is the whole blob in all but name.
//! Invariant: what is fetched and what is sent are decided by the same function. Every range that comes out is non-empty
//! and inside the size; of several, none overlaps another, and they have the order in which they were asked for.
//! Not here: the header's syntax, and how many ranges it may have (`http/range.rs`).
//!
//! RFC 9110, sections 14.2 and 15.3.7.2. Ranges that only touch stay apart: who reads zstd:chunked layers counts the parts.
//! Overlapping ones are sent as one, in the place of the first of them, so that no byte is sent twice. When parts and their
//! heads would be longer than the whole, the whole is sent (200). So an answer is never longer than the representation,
//! however many ranges there are, and however they lie.

use std::ops::Range;

use crate::store::units::UNIT;

/// What the head of one part of a multipart answer takes, at most: a boundary of 59 letters, `application/octet-stream`, and
/// three numbers of 20 digits. The end of the answer is shorter than that.
const PART_HEAD: u64 = 192;

/// What a request wants of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wants {
    Whole,
    /// Never empty.
    Ranges(Vec<Spec>),
}

/// One range as asked; both ends are inclusive and unchecked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spec {
    /// `last` may be beyond the end, and may be before `first`.
    From { first: u64, last: Option<u64> },
    /// The last so many bytes.
    Suffix(u64),
}

/// What is sent of a representation of known size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// No range, or more in parts than as a whole: 200 with everything.
    Whole,
    /// One range: 206.
    One(Range<u64>),
    /// Several: 206 multipart/byteranges.
    Several(Vec<Range<u64>>),
    /// 416 with `Content-Range: bytes */size`.
    Unsatisfiable,
}

impl Wants {
    /// Whether this is certainly everything, whatever the size.
    pub fn is_whole(&self) -> bool {
        match self {
            Self::Whole => true,
            Self::Ranges(specs) => specs.iter().any(|s| matches!(s, Spec::From { first: 0, last: None })),
        }
    }

    /// What is sent of a representation of this size.
    pub fn resolve(&self, size: u64) -> Resolved {
        let Self::Ranges(specs) = self else {
            return Resolved::Whole;
        };
        let mut ranges = apart(specs.iter().filter_map(|s| s.resolve(size)).collect());
        match ranges.len() {
            0 => Resolved::Unsatisfiable,
            1 => Resolved::One(ranges.swap_remove(0)),
            parts => {
                // No two overlap, so this is at most the size.
                let bytes: u64 = ranges.iter().map(|r| r.end - r.start).sum();
                let heads = (parts as u64 + 1) * PART_HEAD;
                match bytes.saturating_add(heads) > size {
                    true => Resolved::Whole,
                    false => Resolved::Several(ranges),
                }
            }
        }
    }

    /// Whether fetching this unit by unit fetches the whole of a blob of this size: then it is fetched as a whole, and
    /// its tail withheld until it is verified.
    pub fn covers(&self, size: u64) -> bool {
        let mut ranges = match self.resolve(size) {
            Resolved::Whole => return true,
            Resolved::Unsatisfiable => return false,
            Resolved::One(range) => vec![range],
            Resolved::Several(ranges) => ranges,
        };
        ranges.sort_unstable_by_key(|r| r.start);
        let mut at = 0;
        for range in ranges {
            if range.start / UNIT > at {
                return false;
            }
            at = at.max(range.end.div_ceil(UNIT));
        }
        at >= size.div_ceil(UNIT)
    }

    /// Whether less than the whole of a blob of this size is sent at a time.
    pub fn is_part(&self, size: u64) -> bool {
        match self.resolve(size) {
            Resolved::Whole | Resolved::Unsatisfiable => false,
            Resolved::One(range) => range != (0..size),
            Resolved::Several(_) => true,
        }
    }

    /// What is sent first of a blob of this size.
    pub fn first(&self, size: u64) -> Option<Range<u64>> {
        match self.resolve(size) {
            Resolved::Whole => Some(0..size),
            Resolved::One(range) => Some(range),
            Resolved::Several(ranges) => ranges.into_iter().next(),
            Resolved::Unsatisfiable => None,
        }
    }

    /// What to ask for when the size is not known: the units of the first range that says where it begins, at most
    /// `len_max` bytes.
    pub fn opening(&self, len_max: u64) -> Option<Range<u64>> {
        let Self::Ranges(specs) = self else { return None };
        specs.iter().find_map(|spec| match *spec {
            Spec::From { first, last } => {
                let start = first / UNIT * UNIT;
                let end = last
                    .unwrap_or(u64::MAX)
                    .max(first)
                    .min(start.saturating_add(len_max - 1));
                Some(start..(end / UNIT + 1).saturating_mul(UNIT))
            }
            Spec::Suffix(_) => None,
        })
    }
}

impl Spec {
    fn resolve(self, size: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::From { first, last } => first..last.map_or(size, |last| last.saturating_add(1).min(size)),
            Self::Suffix(len) => size.saturating_sub(len)..size,
        };
        (range.start < range.end).then_some(range)
    }
}

/// Joins those that overlap, in the place of the first of them.
fn apart(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    if ranges.len() < 2 {
        return ranges;
    }
    let mut placed: Vec<(usize, Range<u64>)> = ranges.into_iter().enumerate().collect();
    placed.sort_by_key(|(_, range)| range.start);
    let mut out: Vec<(usize, Range<u64>)> = Vec::with_capacity(placed.len());
    for (place, range) in placed {
        match out.last_mut() {
            Some((first, last)) if range.start < last.end => {
                *first = place.min(*first);
                last.end = range.end.max(last.end);
            }
            _ => out.push((place, range)),
        }
    }
    out.sort_unstable_by_key(|(place, _)| *place);
    out.into_iter().map(|(_, range)| range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn from(first: u64, last: Option<u64>) -> Spec {
        Spec::From { first, last }
    }

    #[test]
    fn whole_in_all_but_name() {
        let size = 3 * UNIT + 1;
        for (specs, whole) in [
            (vec![from(0, None)], true),
            (vec![from(5, None)], true),
            (vec![from(UNIT, None)], false),
            (vec![from(0, Some(3 * UNIT))], true),
            (vec![from(0, Some(3 * UNIT - 1))], false),
            (vec![Spec::Suffix(1), from(1, Some(2 * UNIT))], true),
            (
                vec![Spec::Suffix(1), from(0, Some(UNIT)), from(2 * UNIT, Some(2 * UNIT))],
                true,
            ),
            (
                vec![Spec::Suffix(1), from(0, Some(1)), from(2 * UNIT, Some(2 * UNIT))],
                false,
            ),
            (vec![from(size, None)], false),
        ] {
            assert_eq!(Wants::Ranges(specs.clone()).covers(size), whole, "{specs:?}");
        }
        assert!(Wants::Ranges(vec![from(7, Some(8))]).covers(UNIT), "a blob of one unit");
        assert!(Wants::Whole.covers(0));
    }

    #[test]
    fn several_ranges_keep_their_order_and_only_overlapping_ones_are_joined() {
        let of = |specs: &[(u64, u64)], size: u64| {
            let specs = specs.iter().map(|&(first, last)| from(first, Some(last)));
            Wants::Ranges(specs.collect()).resolve(size)
        };
        let several = |ranges: &[Range<u64>]| Resolved::Several(ranges.to_vec());
        assert_eq!(of(&[(0, 1), (10, 11)], 3000), several(&[0..2, 10..12]));
        assert_eq!(of(&[(10, 11), (0, 1)], 3000), several(&[10..12, 0..2]));
        assert_eq!(of(&[(0, 1), (2, 3)], 3000), several(&[0..2, 2..4]));
        assert_eq!(of(&[(0, 5), (3, 9)], 3000), Resolved::One(0..10));
        assert_eq!(
            of(&[(20, 29), (8, 9), (0, 5), (40, 40), (5, 8)], 3000),
            several(&[20..30, 0..10, 40..41])
        );
        assert_eq!(of(&[(0, 1), (5000, 9000)], 3000), Resolved::One(0..2));
        assert_eq!(of(&[(5000, 9000), (6000, 9000)], 3000), Resolved::Unsatisfiable);
        let suffixes = Wants::Ranges(vec![Spec::Suffix(2), from(0, Some(1)), Spec::Suffix(1)]);
        assert_eq!(suffixes.resolve(3000), several(&[2998..3000, 0..2]));
    }

    #[test]
    fn an_answer_is_never_longer_than_the_whole() {
        let two = Wants::Ranges(vec![from(0, Some(0)), from(9, Some(9))]);
        assert_eq!(two.resolve(3 * PART_HEAD + 1), Resolved::Whole);
        assert!(matches!(two.resolve(3 * PART_HEAD + 2), Resolved::Several(_)));
        // And what is sent as a whole is fetched as one: all but the last bytes, which are a unit of their own.
        let size = 2 * UNIT + 100;
        let nearly = Wants::Ranges(vec![from(0, Some(UNIT - 1)), from(UNIT, Some(2 * UNIT - 1))]);
        assert_eq!((nearly.resolve(size), nearly.covers(size)), (Resolved::Whole, true));
        assert!(!nearly.covers(3 * UNIT));
    }

    #[test]
    fn the_opening_is_whole_units_and_bounded() {
        let opening = |specs: Vec<Spec>| Wants::Ranges(specs).opening(4 * UNIT);
        assert_eq!(opening(vec![from(5, Some(6))]), Some(0..UNIT));
        assert_eq!(opening(vec![from(UNIT - 1, Some(UNIT))]), Some(0..2 * UNIT));
        assert_eq!(opening(vec![from(UNIT, None)]), Some(UNIT..5 * UNIT));
        assert_eq!(
            opening(vec![Spec::Suffix(9), from(UNIT, Some(3))]),
            Some(UNIT..2 * UNIT)
        );
        assert_eq!(opening(vec![Spec::Suffix(9)]), None);
        // The largest numbers do not overflow.
        assert!(opening(vec![from(u64::MAX, Some(u64::MAX))]).is_some());
    }
}
