//! Everything that reads bytes of strangers, as functions of bytes: the table of entry points for fuzzers.
//!
//! In: bytes. Out: whether they were accepted; a panic if what must hold for any input does not. Two drivers call the
//! same functions: the mutation harness of the tests (`server/tests/fuzz`) and libFuzzer (`fuzz/`).
//! Invariant: pure functions of their input, bounded in time and memory by its length.
//! Not here: making inputs; the properties of tars (`ingest/fuzz.rs`), packs (`store/fuzz.rs`) and TOCs (`layer-format`).

use std::collections::HashSet;

use headstart_layer_format::limits::LAYERS_MAX;
use http::HeaderValue;

use crate::http::range::{HEADER_LEN_MAX, RANGES_MAX, wants};
use crate::read::document::{self, MANIFEST_TYPES};
use crate::read::wants::Resolved;
use crate::store::units::UNIT;

pub use crate::ingest::fuzz::{TAR_MAX, converted, inflate, layer, tar, toc_of};
pub use crate::profile::fuzz::{profile_file, profile_file_of, sample_chunks, trace};
pub use crate::store::fuzz::{pack, pack_damage, pack_of};
pub use headstart_layer_format::fuzz::{chunk_stream, profile, toc, toc_metadata};

/// An entry point, and the name that its inputs are kept under.
pub type Target = (&'static str, fn(&[u8]) -> bool);

/// All of them.
pub const TARGETS: [Target; 13] = [
    ("inflate", inflate),
    ("tar", tar),
    ("layer", layer),
    ("toc", toc),
    ("toc_metadata", toc_metadata),
    ("chunk_stream", chunk_stream),
    ("pack", pack),
    ("pack_damage", pack_damage),
    ("range", range),
    ("manifest", manifest),
    ("trace", trace),
    ("profile", profile),
    ("profile_file", profile_file),
];

/// A size (eight bytes, little-endian, shifted right by the ninth) and the value of a `Range` header.
pub fn range(data: &[u8]) -> bool {
    let Some((size, [shift, text @ ..])) = data.split_first_chunk() else {
        return false;
    };
    let size = u64::from_le_bytes(*size) >> (shift % 64);
    let Ok(header) = HeaderValue::from_bytes(text) else {
        return false;
    };
    let Ok(wants) = wants(Some(&header)) else {
        assert!(text.len() > HEADER_LEN_MAX || text.split(|b| *b == b',').count() > RANGES_MAX);
        return false;
    };
    let resolved = wants.resolve(size);
    let mut ranges = match resolved.clone() {
        Resolved::One(range) => vec![range],
        Resolved::Several(ranges) => {
            assert!((2..=RANGES_MAX).contains(&ranges.len()));
            ranges
        }
        Resolved::Whole | Resolved::Unsatisfiable => Vec::new(),
    };
    assert!(
        ranges.is_empty() || wants.first(size).as_ref() == ranges.first(),
        "{ranges:?}"
    );
    ranges.sort_by_key(|range| range.start);
    let ranges = &ranges[..];
    for range in ranges {
        assert!(range.start < range.end && range.end <= size, "{range:?} of {size}");
    }
    assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start), "{ranges:?}");
    // An element by itself is satisfied or not; all together are the union of those that are, unless the whole is shorter
    // than they are with their heads.
    let model = model(text, size).filter(|_| header.to_str().is_ok());
    if let (Some(model), Resolved::Whole) = (&model, &resolved) {
        let bytes: u128 = model.iter().map(|r| r.1.min(size.into()).saturating_sub(r.0)).sum();
        assert!(
            model.len() > 1 && bytes + 256 * (model.len() as u128 + 1) > size.into(),
            "{header:?}"
        );
    } else if let Some(model) = model {
        let edges = model.iter().flat_map(|r| [r.0, r.1]).chain([0, u128::from(size)]);
        for edge in edges.flat_map(|e| [e.saturating_sub(1), e, e + 1]) {
            let asked = model.iter().any(|r| r.0 <= edge && edge < r.1) && edge < u128::from(size);
            let given = ranges
                .iter()
                .any(|r| u128::from(r.start) <= edge && edge < u128::from(r.end));
            assert_eq!(asked, given, "byte {edge} of {size} for {header:?}");
        }
    }
    assert_eq!(wants.first(size).is_none(), resolved == Resolved::Unsatisfiable);
    if size > 0 && (wants.is_whole() || resolved == Resolved::Whole) {
        assert!(wants.covers(size));
    }
    if wants.covers(size) && !ranges.is_empty() {
        let missed = ranges[0].start.max(size - ranges[ranges.len() - 1].end);
        let gap = ranges.windows(2).map(|w| w[1].start - w[0].end).max().unwrap_or(0);
        assert!(missed < UNIT && gap < 2 * UNIT, "{ranges:?} do not cover {size}");
    }
    if let Some(opening) = wants.opening(4 * UNIT) {
        assert!(opening.start < opening.end && opening.start.is_multiple_of(UNIT));
        assert!(opening.end - opening.start <= 5 * UNIT, "{opening:?}");
    }
    !ranges.is_empty()
}

/// Bytes that a well-formed header asks for, by a second reading of the grammar; `None` if it is to be ignored.
fn model(text: &[u8], size: u64) -> Option<Vec<(u128, u128)>> {
    let text = std::str::from_utf8(text).ok()?;
    let set = text.strip_prefix("bytes=").filter(|_| text.len() <= HEADER_LEN_MAX)?;
    let size = u128::from(size);
    let mut out = Vec::new();
    for element in set.split(',').map(|e| e.trim_matches([' ', '\t'])) {
        if element.is_empty() {
            continue;
        }
        let dash = element.find('-')?;
        let number = |digits: &str| {
            let digits_only = !digits.is_empty() && digits.chars().all(|c| c.is_ascii_digit());
            let number = digits_only.then(|| digits.parse::<u128>().ok()).flatten();
            number.filter(|&n| n <= u128::from(u64::MAX))
        };
        out.push(match (&element[..dash], &element[dash + 1..]) {
            ("", last) => (size.saturating_sub(number(last)?), size),
            (first, "") => (number(first)?, size),
            (first, last) => (number(first)?, number(last)? + 1),
        });
    }
    (1..=RANGES_MAX).contains(&out.len()).then_some(out)
}

/// A media type (by number) and a document that was served with it.
pub fn manifest(data: &[u8]) -> bool {
    let Some((&kind, bytes)) = data.split_first() else {
        return false;
    };
    let served = [&MANIFEST_TYPES[..], &["application/vnd.example"]].concat()[usize::from(kind) % 5];
    let Ok(document) = document::read(bytes, served) else {
        return false;
    };
    let members: HashSet<_> = document.members.iter().collect();
    assert_eq!(members.len(), document.members.len(), "a member is named twice");
    // (A document may be one to us and still have a number that this reader of everything does not take.)
    if MANIFEST_TYPES.contains(&served)
        && let Ok(value) = serde_json::from_slice::<serde_json::Value>(bytes)
    {
        let never = if document::is_index(served) {
            "layers"
        } else {
            "manifests"
        };
        assert!(
            value.get(never).is_none_or(serde_json::Value::is_null),
            "{served} with {never}"
        );
    }
    if let Some(own) = document::own_type(bytes) {
        assert_eq!(own, served, "a document that says that it is something else");
    }
    let others = MANIFEST_TYPES.into_iter().filter(|&t| t != served);
    if let Some(image) = &document.image {
        assert!((1..=LAYERS_MAX).contains(&image.layers.len()));
        assert!(members.contains(&image.config) && image.layers.iter().all(|l| members.contains(&l.digest)));
        assert!(!document::is_index(served));
        // Nobody may be told that the same bytes are an index.
        for other in others.filter(|t| document::is_index(t)) {
            assert!(document::read(bytes, other).is_err());
        }
    }
    if document::is_index(served) {
        assert_eq!(document.image, None);
        if let Some(child) = document::own_child(bytes) {
            assert!(members.contains(&child), "a child that is no member");
        }
    }
    !document.members.is_empty()
}
