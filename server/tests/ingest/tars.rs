//! Tars that unpackers read differently, or would fail on.
//!
//! In: tars by hand. Out: the tree that containerd makes of them, or a refusal.
//! Not here: the comparison with containerd itself (`unpack/`).

use headstart_layer_format::toc::Kind;
use headstart_loadtest::corpus::{Dialect, Header, Meta, TarWriter, pax_record};

use crate::{paths, refusal, room};

fn header<'a>(path: &'a str, typeflag: u8, meta: &'a Meta, size: u64, link: &'a str) -> Header<'a> {
    Header {
        path: path.as_bytes(),
        typeflag,
        meta,
        size,
        link: link.as_bytes(),
        device: (0, 0),
    }
}

/// Path, type, and link target or content.
pub type TarEntry = (&'static str, u8, &'static str);

pub fn tar_of(entries: &[TarEntry]) -> Vec<u8> {
    let meta = Meta::default();
    let mut w = TarWriter::new();
    for &(path, typeflag, arg) in entries {
        let (link, body) = if matches!(typeflag, b'1' | b'2') {
            (arg, "")
        } else {
            ("", arg)
        };
        w.entry(
            Dialect::Ustar,
            &header(path, typeflag, &meta, body.len() as u64, link),
            body.as_bytes(),
        );
    }
    w.finish()
}

#[test]
fn tars_that_unpackers_would_fail_on_or_disagree_about_are_refused() {
    let room = room();
    let cases: [(&str, &[TarEntry]); 11] = [
        ("target is missing", &[("a", b'1', "nowhere")]),
        ("target is missing", &[("a", b'0', "x"), ("a", b'1', "a")]),
        ("hard link to a directory", &[("d", b'5', ""), ("l", b'1', "d")]),
        ("not a directory", &[("f", b'0', "x"), ("f/g", b'0', "y")]),
        ("same layer", &[("f", b'0', "x"), (".wh.f", b'0', "")]),
        ("no name", &[("d/.wh.", b'0', "")]),
        ("no name", &[("d/.wh...", b'0', "")]),
        ("too many symlinks", &[("l", b'2', "l"), ("l/f", b'0', "x")]),
        ("without a target", &[("l", b'2', "")]),
        ("type 'M'", &[("m", b'M', "")]),
        ("type '7'", &[("c", b'7', "x")]),
    ];
    for (expected, entries) in cases {
        let why = refusal(room.convert_tar(&tar_of(entries)));
        assert!(why.contains(expected), "{entries:?}: {why}");
    }
    // The first header says the tar goes on; it does not.
    let good = tar_of(&[("f", b'0', "content")]);
    refusal(room.convert_tar(&good[..515]));
    // The padding of the last member is missed by nobody.
    assert!(room.rebuild(&room.convert_tar(&good[..700]).unwrap()) == good[..700]);
    let mut wrong_sum = good.clone();
    wrong_sum[0] = b'g';
    assert!(refusal(room.convert_tar(&wrong_sum)).contains("checksum"));
    let gap = [&good[..1024], &[0; 512], &good[..1024]].concat();
    assert!(refusal(room.convert_tar(&gap)).contains("zero block"));
}

#[test]
fn odd_paths_end_below_the_root_where_unpackers_put_them() {
    let room = room();
    let tar = tar_of(&[
        ("../../etc/passwd", b'0', "x"),
        ("/abs", b'0', "x"),
        ("a/./b//../c", b'0', "x"),
        ("usr/lib", b'5', ""),
        ("lib", b'2', "usr/lib"),
        ("lib/through-a-link", b'0', "x"),
        ("out", b'2', "../../.."),
        ("out/clipped", b'0', "x"),
        ("hard", b'1', "lib/through-a-link"),
        (".wh..wh.plnk/1.2", b'0', "x"),
        (".wh..wh.aufs", b'0', ""),
        ("a/.wh..wh..opq", b'0', ""),
        (".wh.gone", b'0', ""),
        ("back", b'0', "x"),
        ("..", b'0', "not a name"),
    ]);
    let toc = room.convert_tar(&tar).unwrap();
    assert_eq!(
        paths(&toc),
        [
            ".wh..wh.plnk",
            ".wh..wh.plnk/1.2",
            ".wh.aufs",
            "a",
            "a/c",
            "abs",
            "back",
            "clipped",
            "etc",
            "etc/passwd",
            "gone",
            "hard",
            "lib",
            "out",
            "usr",
            "usr/lib",
            "usr/lib/through-a-link"
        ]
    );
    let inode = |path: &str| {
        toc.tree()
            .entry(toc.tree().find(path.as_bytes()).unwrap())
            .unwrap()
            .inode
    };
    assert_eq!(inode("hard"), inode("usr/lib/through-a-link"));
    let kind = |path: &str| toc.tree().inode(inode(path)).unwrap().kind.clone();
    assert_eq!(kind("gone"), Kind::Whiteout);
    // AUFS's own files, as containerd takes them: they hide what nobody has.
    assert_eq!(kind(".wh.aufs"), Kind::Whiteout);
    assert!(matches!(
        kind("a"),
        Kind::Directory {
            opaque: true,
            implied: true
        }
    ));
    assert!(matches!(
        kind("usr/lib"),
        Kind::Directory {
            opaque: false,
            implied: false
        }
    ));
    assert!(room.rebuild(&toc) == tar);
}

/// The classic desynchronisation: PAX says one size, the header another. PAX counts.
#[test]
fn the_size_of_pax_wins_and_malformed_pax_is_refused() {
    let room = room();
    let meta = Meta::default();
    let hidden = tar_of(&[("hidden", b'0', "x")]);
    let with_pax = |records: &[u8]| {
        let mut w = TarWriter::new();
        w.entry(
            Dialect::Ustar,
            &header("pax", b'x', &meta, records.len() as u64, ""),
            records,
        );
        w.entry(Dialect::Ustar, &header("outer", b'0', &meta, 0, ""), b"");
        w.raw(&hidden);
        w.finish()
    };
    let toc = room.convert_tar(&with_pax(&pax_record(b"size", b"1024"))).unwrap();
    assert_eq!(
        paths(&toc),
        ["outer"],
        "the body of the outer file was taken for a header"
    );
    for bad in [
        &b"11 size=10"[..],
        b"99 size=1024\n",
        b"13 size=-1024\n",
        b"garbage\n",
        &pax_record(b"path", b"a\0b"),
        &pax_record(b"mtime", b"soon"),
    ] {
        refusal(room.convert_tar(&with_pax(bad)));
    }
}

/// Where Go's reader, which containerd has, and others part ways over what an extended header applies to. Go drops what
/// was said before a *global* header, takes the name in sparse records only when they describe a sparse file, and fails
/// on such records of a directory. We kept the first, took the second, and ignored the third: another tree than the
/// ordinary pull's.
#[test]
fn extended_headers_apply_to_what_gos_reader_applies_them_to() {
    let room = room();
    let meta = Meta::default();
    let tar = |members: &[(u8, &[u8])]| {
        let mut w = TarWriter::new();
        for &(typeflag, body) in members {
            w.entry(
                Dialect::Ustar,
                &header("plain", typeflag, &meta, body.len() as u64, ""),
                body,
            );
        }
        w.finish()
    };
    let (path, comment) = (pax_record(b"path", b"other"), pax_record(b"comment", b"c"));
    for before in [(b'x', &path[..]), (b'L', b"other\0")] {
        let why = refusal(room.convert_tar(&tar(&[before, (b'g', &comment), (b'0', b"x")])));
        assert!(why.contains("before a global one"), "{why}");
    }
    let toc = room.convert_tar(&tar(&[(b'g', &comment), (b'x', &path), (b'0', b"x")]));
    assert_eq!(paths(&toc.unwrap()), ["other"]);

    let name = pax_record(b"GNU.sparse.name", b"other");
    let toc = room.convert_tar(&tar(&[(b'x', &name), (b'0', b"x")]));
    assert_eq!(paths(&toc.unwrap()), ["plain"]);
    let map = [
        &name[..],
        &pax_record(b"GNU.sparse.numblocks", b"1"),
        &pax_record(b"GNU.sparse.map", b"0,1"),
        &pax_record(b"GNU.sparse.size", b"1"),
    ]
    .concat();
    let toc = room.convert_tar(&tar(&[(b'x', &map), (b'0', b"x")]));
    assert_eq!(paths(&toc.unwrap()), ["other"]);
    let why = refusal(room.convert_tar(&tar(&[(b'x', &map), (b'5', b"")])));
    assert!(why.contains("not a file"), "{why}");
}
