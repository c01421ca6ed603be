//! Conversions against an independent oracle, and against input that lies.
//!
//! In: synthetic and hostile layers. Out: published TOCs whose tree is the oracle's and whose parts rebuild the exact
//! tar; or a refusal or failure with nothing published.

use std::io::{self, Cursor, Read};
use std::sync::atomic::Ordering;
use std::time::Duration;

use headstart_layer_format::toc::{Content, EntryId, Kind};
use headstart_layer_format::{BlobDigest, DiffId, Toc};
use headstart_loadtest::check::{Field, FileTree, Marks, Overlook, compare_trees};
use headstart_loadtest::corpus::{
    Compression, Dialect, Header, LayerBuilder, Meta, Oracle, OracleKind, Rng, SparseForm, SyntheticImage,
    SyntheticLayer, TarWriter, ZooSpec, pax_record,
};
use headstart_server::ingest::{ConvertError, Failure, IngestConfig, Progress, convert};
use headstart_server::store::{LayerRecord, Store};

struct Room {
    store: Store,
    dir: tempfile::TempDir,
}

fn room() -> Room {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    Room { store, dir }
}

fn progress() -> Progress {
    Progress::new(Duration::from_secs(600))
}

impl Room {
    fn convert(&self, digest: &BlobDigest, blob: impl Read + Send) -> Result<Toc, ConvertError> {
        self.convert_with(digest, blob, &IngestConfig::default())
    }

    fn convert_with(
        &self,
        digest: &BlobDigest,
        blob: impl Read + Send,
        config: &IngestConfig,
    ) -> Result<Toc, ConvertError> {
        let summary = convert(blob, digest, &self.store, config, &progress())?;
        let (stored, bytes) = self.store.toc(digest).unwrap().expect("a converted layer has a TOC");
        assert_eq!(stored, summary);
        Ok(Toc::decode(&bytes).unwrap())
    }

    fn convert_tar(&self, tar: &[u8]) -> Result<Toc, ConvertError> {
        self.convert(&BlobDigest::of(tar), tar)
    }

    fn data_space(&self, toc: &Toc) -> Vec<u8> {
        let mut out = Vec::new();
        for c in toc.chunks().entries() {
            let frame = self
                .store
                .read_chunk(&c.digest)
                .unwrap()
                .expect("a chunk of a ready layer");
            out.extend(zstd::bulk::decompress(&frame, c.raw_len as usize).unwrap());
        }
        out
    }

    fn rebuild(&self, toc: &Toc) -> Vec<u8> {
        let data = self.data_space(toc);
        let mut tar = Vec::new();
        toc.skeleton()
            .write_tar(&mut tar, |range, out| {
                out.extend_from_slice(&data[range.start.0 as usize..range.end().0 as usize]);
                Ok(())
            })
            .unwrap();
        tar
    }

    fn assert_nothing_published(&self, digest: &BlobDigest) {
        assert!(!matches!(
            self.store.layer(digest).unwrap(),
            Some(LayerRecord::Ready { .. })
        ));
        assert!(self.store.toc(digest).unwrap().is_none());
    }
}

fn file_bytes(content: &Content, data: &[u8]) -> Vec<u8> {
    let mut out = vec![0; content.size() as usize];
    for e in content.extents() {
        let (at, len) = (e.offset.0 as usize, e.range.len as usize);
        let from = e.range.start.0 as usize;
        out[at..at + len].copy_from_slice(&data[from..from + len]);
    }
    out
}

/// The one file of the corpus with a time that no unpacker keeps: it becomes 1970.
const BEFORE_1970: &str = "etc/before-1970";

fn assert_like_oracle(room: &Room, toc: &Toc, layer: &SyntheticLayer) {
    let overlook = Overlook::nothing()
        .field(Field::Content)
        .field_at(BEFORE_1970, Field::Mtime);
    let oracle = FileTree::of_oracle(&layer.oracle, Marks::Facts);
    let differences = compare_trees(&oracle, &FileTree::of_toc(toc), &overlook).unwrap();
    assert!(differences.is_empty(), "{differences}");
    let data = room.data_space(toc);
    for e in &layer.oracle.entries {
        let id = toc.tree().find(&e.path).expect("compared above");
        let inode = toc.tree().inode(toc.tree().entry(id).unwrap().inode).unwrap();
        match (&e.kind, &inode.kind) {
            (OracleKind::File { content }, Kind::Regular(found)) => {
                assert!(file_bytes(found, &data) == *content, "{}", e.path.escape_ascii());
            }
            (OracleKind::Directory { opaque, .. }, Kind::Directory { opaque: found, .. }) => {
                assert_eq!(opaque, found, "{}", e.path.escape_ascii());
            }
            _ => {}
        }
    }
}

#[test]
fn every_kind_of_entry_becomes_what_the_oracle_says_and_the_parts_rebuild_the_tar() {
    for (seed, form) in [(1, SparseForm::OldGnu), (2, SparseForm::Pax1)] {
        let spec = ZooSpec {
            sparse: Some(form),
            ..ZooSpec::default()
        };
        let room = room();
        for layer in &SyntheticImage::zoo(seed, &spec).layers {
            let toc = room.convert(&layer.digest, &layer.blob[..]).unwrap();
            assert_eq!(toc.diff_id(), &layer.diff_id);
            assert_eq!(toc.layer_digest(), &layer.digest);
            let tar = room.rebuild(&toc);
            assert_eq!(DiffId::of(&tar), layer.diff_id);
            assert!(tar == layer.tar);
            assert_like_oracle(&room, &toc, layer);
        }
    }
}

#[test]
fn a_time_before_1970_becomes_1970_as_in_unpackers() {
    let room = room();
    let layer = &SyntheticImage::seeded(3).layers[0];
    let toc = room.convert(&layer.digest, &layer.blob[..]).unwrap();
    let id = toc.tree().find(BEFORE_1970.as_bytes()).unwrap();
    let inode = toc.tree().inode(toc.tree().entry(id).unwrap().inode).unwrap();
    assert_eq!((inode.mtime.secs, inode.mtime.nanos), (0, 0));
}

#[test]
fn compressions_of_one_tar_share_tree_and_chunks() {
    let room = room();
    let tar = SyntheticImage::seeded(4).layers[0].tar.clone();
    let kinds = [
        Compression::Plain,
        Compression::Gzip,
        Compression::GzipMembers(5),
        Compression::Zstd,
    ];
    let tocs = kinds.map(|c| {
        let layer = SyntheticLayer::of_tar(tar.clone(), c, Oracle::default());
        room.convert(&layer.digest, &layer.blob[..]).unwrap()
    });
    for toc in &tocs {
        assert_eq!(toc.tree(), tocs[0].tree());
        assert_eq!(toc.chunks(), tocs[0].chunks());
        assert_eq!(toc.diff_id(), tocs[0].diff_id());
    }
    // Several zstd frames, a skippable one in front.
    let (a, b) = tar.split_at(tar.len() / 3);
    let mut blob = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    blob.extend(zstd::bulk::compress(a, 1).unwrap());
    blob.extend(zstd::bulk::compress(b, 5).unwrap());
    let toc = room.convert(&BlobDigest::of(&blob), &blob[..]).unwrap();
    assert_eq!(toc.tree(), tocs[0].tree());
}

/// Gives bytes in pieces of the given sizes.
struct Dribble<'a>(&'a [u8], Vec<usize>, usize);

impl Read for Dribble<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.2 += 1;
        let want = self.1[self.2 % self.1.len()].min(buf.len()).min(self.0.len());
        buf[..want].copy_from_slice(&self.0[..want]);
        self.0 = &self.0[want..];
        Ok(want)
    }
}

#[test]
fn the_toc_does_not_depend_on_how_the_bytes_arrive() {
    for layer in &SyntheticImage::seeded(5).layers {
        let whole = room().convert(&layer.digest, &layer.blob[..]).unwrap();
        for sizes in [vec![1], vec![511, 1, 3], vec![65_537, 2]] {
            let dribble = Dribble(&layer.blob, sizes, 0);
            let toc = room().convert(&layer.digest, dribble).unwrap();
            assert_eq!(toc.encode().unwrap(), whole.encode().unwrap());
        }
    }
}

#[test]
fn another_writer_and_reader_agree() {
    let mut builder = tar::Builder::new(Vec::new());
    let long = format!("{}/file", vec!["directory"; 40].join("/"));
    let contents: Vec<(String, Vec<u8>)> = (0..50)
        .map(|i| (format!("d/f{i}"), vec![i as u8; i * 997]))
        .chain([(long, b"deep".to_vec())])
        .collect();
    for (path, content) in &contents {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        builder.append_data(&mut header, path, &content[..]).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    let room = room();
    let toc = room.convert_tar(&tar).unwrap();
    let data = room.data_space(&toc);
    for (path, content) in &contents {
        let id = toc.tree().find(path.as_bytes()).expect("the file");
        match &toc.tree().inode(toc.tree().entry(id).unwrap().inode).unwrap().kind {
            Kind::Regular(c) => assert!(&file_bytes(c, &data) == content),
            other => panic!("{other:?}"),
        }
    }
    let rebuilt = room.rebuild(&toc);
    let mut archive = tar::Archive::new(Cursor::new(rebuilt));
    assert_eq!(archive.entries().unwrap().filter(|e| e.is_ok()).count(), contents.len());
}

fn refusal(result: Result<Toc, ConvertError>) -> String {
    match result {
        Err(ConvertError::Refused(reason)) => reason.to_string(),
        other => panic!("not refused: {:?}", other.map(|toc| toc.encode().unwrap().len())),
    }
}

fn failure(result: Result<Toc, ConvertError>) -> Failure {
    match result {
        Err(ConvertError::Failed(failure)) => failure,
        other => panic!("not failed: {:?}", other.map(|toc| toc.encode().unwrap().len())),
    }
}

/// A reader that ends with an error, as a broken connection does.
fn broken_after(blob: &[u8], len: usize) -> impl Read + '_ {
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from(io::ErrorKind::ConnectionReset))
        }
    }
    blob[..len].chain(Broken)
}

#[test]
fn a_truncated_layer_is_refused_only_when_those_really_are_its_bytes() {
    for compression in [Compression::Gzip, Compression::Zstd, Compression::Plain] {
        let layer = SyntheticLayer::of_tar(
            SyntheticImage::seeded(6).layers[2].tar.clone(),
            compression,
            Oracle::default(),
        );
        for cut in [1, 5, 100, layer.blob.len() / 2, layer.blob.len() - 1] {
            // The plain tar without the last bytes of its trailer is still one that readers accept.
            if compression == Compression::Plain && cut > layer.blob.len() / 2 {
                continue;
            }
            let room = room();
            let short = &layer.blob[..cut];
            refusal(room.convert(&BlobDigest::of(short), short));
            // The right digest, but the connection broke or gave other bytes: nothing is known about the layer.
            assert!(matches!(
                failure(room.convert(&layer.digest, broken_after(&layer.blob, cut))),
                Failure::Read(_)
            ));
            assert!(matches!(
                failure(room.convert(&layer.digest, short)),
                Failure::DigestMismatch
            ));
            room.assert_nothing_published(&layer.digest);
            room.assert_nothing_published(&BlobDigest::of(short));
        }
    }
}

#[test]
fn wrong_bytes_are_a_failure_wherever_they_are() {
    let layer = &SyntheticImage::seeded(7).layers[0];
    let room = room();
    for at in (0..layer.blob.len()).step_by(layer.blob.len() / 40) {
        let mut wrong = layer.blob.to_vec();
        wrong[at] ^= 1;
        assert!(matches!(
            failure(room.convert(&layer.digest, &wrong[..])),
            Failure::DigestMismatch
        ));
    }
    room.assert_nothing_published(&layer.digest);
    room.convert(&layer.digest, &layer.blob[..]).unwrap();
}

#[test]
fn garbage_is_refused() {
    let room = room();
    refusal(room.convert_tar(b"{\"not\": \"a layer\"}"));
    refusal(room.convert_tar(&Rng::new(1).bytes(100_000)));
}

/// A blob of no bytes, and a tar of end marks: runtimes make an empty directory of both.
#[test]
fn layers_without_files_are_layers() {
    let room = room();
    for tar in [&b""[..], &[0; 512], &[0; 1024], &[0; 10_240]] {
        let toc = room.convert_tar(tar).unwrap();
        assert_eq!(toc.tree().entries().len(), 1);
        assert_eq!(toc.diff_id(), &DiffId::of(tar));
        assert!(room.rebuild(&toc) == tar);
    }
}

#[test]
fn bombs_trip_their_bound() {
    let room = room();
    let config = IngestConfig {
        ratio_floor_bytes: 1 << 20,
        ..IngestConfig::default()
    };
    let mut b = LayerBuilder::new(Dialect::Gnu);
    b.file("zeros", Meta::default(), vec![0; 16 << 20]);
    let zeros = b.finish(Compression::Gzip);
    let why = refusal(room.convert_with(&zeros.digest, &zeros.blob[..], &config));
    assert!(why.contains("for each compressed one"), "{why}");
    room.convert(&zeros.digest, &zeros.blob[..])
        .expect("below the floor it is harmless");
    let config = IngestConfig {
        tar_bytes_max: 1 << 20,
        ..IngestConfig::default()
    };
    refusal(room.convert_with(&zeros.digest, &zeros.blob[..], &config));

    let mut b = LayerBuilder::new(Dialect::Gnu);
    for i in 0..200 {
        b.file(format!("d{i}/f"), Meta::default(), "");
    }
    let many = b.finish(Compression::Gzip);
    for (what, config) in [
        (
            "entries",
            IngestConfig {
                entries_max: 300,
                ..IngestConfig::default()
            },
        ),
        (
            "beside file bodies",
            IngestConfig {
                skeleton_bytes_max: 50_000,
                ..IngestConfig::default()
            },
        ),
    ] {
        let why = refusal(room.convert_with(&many.digest, &many.blob[..], &config));
        assert!(why.contains(what), "{why}");
    }
    room.convert(&many.digest, &many.blob[..]).unwrap();

    // Members that make no entry count as well.
    let again = tar_of(&[(".wh..wh..opq", b'0', ""); 200]);
    let config = IngestConfig {
        entries_max: 150,
        ..IngestConfig::default()
    };
    let why = refusal(room.convert_with(&BlobDigest::of(&again), &again[..], &config));
    assert!(why.contains("members"), "{why}");
}

#[test]
fn a_late_or_cancelled_conversion_fails_and_says_nothing_about_the_layer() {
    let room = room();
    let layer = &SyntheticImage::tiny(2).layers[0];
    let config = IngestConfig::default();
    let late = Progress::new(Duration::ZERO);
    std::thread::sleep(Duration::from_millis(2));
    let outcome = convert(&layer.blob[..], &layer.digest, &room.store, &config, &late);
    assert!(matches!(outcome, Err(ConvertError::Failed(Failure::TimedOut))));
    let cancelled = progress();
    cancelled.cancel();
    let outcome = convert(&layer.blob[..], &layer.digest, &room.store, &config, &cancelled);
    assert!(matches!(outcome, Err(ConvertError::Failed(Failure::Cancelled))));
    assert_eq!(room.store.layer(&layer.digest).unwrap(), None);
}

/// The time was looked at only when compressed bytes were read. A small blob is read at once, and what it inflates to
/// may be hours of work: a million paths, each through a maze of symlinks.
#[test]
fn time_is_up_also_while_few_compressed_bytes_make_much_work() {
    struct CancelAtTheEnd<'a>(&'a [u8], &'a Progress);
    impl Read for CancelAtTheEnd<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let n = self.0.read(buf)?;
            if self.0.is_empty() {
                self.1.cancel();
            }
            Ok(n)
        }
    }
    let room = room();
    let mut b = LayerBuilder::new(Dialect::Gnu);
    b.file("zeros", Meta::default(), vec![0; 16 << 20]);
    let zeros = b.finish(Compression::Gzip);
    assert!(zeros.blob.len() < 64 << 10, "it is read at once");
    let progress = progress();
    let reader = CancelAtTheEnd(&zeros.blob, &progress);
    let outcome = convert(reader, &zeros.digest, &room.store, &IngestConfig::default(), &progress);
    assert!(matches!(outcome, Err(ConvertError::Failed(Failure::Cancelled))));
    let scanned = progress.tar.load(Ordering::Relaxed);
    assert!(
        scanned < 1 << 20,
        "{scanned} bytes were scanned after the end was asked for"
    );
}

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
type TarEntry = (&'static str, u8, &'static str);

fn tar_of(entries: &[TarEntry]) -> Vec<u8> {
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

fn paths(toc: &Toc) -> Vec<String> {
    let count = toc.tree().entries().len() as u32;
    let mut out: Vec<_> = (1..count)
        .map(|i| String::from_utf8(toc.tree().path(EntryId(i))).unwrap())
        .collect();
    out.sort();
    out
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

#[test]
fn trailing_bytes_belong_to_the_tar() {
    let room = room();
    let mut tar = tar_of(&[("f", b'0', "content")]);
    tar.extend_from_slice(&[0; 10_240]);
    tar.extend_from_slice(b"behind the end");
    let toc = room.convert_tar(&tar).unwrap();
    assert!(room.rebuild(&toc) == tar);
    assert_eq!(toc.diff_id(), &DiffId::of(&tar));
}

/// What a conversion stored before it died is there for the next one.
#[test]
fn a_conversion_that_died_half_way_is_resumed_by_its_chunks() {
    let mut b = LayerBuilder::new(Dialect::Gnu);
    let mut rng = Rng::new(11);
    for i in 0..12 {
        b.file(format!("f{i}"), Meta::default(), rng.bytes(1 << 20));
    }
    let layer = b.finish(Compression::Plain);
    let room = room();
    failure(room.convert(&layer.digest, broken_after(&layer.blob, 9 << 20)));
    let Room { store, dir } = room;
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.layer(&layer.digest).unwrap(), None);
    let progress = progress();
    convert(
        &layer.blob[..],
        &layer.digest,
        &store,
        &IngestConfig::default(),
        &progress,
    )
    .unwrap();
    let reused = progress.reused_chunks.load(Ordering::Relaxed);
    assert!(reused >= 7 << 20, "{reused} bytes reused");
    let (_, bytes) = store.toc(&layer.digest).unwrap().unwrap();
    let toc = Toc::decode(&bytes).unwrap();
    assert!(Room { store, dir }.rebuild(&toc) == layer.tar);
}

#[test]
fn a_rebuilt_layer_with_new_times_and_one_more_file_shares_nearly_all_chunks() {
    let build = |mtime: i64, more: bool| {
        let mut rng = Rng::new(12);
        let mut b = LayerBuilder::new(Dialect::Pax);
        for i in 0..800 {
            let content = rng.text(200 + (i * 7919) % 20_000);
            b.file(format!("d/f{i}"), Meta::default().mtime(mtime, 0), content);
            if i == 300 && more {
                b.file(
                    "d/f300-new",
                    Meta::default().mtime(mtime, 0),
                    "one more file".repeat(300),
                );
            }
        }
        b.file("d/large", Meta::default().mtime(mtime, 0), rng.bytes(4 << 20));
        b.finish(Compression::Gzip)
    };
    let (first, second) = (build(1, false), build(2_000_000, true));
    assert_ne!(first.digest, second.digest);
    let room = room();
    room.convert(&first.digest, &first.blob[..]).unwrap();
    let progress = progress();
    let config = IngestConfig::default();
    convert(&second.blob[..], &second.digest, &room.store, &config, &progress).unwrap();
    let new = progress.new_chunks.load(Ordering::Relaxed);
    let reused = progress.reused_chunks.load(Ordering::Relaxed);
    assert!(new > 0 && new * 8 < reused, "{new} new, {reused} reused");
}

#[test]
fn losing_the_index_leaves_toc_and_chunks_as_they_were() {
    let room = room();
    let image = SyntheticImage::seeded(13);
    let before: Vec<_> = image
        .layers
        .iter()
        .map(|l| room.convert(&l.digest, &l.blob[..]).unwrap().encode().unwrap())
        .collect();
    let Room { store, dir } = room;
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let room = Room { store, dir };
    for (layer, before) in image.layers.iter().zip(before) {
        let (_, bytes) = room.store.toc(&layer.digest).unwrap().expect("still ready");
        assert_eq!(bytes, before);
        assert!(room.rebuild(&Toc::decode(&bytes).unwrap()) == layer.tar);
    }
}
