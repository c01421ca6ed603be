//! The `Range` header: what is asked for, as written.
//!
//! In: the header. Out: [`Wants`], or that it asks for too much at once.
//! Invariant: at most [`RANGES_MAX`] ranges come out.
//! Not here: the arithmetic ([`crate::read::wants`], which also decides what is fetched), `If-Range` and the response
//! ([`super::body`]), nor any byte.
//!
//! RFC 9110, section 14. What is malformed or in another unit is *ignored* (200 with everything), as 14.2 allows; ranges of
//! numbers of which none can be satisfied are 416. That includes `500-0`, which the RFC lets a server either ignore or reject,
//! and registry conformance suites expect to be rejected. More ranges than we take are 400, and not 416: podman and CRI-O,
//! which read zstd:chunked layers by ranges, ask for fewer and larger ones after a 400, and fail after a 416.

use http::HeaderValue;

use crate::read::wants::{Spec, Wants};

/// Ranges in one request: as many as containers/storage asks for, which takes no fewer parts than it asked for.
pub const RANGES_MAX: usize = 1024;

/// Longest header looked at: [`RANGES_MAX`] ranges of two 20-digit numbers, and some blanks. The whole head of a request has
/// a bound besides (`http.header_size_max`), within which there is room for as many ranges of a blob of terabytes.
pub const HEADER_LEN_MAX: usize = RANGES_MAX * 48;

/// The header has more ranges than are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request may ask for at most {RANGES_MAX} ranges")]
pub struct TooManyRanges;

/// The value of a `Range` header. Malformed means ignored, as the RFC says.
pub fn wants(header: Option<&HeaderValue>) -> Result<Wants, TooManyRanges> {
    let Some(set) = header.and_then(|value| byte_set(value.to_str().ok()?)) else {
        return Ok(Wants::Whole);
    };
    if set.len() > HEADER_LEN_MAX {
        return Err(TooManyRanges);
    }
    let mut specs = Vec::new();
    // The list grammar of RFC 9110 section 5.6.1 lets a recipient meet empty elements.
    for element in set
        .split(',')
        .map(|e| e.trim_matches([' ', '\t']))
        .filter(|e| !e.is_empty())
    {
        if specs.len() == RANGES_MAX {
            return Err(TooManyRanges);
        }
        let Some(spec) = spec(element) else {
            return Ok(Wants::Whole);
        };
        specs.push(spec);
    }
    Ok(match specs.is_empty() {
        true => Wants::Whole,
        false => Wants::Ranges(specs),
    })
}

/// What follows `bytes=`.
fn byte_set(text: &str) -> Option<&str> {
    let (unit, set) = text.split_once('=')?;
    unit.trim().eq_ignore_ascii_case("bytes").then_some(set)
}

/// `a-b`, `c-` or `-d`.
fn spec(element: &str) -> Option<Spec> {
    let (first, last) = element.split_once('-')?;
    Some(match (first, last) {
        ("", n) => Spec::Suffix(number(n)?),
        (n, "") => Spec::From {
            first: number(n)?,
            last: None,
        },
        (a, b) => Spec::From {
            first: number(a)?,
            last: Some(number(b)?),
        },
    })
}

/// Digits only (`u64::from_str` would take a sign); a number beyond 64 bits is malformed to us.
fn number(text: &str) -> Option<u64> {
    (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::wants::Resolved;

    fn of(text: &str, size: u64) -> Resolved {
        wants(Some(&HeaderValue::from_str(text).unwrap()))
            .unwrap()
            .resolve(size)
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
        assert_eq!(wants(None), Ok(Wants::Whole));
    }

    #[test]
    fn too_many_are_neither_taken_nor_ignored() {
        let many = |count: usize| HeaderValue::from_str(&format!("bytes={}", vec!["1-2"; count].join(", "))).unwrap();
        assert!(matches!(wants(Some(&many(RANGES_MAX))), Ok(Wants::Ranges(specs)) if specs.len() == RANGES_MAX));
        assert_eq!(wants(Some(&many(RANGES_MAX + 1))), Err(TooManyRanges));
        let long = format!("bytes=1-2{}", ",".repeat(HEADER_LEN_MAX));
        assert_eq!(wants(Some(&HeaderValue::from_str(&long).unwrap())), Err(TooManyRanges));
        let largest = format!("{0}-{0}, ", u64::MAX).repeat(RANGES_MAX);
        assert!(wants(Some(&HeaderValue::from_str(&format!("bytes={largest}")).unwrap())).is_ok());
    }
}
