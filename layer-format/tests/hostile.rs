//! Bytes from anywhere: refused or understood, never a panic, never memory for a lie.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use headstart_layer_format::limits::EXTENTS_MAX;
use headstart_layer_format::toc::{Content, Extent, Kind};
use headstart_layer_format::{FileOffset, LayerOffset, LayerRange, Toc, TocError};
use proptest::prelude::*;
use support::arbitrary::{Sample, sample};
use support::by_hand::{DIR, FIFO, Meta, ROOT, framed, toc, varint};

thread_local! {
    /// The largest single request of this thread.
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Watching;

// SAFETY: passes every call on unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = LARGEST.try_with(|l| l.set(l.get().max(layout.size())));
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let _ = LARGEST.try_with(|l| l.set(l.get().max(size)));
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Decodes, and returns the largest allocation that took.
fn watched(bytes: &[u8]) -> (Result<Toc, TocError>, usize) {
    LARGEST.set(0);
    let result = Toc::decode(bytes);
    (result, LARGEST.get())
}

/// No element is more than this many times larger in memory than the least it takes encoded; a growing vector doubles.
const AMPLIFICATION_MAX: usize = 64;

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_and_cut_tocs_do_not_panic(
        Sample { toc, .. } in sample(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let good = toc.encode().unwrap();
        let mut bytes = good.clone();
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        let _ = Toc::decode(&bytes);
        prop_assert!(Toc::decode(&good[..cut.index(good.len())]).is_err());
    }

    /// Changes inside the metadata, past its checksumless compression, reach the parser.
    #[test]
    fn mutated_metadata_is_refused_or_canonical(
        Sample { toc, .. } in sample(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let bytes = toc.encode().unwrap();
        let frame_len = u64::from_le_bytes(bytes[16..24].try_into().unwrap()) as usize;
        let mut meta = zstd::stream::decode_all(&bytes[40..40 + frame_len]).unwrap();
        for (at, byte) in &changes {
            let at = at.index(meta.len());
            meta[at] = *byte;
        }
        let size = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
        let mutated = support::by_hand::toc(&meta, size, &bytes[40 + frame_len..]);
        let (result, largest) = watched(&mutated);
        prop_assert!(largest <= AMPLIFICATION_MAX * (meta.len() + mutated.len()), "{} bytes for {}", largest, meta.len());
        if let Ok(toc) = result {
            // One meaning, one form: what is accepted is what would be written.
            let again = toc.encode().unwrap();
            let frame_len = u64::from_le_bytes(again[16..24].try_into().unwrap()) as usize;
            prop_assert_eq!(zstd::stream::decode_all(&again[40..40 + frame_len]).unwrap(), meta);
            let _ = toc.view();
        }
    }

    #[test]
    fn random_bytes_are_no_toc(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Toc::decode(&bytes).is_err());
        let _ = Toc::decode(&[b"HSTOC\r\n\x01".as_slice(), &bytes].concat());
        let meta = support::by_hand::toc(&bytes, 0, &[]);
        prop_assert!(Toc::decode(&meta).is_err());
    }
}

#[test]
fn counts_that_lie_reserve_nothing() {
    let huge = varint(u64::from(u32::MAX) * 1000);
    let many = varint(1_900_000);
    for count in [huge, many] {
        let digests = [vec![0], vec![1; 64]].concat();
        let inodes = [digests.clone(), count.clone()].concat();
        let entries = [digests.clone(), vec![1], ROOT.to_vec(), count.clone()].concat();
        let chunks = [digests.clone(), vec![1], ROOT.to_vec(), vec![1], count.clone()].concat();
        let bodies = [digests.clone(), vec![1], ROOT.to_vec(), vec![1, 0], count.clone()].concat();
        let xattrs = [digests.clone(), vec![1], ROOT[..7].to_vec(), count.clone()].concat();
        let extents = [digests.clone(), vec![1, 2, 0, 0, 0, 0, 0, 0, 0], count.clone()].concat();
        let value = [
            digests.clone(),
            vec![1],
            ROOT[..7].to_vec(),
            vec![1, 1, b'n'],
            count.clone(),
        ]
        .concat();
        for meta in [inodes, entries, chunks, bodies, xattrs, extents, value] {
            let (result, largest) = watched(&toc(&meta, 0, &[]));
            assert!(
                matches!(result, Err(TocError::Truncated | TocError::OverLimit { .. })),
                "{result:?}"
            );
            assert!(largest < 64 << 10, "{largest} bytes");
        }
    }
}

/// 40 KB that inflate to 256 MB of "inodes" must not become gigabytes.
#[test]
fn a_bomb_of_inodes_stops_at_the_limit() {
    let frame = {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        let head = [vec![0], vec![1; 64], varint(40_000_000)].concat();
        std::io::Write::write_all(&mut encoder, &head).unwrap();
        for _ in 0..256 {
            std::io::Write::write_all(&mut encoder, &[1; 1 << 20]).unwrap();
        }
        encoder.finish().unwrap()
    };
    let size = 65 + varint(40_000_000).len() as u64 + (256 << 20);
    let (result, largest) = watched(&framed(size, &frame, 0, &[]));
    assert!(
        matches!(
            result,
            Err(TocError::OverLimit {
                what: "inode count",
                ..
            })
        ),
        "{result:?}"
    );
    assert!(largest <= 1 << 30, "{largest} bytes");
}

/// Files that each are within the limit, and together are not: known before the second one's extents take memory.
#[test]
fn extents_of_all_files_together_stop_at_the_limit() {
    let file = |count: u64| {
        let mut file = vec![2, 0xa4, 0x03, 0, 0, 0, 0, 0];
        file.extend(varint(2 * count));
        file.extend(varint(count));
        for at in 0..count {
            // A byte, and a hole.
            for n in [2 * at, 2 * at, 1] {
                file.extend(varint(n));
            }
        }
        file
    };
    let first = EXTENTS_MAX - 10;
    let mut meta = Meta::empty();
    meta.inodes.extend([file(first), file(11)]);
    let (result, _) = watched(&meta.toc());
    // What is left for the second, not what all may have.
    assert!(
        matches!(
            result,
            Err(TocError::OverLimit {
                what: "extent count",
                max: 10,
                ..
            })
        ),
        "{result:?}"
    );
}

#[test]
fn lengths_and_windows_that_lie_are_refused() {
    let good = Meta::empty().toc();
    assert!(Toc::decode(&good).is_ok());
    for at in [8, 16, 24, 32] {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        let (result, largest) = watched(&bytes);
        assert!(
            result.is_err() && largest < 64 << 10,
            "field at {at}: {result:?}, {largest} bytes"
        );
    }
    let meta = Meta::empty().bytes();
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    std::io::Write::write_all(&mut encoder, &meta).unwrap();
    std::io::Write::flush(&mut encoder).unwrap();
    let wide = encoder.finish().unwrap();
    assert_eq!(
        Toc::decode(&framed(meta.len() as u64, &wide, 0, &[])),
        Err(TocError::BadFrame("metadata"))
    );
    let frame = zstd::bulk::compress(&meta, 1).unwrap();
    let two = [frame.clone(), zstd::bulk::compress(b"", 1).unwrap()].concat();
    assert_eq!(
        Toc::decode(&framed(meta.len() as u64, &two, 0, &[])),
        Err(TocError::TrailingBytes("metadata frame"))
    );
    for size in [meta.len() as u64 - 1, meta.len() as u64 + 1] {
        assert_eq!(
            Toc::decode(&framed(size, &frame, 0, &[])),
            Err(TocError::BadFrame("metadata"))
        );
    }
    let mut newer = good.clone();
    newer[7] = 2;
    assert_eq!(Toc::decode(&newer), Err(TocError::UnsupportedVersion(2)));
    assert_eq!(
        Toc::decode(&[good.as_slice(), b"x"].concat()),
        Err(TocError::TrailingBytes("sections"))
    );
    assert_eq!(
        Toc::decode(b"GARBAGE.............................................."),
        Err(TocError::BadMagic)
    );
}

fn refusal(change: impl FnOnce(&mut Meta)) -> TocError {
    let mut meta = Meta::empty();
    meta.inodes.push(DIR.to_vec());
    meta.inodes.push(FIFO.to_vec());
    meta.entries = vec![(0, b"a".to_vec(), 1), (0, b"b".to_vec(), 2)];
    Toc::decode(&meta.toc()).expect("good before the change");
    change(&mut meta);
    Toc::decode(&meta.toc()).expect_err("not canonical")
}

#[test]
fn only_the_canonical_form_is_read() {
    let says = |change: fn(&mut Meta), part: &str| {
        let error = refusal(change).to_string();
        assert!(error.contains(part), "{error:?} should say {part:?}");
    };
    // Numbers in longer form, or too large.
    says(
        |m| m.inodes[2] = [&FIFO[..3], &[0x80, 0x00], &FIFO[4..]].concat(),
        "shortest form",
    );
    says(
        |m| m.inodes[2] = [&FIFO[..3], &[0xff; 9], &[0x7f], &FIFO[4..]].concat(),
        "overflows",
    );
    says(
        |m| m.inodes[2] = [&FIFO[..3], &varint(1 << 32), &FIFO[4..]].concat(),
        "overflows",
    );
    says(
        |m| m.inodes[2] = [&[6], varint(0o10000).as_slice(), &FIFO[3..]].concat(),
        "permission bits",
    );
    says(
        |m| m.inodes[2] = [&FIFO[..6], &varint(1_000_000_000), &FIFO[7..]].concat(),
        "nanoseconds",
    );
    // Kinds and flags of a future version.
    says(|m| m.inodes[2][0] = 8, "kind");
    says(|m| m.inodes[2][0] = 0, "kind");
    says(|m| m.inodes[1][8] = 4, "flag");
    says(|m| m.digest[0] = 2, "algorithm");
    // Order and numbering.
    says(|m| m.entries.swap(0, 1), "numbered by first use");
    says(
        |m| (m.entries[0].1, m.entries[1].1) = (b"b".to_vec(), b"a".to_vec()),
        "order",
    );
    says(|m| m.entries[1].1 = b"a".to_vec(), "order");
    says(|m| m.entries[1].2 = 1, "two names");
    says(|m| m.entries[1].2 = 0, "two names");
    says(|m| m.entries[1].2 = 3, "first use");
    says(|m| m.entries.truncate(1), "no name");
    says(|m| m.inodes.truncate(2), "does not exist");
    says(|m| m.entries[1].0 = 2, "parent");
    says(|m| m.entries.push((2, b"c".to_vec(), 2)), "parent");
    says(|m| m.inodes[0] = FIFO.to_vec(), "root");
    // Names.
    for name in ["", ".", "..", "a/b", "z\0"] {
        let error = refusal(|m| m.entries[1].1 = name.as_bytes().to_vec()).to_string();
        assert!(error.contains("name") || error.contains("order"), "{name:?}: {error}");
    }
    says(|m| m.entries[1].1 = vec![b'n'; 256], "name length");
    // Attributes.
    let with_xattrs = |pairs: &[(&[u8], &[u8])]| {
        let mut out = [&FIFO[..7], &varint(pairs.len() as u64)].concat();
        for (name, value) in pairs {
            out.extend([&varint(name.len() as u64), *name, &varint(value.len() as u64), value].concat());
        }
        out
    };
    let xattrs = |pairs: &[(&[u8], &[u8])]| refusal(|m| m.inodes[2] = with_xattrs(pairs)).to_string();
    assert!(xattrs(&[(b"b", b""), (b"a", b"")]).contains("order"));
    assert!(xattrs(&[(b"a", b""), (b"a", b"")]).contains("order"));
    assert!(xattrs(&[(b"", b"value")]).contains("attribute name"));
    assert!(xattrs(&[(b"a\0", b"")]).contains("attribute name"));
    // Symlinks.
    let symlink = |target: &[u8]| [&[3], &FIFO[1..], &varint(target.len() as u64), target].concat();
    for target in [&b""[..], b"a\0b"] {
        assert!(
            refusal(|m| m.inodes[2] = symlink(target))
                .to_string()
                .contains("symlink")
        );
    }
    // Sections.
    says(|m| m.trailer = vec![0], "after the end");
    says(|m| m.chunks = [vec![1], vec![0; 32], vec![10, 10]].concat(), "disagree");
    says(
        |m| m.chunks = [vec![1], vec![0; 32], vec![0, 10]].concat(),
        "empty chunk",
    );
    says(|m| m.bodies = vec![1, 0, 5], "disagree");
    says(|m| m.bodies = vec![1, 0, 0], "empty body");
    says(|m| m.bodies = vec![1, 9, 5], "skeleton");
    // Files: order, size, and the data space.
    let file = |rest: &[u8]| [&[2], &FIFO[1..], rest].concat();
    for (rest, part) in [
        (&[5, 1, 0, 0, 5][..], "outside"),
        (&[5, 1, 0, 0, 0], "empty"),
        (&[5, 1, 1, 0, 5], "after the file"),
        (&[9, 2, 0, 0, 5, 4, 0, 5], "overlap"),
    ] {
        let error = refusal(|m| m.inodes[2] = file(rest)).to_string();
        assert!(error.contains(part), "{error:?} should say {part:?}");
    }
}

#[test]
fn deep_and_long_trees_trip_their_bounds() {
    let nested = |depth: usize, name: &[u8]| {
        let mut meta = Meta::empty();
        for i in 0..depth {
            meta.inodes.push(DIR.to_vec());
            meta.entries.push((u64::from(i > 0), name.to_vec(), i as u64 + 1));
        }
        Toc::decode(&meta.toc())
    };
    assert!(nested(2047, b"d").is_ok());
    assert!(nested(2049, b"d").is_err());
    assert!(nested(15, &[b'n'; 255]).is_ok());
    assert!(nested(17, &[b'n'; 255]).is_err());
    // 4,000 bytes of directories, and then many files in the deepest one.
    let mut meta = Meta::empty();
    for i in 0..15 {
        meta.inodes.push(DIR.to_vec());
        meta.entries.push((u64::from(i > 0), vec![b'n'; 255], i + 1));
    }
    meta.inodes.push(FIFO.to_vec());
    for i in 0..200_000u32 {
        meta.entries
            .push((u64::from(i == 0), format!("{i:06}").into_bytes(), 16));
    }
    let error = Toc::decode(&meta.toc()).unwrap_err();
    assert!(
        matches!(
            error,
            TocError::OverLimit {
                what: "length of all paths",
                ..
            }
        ),
        "{error:?}"
    );
}

/// A `Content` is not tied to a layer until it is in a TOC.
#[test]
fn an_extent_at_the_end_of_numbers_is_refused() {
    let (toc, _) = support::samples::worked_example();
    let mut inodes = toc.tree().inodes().to_vec();
    inodes[2].kind = Kind::Regular(Content::whole(LayerRange {
        start: LayerOffset(u64::MAX - 1),
        len: 5,
    }));
    let tree = headstart_layer_format::toc::Tree::new(toc.tree().entries().to_vec(), inodes).unwrap();
    let joined = Toc::new(
        *toc.layer_digest(),
        *toc.diff_id(),
        tree,
        toc.chunks().clone(),
        toc.skeleton().clone(),
    );
    assert_eq!(
        joined,
        Err(TocError::Malformed("a file extent lies outside the data space"))
    );
    let extent = Extent {
        offset: FileOffset(u64::MAX),
        range: LayerRange {
            start: LayerOffset(0),
            len: 2,
        },
    };
    assert!(Content::sparse(5, vec![extent]).is_err());
}
