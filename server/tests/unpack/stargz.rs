//! eStargz and stargz layers: ordinary gzip members with an index at the end, for readers that know it.
//!
//! In: such layers by hand, each entry a member, with their landmarks, index and footer. Out: their extra entries are files
//! like others, as containerd's unpacker has them (its remote snapshotter hides them; we do not, because the DiffID is of
//! this tar, and an ordinary unpack is what a lazy mount has to look like).
//! Not here: other ways to cut a layer into members ([`super::compressed`]).

use std::io::Write;

use flate2::{Compression, GzBuilder};
use headstart_loadtest::corpus::{Dialect, TarWriter};
use headstart_loadtest::playground::containerd::Release;

use crate::compressed::GZIP;
use crate::runtime::Runtime;

const INDEX: &str = "stargz.index.json";
const PREFETCH: &str = ".prefetch.landmark";
const NO_PREFETCH: &str = ".no.prefetch.landmark";
/// What ends a tar.
const TRAILER: usize = 1024;

/// Path, type, link, body.
type Entry = (&'static str, u8, &'static str, Vec<u8>);

fn file(path: &'static str, body: impl Into<Vec<u8>>) -> Entry {
    (path, b'0', "", body.into())
}

fn dir(path: &'static str) -> Entry {
    (path, b'5', "", Vec::new())
}

/// A landmark's one byte, as the builder has it.
fn landmark(path: &'static str) -> Entry {
    file(path, [0xf])
}

/// One entry's header and body.
fn packed((path, typeflag, link, body): &Entry) -> Vec<u8> {
    let mut writer = TarWriter::new();
    writer.member(Dialect::Ustar, path.as_bytes(), *typeflag, link.as_bytes(), body);
    writer.into_bytes()
}

fn member(bytes: &[u8], extra: Option<Vec<u8>>) -> Vec<u8> {
    let builder = extra
        .into_iter()
        .fold(GzBuilder::new(), |builder, extra| builder.extra(extra));
    let level = if bytes.is_empty() { 0 } else { 6 };
    let mut encoder = builder.write(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An index as the builders write it: where each entry's member begins.
fn index(entries: &[Entry], offsets: &[usize]) -> Entry {
    let lines = entries.iter().zip(offsets).map(|((path, typeflag, ..), offset)| {
        let kind = if *typeflag == b'5' { "dir" } else { "reg" };
        format!(r#"{{"name":"{path}","type":"{kind}","offset":{offset}}}"#)
    });
    let lines: Vec<_> = lines.collect();
    file(INDEX, format!(r#"{{"version":1,"entries":[{}]}}"#, lines.join(",")))
}

/// Each entry a member, then the index, then an empty member whose extra field says where the index is: within a subfield
/// "SG" (eStargz), or by itself (stargz).
fn stargz(entries: Vec<Entry>, subfield: bool) -> Vec<u8> {
    let (mut blob, mut offsets) = (Vec::new(), Vec::new());
    for entry in &entries {
        offsets.push(blob.len());
        blob.extend(member(&packed(entry), None));
    }
    let at = blob.len();
    let mut last = packed(&index(&entries, &offsets));
    last.extend([0; TRAILER]);
    blob.extend(member(&last, None));
    let place = format!("{at:016x}STARGZ").into_bytes();
    let extra = match subfield {
        true => [&b"SG\x16\0"[..], &place].concat(),
        false => place,
    };
    let footer = member(b"", Some(extra));
    assert_eq!(footer.len(), if subfield { 51 } else { 47 }, "as the readers expect it");
    blob.extend(footer);
    blob
}

fn ordinary() -> Vec<Entry> {
    vec![
        dir("bin/"),
        file("bin/sh", vec![b's'; 9000]),
        file("etc/passwd", "root"),
        ("bin/ash", b'1', "bin/sh", Vec::new()),
        file("etc/.wh.shadow", ""),
        file("var/.wh..wh..opq", ""),
    ]
}

fn with(first: impl IntoIterator<Item = Entry>) -> Vec<Entry> {
    first.into_iter().chain(ordinary()).collect()
}

#[test]
fn the_extra_entries_of_stargz_layers_are_files_as_containerd_has_them() {
    let link = |path, target| (path, b'1', target, Vec::new());
    let cases = [
        (
            "eStargz",
            stargz(with([landmark(PREFETCH)]), true),
            vec![PREFETCH, INDEX],
        ),
        (
            "eStargz that has nothing to prefetch",
            stargz(with([landmark(NO_PREFETCH)]), true),
            vec![NO_PREFETCH, INDEX],
        ),
        ("stargz", stargz(ordinary(), false), vec![INDEX]),
        ("nothing but an index", stargz(Vec::new(), true), vec![INDEX]),
        (
            "both landmarks, not at the top",
            stargz(with([landmark("etc/.prefetch.landmark"), landmark(NO_PREFETCH)]), true),
            vec!["etc/.prefetch.landmark", NO_PREFETCH, INDEX],
        ),
        (
            "a landmark with other names, and one that comes again",
            stargz(
                with([
                    landmark(PREFETCH),
                    link("etc/mark", PREFETCH),
                    file(PREFETCH, "another"),
                ]),
                true,
            ),
            vec![PREFETCH, "etc/mark", INDEX],
        ),
        (
            "an index of its own, which the last one replaces",
            stargz(with([file(INDEX, "{}"), landmark(NO_PREFETCH)]), true),
            vec![NO_PREFETCH, INDEX],
        ),
        (
            "a directory where the index comes",
            stargz(with([dir("stargz.index.json/"), file("stargz.index.json/x", "")]), true),
            vec![INDEX],
        ),
        (
            "whiteouts of the extra entries",
            stargz(
                with([file(".wh..prefetch.landmark", ""), file(".wh.stargz.index.jso", "")]),
                true,
            ),
            vec![PREFETCH, INDEX],
        ),
    ];
    let runtime = Runtime::start(Release::Machine);
    for (name, blob, shown) in cases {
        let verdicts = runtime.unpack(&blob, GZIP);
        assert_eq!(verdicts.difference(), None, "{name}");
        assert!(
            verdicts.unpacked(),
            "{name}: {:?} {:?}",
            verdicts.theirs.err(),
            verdicts.ours.err()
        );
        let tree = verdicts.ours.unwrap();
        for path in shown {
            assert!(tree.0.contains_key(path.as_bytes()), "{name}: {path}");
        }
    }
}
