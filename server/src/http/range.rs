//! Range arithmetic: a `Range` header as asked, resolved against a size.
//!
//! In: the header and the size of the representation. Out: [`Resolved`].
//! Invariant: every range that comes out is non-empty, inside the size, and (of several) ascending and disjoint; there
//! are at most [`RANGES_MAX`].
//! Not here: `If-Range` and the response ([`super::body`]), nor any byte.
//!
//! RFC 9110, section 14. What is malformed, in another unit, or too much is *ignored* (200 with everything), as 14.2
//! allows; ranges of numbers of which none can be satisfied are 416. That includes `500-0`, which the RFC lets a server
//! either ignore or reject, and registry conformance suites expect to be rejected. Several ranges are sent ascending,
//! overlapping and touching ones as one, so an answer never has more bytes than the representation (and the heads of at
//! most [`RANGES_MAX`] parts).

use std::ops::Range;

use http::HeaderValue;

use crate::read::wants::{Spec, Wants};

/// Ranges in one request. zstd:chunked clients ask for some ten at a time; more is a way to make us seek.
pub const RANGES_MAX: usize = 16;

/// Longest header looked at: [`RANGES_MAX`] ranges of two 20-digit numbers.
const HEADER_LEN_MAX: usize = 1024;

/// A `Range` header resolved against a size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// No range, or one that must be ignored: 200 with everything.
    Whole,
    /// One range: 206.
    One(Range<u64>),
    /// Several: 206 multipart/byteranges; bounded count.
    Several(Vec<Range<u64>>),
    /// 416 with `Content-Range: bytes */size`.
    Unsatisfiable,
}

/// One range as asked.
#[derive(Clone, Copy)]
enum Asked {
    /// `first-last`; `last` is inclusive, may be beyond the end, and may be before `first`.
    FromTo(u64, u64),
    /// `first-`
    From(u64),
    /// `-length`
    Last(u64),
}

/// Resolves the value of a `Range` header; never fails: malformed means ignored, as the RFC says.
pub fn resolve(header: Option<&HeaderValue>, size: u64) -> Resolved {
    let Some(asked) = header.and_then(parse) else {
        return Resolved::Whole;
    };
    let mut ranges: Vec<_> = asked.iter().filter_map(|&a| satisfy(a, size)).collect();
    if ranges.is_empty() {
        return Resolved::Unsatisfiable;
    }
    if ranges.len() > 1 {
        ranges = coalesce(ranges);
    }
    match ranges.len() {
        1 => Resolved::One(ranges.swap_remove(0)),
        _ => Resolved::Several(ranges),
    }
}

/// The same header while the size is not known.
pub fn wants(header: Option<&HeaderValue>) -> Wants {
    let Some(asked) = header.and_then(parse) else {
        return Wants::Whole;
    };
    let specs = asked.into_iter().map(|asked| match asked {
        Asked::FromTo(first, last) => Spec::From {
            first,
            last: Some(last),
        },
        Asked::From(first) => Spec::From { first, last: None },
        Asked::Last(len) => Spec::Suffix(len),
    });
    Wants::Ranges(specs.collect())
}

/// `bytes=a-b, c-, -d`. `None` for anything else.
fn parse(header: &HeaderValue) -> Option<Vec<Asked>> {
    let text = header.to_str().ok().filter(|t| t.len() <= HEADER_LEN_MAX)?;
    let (unit, set) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let mut out = Vec::new();
    // The list grammar of RFC 9110 section 5.6.1 lets a recipient meet empty elements.
    for element in set
        .split(',')
        .map(|e| e.trim_matches([' ', '\t']))
        .filter(|e| !e.is_empty())
    {
        if out.len() == RANGES_MAX {
            return None;
        }
        let (first, last) = element.split_once('-')?;
        out.push(match (first, last) {
            ("", n) => Asked::Last(number(n)?),
            (n, "") => Asked::From(number(n)?),
            (a, b) => Asked::FromTo(number(a)?, number(b)?),
        });
    }
    (!out.is_empty()).then_some(out)
}

/// Digits only (`u64::from_str` would take a sign); a number beyond 64 bits is malformed to us.
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

fn satisfy(asked: Asked, size: u64) -> Option<Range<u64>> {
    let range = match asked {
        Asked::FromTo(first, last) => first..last.saturating_add(1).min(size),
        Asked::From(first) => first..size,
        Asked::Last(len) => size.saturating_sub(len)..size,
    };
    (range.start < range.end).then_some(range)
}

/// Ascending and disjoint; RFC 9110 section 14.2 lets a server coalesce overlapping or touching ranges.
fn coalesce(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|r| r.start);
    let mut out: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, size: u64) -> Resolved {
        resolve(Some(&HeaderValue::from_str(text).unwrap()), size)
    }

    #[test]
    fn single_ranges() {
        for (text, size, want) in [
            ("bytes=500-1499", 3000, Resolved::One(500..1500)),
            ("bytes=500-", 3000, Resolved::One(500..3000)),
            ("bytes=-500", 3000, Resolved::One(2500..3000)),
            ("bytes=2000-5000", 3000, Resolved::One(2000..3000)),
            ("bytes=0-0", 3000, Resolved::One(0..1)),
            ("bytes=0-", 3000, Resolved::One(0..3000)),
            ("bytes=-5000", 3000, Resolved::One(0..3000)),
            ("BYTES=1-2", 3000, Resolved::One(1..3)),
            ("bytes=0-18446744073709551615", 3000, Resolved::One(0..3000)),
            ("bytes=,5-6 ,", 3000, Resolved::One(5..7)),
            ("bytes=5000-10000", 3000, Resolved::Unsatisfiable),
            ("bytes=3000-", 3000, Resolved::Unsatisfiable),
            ("bytes=-0", 3000, Resolved::Unsatisfiable),
            ("bytes=500-0", 3000, Resolved::Unsatisfiable),
            ("bytes=0-", 0, Resolved::Unsatisfiable),
            ("bytes=-1", 0, Resolved::Unsatisfiable),
        ] {
            assert_eq!(of(text, size), want, "{text} of {size}");
        }
    }

    #[test]
    fn malformed_ones_are_ignored() {
        for text in [
            "",
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=a-b",
            "bytes=+1-2",
            "bytes=1-2-3",
            "bytes=0x1-2",
            "items=0-1",
            "bytes=0-99999999999999999999999",
            "bytes 0-1",
        ] {
            assert_eq!(of(text, 3000), Resolved::Whole, "{text}");
        }
        assert_eq!(resolve(None, 3000), Resolved::Whole);
        let many = format!("bytes={}", ["1-2"; RANGES_MAX + 1].join(","));
        assert_eq!(of(&many, 3000), Resolved::Whole);
    }

    #[test]
    fn several_ranges_come_out_ascending_and_disjoint() {
        assert_eq!(of("bytes=0-1,10-11", 3000), Resolved::Several(vec![0..2, 10..12]));
        assert_eq!(of("bytes=10-11,0-1", 3000), Resolved::Several(vec![0..2, 10..12]));
        assert_eq!(of("bytes=0-5,3-9", 3000), Resolved::One(0..10));
        assert_eq!(of("bytes=0-1,2-3", 3000), Resolved::One(0..4));
        assert_eq!(of("bytes=0-1,5000-", 3000), Resolved::One(0..2));
        assert_eq!(of("bytes=5000-,6000-", 3000), Resolved::Unsatisfiable);
        assert_eq!(of("bytes=-2,0-1,-1", 3000), Resolved::Several(vec![0..2, 2998..3000]));
    }
}
