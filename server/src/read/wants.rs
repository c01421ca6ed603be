//! What a request wants of a blob whose size may not be known yet.
//!
//! In: a `Range` header as parsed (`http/range.rs`). Out: where the first fetch for it begins, and, once the size is
//! known, whether it is the whole blob in all but name.
//! Invariant: specs are at most as many as `http/range.rs` lets through, and not resolved: that needs the size.
//! Not here: range arithmetic for answers (`http/range.rs`).

use std::ops::Range;

use crate::store::units::UNIT;

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
    From {
        first: u64,
        last: Option<u64>,
    },
    /// The last so many bytes.
    Suffix(u64),
}

impl Wants {
    /// Whether this is certainly everything, whatever the size.
    pub fn is_whole(&self) -> bool {
        match self {
            Self::Whole => true,
            Self::Ranges(specs) => specs.iter().any(|s| matches!(s, Spec::From { first: 0, last: None })),
        }
    }

    /// Whether fetching this unit by unit fetches the whole of a blob of this size: then it is fetched as a whole, and
    /// its tail withheld until it is verified.
    pub fn covers(&self, size: u64) -> bool {
        let Self::Ranges(specs) = self else { return true };
        let mut units: Vec<Range<u64>> = specs
            .iter()
            .filter_map(|s| s.resolve(size))
            .map(|r| r.start / UNIT..r.end.div_ceil(UNIT))
            .collect();
        units.sort_by_key(|r| r.start);
        let mut at = 0;
        for range in units {
            if range.start > at {
                return false;
            }
            at = at.max(range.end);
        }
        at > 0 && at >= size.div_ceil(UNIT)
    }

    /// The first range that a blob of this size can satisfy.
    pub fn first(&self, size: u64) -> Option<Range<u64>> {
        match self {
            Self::Whole => Some(0..size),
            Self::Ranges(specs) => specs.iter().filter_map(|s| s.resolve(size)).min_by_key(|r| r.start),
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
