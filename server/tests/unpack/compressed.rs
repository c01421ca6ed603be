//! Every compression that a registry holds, and streams that only look like one.
//!
//! In: one tar, written by many writers. Out: for each, what containerd makes of it, with Go's gzip reader and with unpigz.
//! Invariant: a layer that either of them unpacks is converted, to the same tree; one that neither does is refused.
//! Not here: tars (`wild.rs`, `cases.rs`).

use std::io::Write;
use std::process::{Command, Stdio};

use flate2::{Compression, GzBuilder, write::GzEncoder};
use headstart_loadtest::corpus::{SyntheticImage, ZooSpec};
use headstart_loadtest::playground::{containerd::Release, gzip_tools::GzipTools, site::Site};

use crate::runtime::{PLAIN, Runtime};

pub const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const DOCKER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_PLAIN: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Who unpacks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Both,
    /// unpigz alone.
    Pigz,
    /// The same, and we do not: what begins as a member should be one.
    PigzLoosely,
    Neither,
}

type Case = (&'static str, By, &'static str, Vec<u8>);

fn piped(program: &std::path::Path, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success() && !output.stdout.is_empty());
    output.stdout
}

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Flushed often: what Go's writer does with each `Flush`, which leaves empty stored blocks.
fn flushed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(6));
    for piece in bytes.chunks(10_000) {
        encoder.write_all(piece).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

fn named(bytes: &[u8], name: &[u8], extra: &[u8]) -> Vec<u8> {
    let head = GzBuilder::new()
        .filename(name)
        .comment("a comment")
        .extra(extra)
        .mtime(77);
    let mut encoder = head.write(Vec::new(), Compression::new(4));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The checksum of a header, as RFC 1952 has it: the low half of its CRC-32.
fn with_header_crc(mut blob: Vec<u8>, right: bool) -> Vec<u8> {
    blob[3] |= 2;
    let mut crc = flate2::Crc::new();
    crc.update(&blob[..10]);
    let sum = (crc.sum() as u16 ^ u16::from(!right)).to_le_bytes();
    blob.splice(10..10, sum);
    blob
}

fn zstd(bytes: &[u8], level: i32, checksum: bool, size: bool) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level).unwrap();
    encoder.include_checksum(checksum).unwrap();
    encoder.include_contentsize(size).unwrap();
    if size {
        encoder.set_pledged_src_size(Some(bytes.len() as u64)).unwrap();
    }
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A frame without its size, so that it names its window.
fn windowed(bytes: &[u8], log: u32) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.window_log(log).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn skippable(number: u8, content: &[u8]) -> Vec<u8> {
    let head = [0x50 | number, 0x2a, 0x4d, 0x18];
    [&head[..], &(content.len() as u32).to_le_bytes(), content].concat()
}

fn with(blob: &[u8], behind: &[u8]) -> Vec<u8> {
    [blob, behind].concat()
}

fn gzips(tar: &[u8], tools: &GzipTools) -> Vec<Case> {
    let (front, back) = tar.split_at(tar.len() / 3);
    let (pigz, zopfli) = (tools.find("pigz"), tools.find("zopfli"));
    let plain = gzip(tar, 6);
    // zopfli takes its time.
    let little = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(little.path(), &tar[..64 << 10]).unwrap();
    let zopfli = piped(&zopfli, &["-c", "--i1", &little.path().display().to_string()], b"");
    let mut broken_crc = plain.clone();
    let at = broken_crc.len() - 6;
    broken_crc[at] ^= 1;
    use By::{Both, Neither, Pigz, PigzLoosely};
    vec![
        ("gzip", Both, GZIP, plain.clone()),
        ("gzip as Docker's", Both, DOCKER, plain.clone()),
        (
            "gzip, Docker's type of a plain layer",
            Both,
            DOCKER_PLAIN,
            plain.clone(),
        ),
        (
            "members",
            Both,
            GZIP,
            [gzip(front, 1), gzip(b"", 6), gzip(back, 9)].concat(),
        ),
        ("stored blocks", Both, GZIP, gzip(tar, 0)),
        ("flushed, with empty blocks", Both, GZIP, flushed(tar)),
        ("pigz", Both, GZIP, piped(&pigz, &["-c", "-p", "2"], tar)),
        (
            "pigz, independent blocks",
            Both,
            GZIP,
            piped(&pigz, &["-c", "-i", "-b", "32", "-p", "2"], tar),
        ),
        (
            "pigz -11",
            Both,
            GZIP,
            with(
                &piped(&pigz, &["-c", "-11", "-I", "1"], &tar[..32 << 10]),
                &gzip(&tar[32 << 10..], 6),
            ),
        ),
        ("zopfli", Both, GZIP, with(&zopfli, &gzip(&tar[64 << 10..], 6))),
        (
            "name, comment, extra field",
            Both,
            GZIP,
            named(tar, b"layer.tar", b"SG\x16\x0012345678901234567890"),
        ),
        (
            "checksum of the header",
            Both,
            GZIP,
            with_header_crc(plain.clone(), true),
        ),
        ("zeros behind it", Pigz, GZIP, with(&plain, &[0; 512])),
        ("a zero behind it", Pigz, GZIP, with(&plain, &[0])),
        (
            "garbage behind it",
            Pigz,
            GZIP,
            with(&plain, b"garbage, more than a header is long"),
        ),
        ("half a magic behind it", Pigz, GZIP, with(&plain, &[0x1f])),
        (
            "no more than a magic behind it",
            PigzLoosely,
            GZIP,
            with(&plain, &[0x1f, 0x8b]),
        ),
        (
            "a broken member behind it",
            Neither,
            GZIP,
            with(&plain, &plain[..plain.len() / 2]),
        ),
        ("half of it", Neither, GZIP, plain[..plain.len() / 2].to_vec()),
        (
            "without its last byte",
            Neither,
            GZIP,
            plain[..plain.len() - 1].to_vec(),
        ),
        ("a wrong checksum", Neither, GZIP, broken_crc),
        (
            "another method",
            Neither,
            GZIP,
            [&[0x1f, 0x8b, 7][..], &plain[3..]].concat(),
        ),
        ("zlib", Neither, GZIP, [&[0x78, 0x9c][..], &plain[10..]].concat()),
    ]
}

fn others(tar: &[u8]) -> Vec<Case> {
    let (front, back) = tar.split_at(tar.len() / 3);
    let frame = zstd(tar, 3, true, true);
    // As zstd:chunked ends: its table of contents and its footer in skippable frames.
    let chunked = [
        &zstd(front, 3, false, true)[..],
        &zstd(back, 3, false, false),
        &skippable(0, &zstd(b"{\"version\":1,\"entries\":[]}", 3, false, true)),
        &skippable(0, &[7; 64]),
    ]
    .concat();
    let mut broken = frame.clone();
    let at = broken.len() - 2;
    broken[at] ^= 1;
    use By::{Both, Neither};
    vec![
        ("zstd", Both, ZSTD, frame.clone()),
        ("zstd without checksum and size", Both, ZSTD, zstd(tar, 1, false, false)),
        (
            "zstd frames",
            Both,
            ZSTD,
            with(&zstd(front, 19, true, true), &zstd(back, 1, false, false)),
        ),
        (
            "zstd behind a skippable frame",
            Both,
            ZSTD,
            with(&skippable(5, b"12345678"), &frame),
        ),
        ("zstd:chunked", Both, ZSTD, chunked),
        ("zstd with a window of 32 MiB", Both, ZSTD, windowed(tar, 25)),
        ("a skippable frame alone", Both, ZSTD, skippable(1, b"nothing else")),
        ("half a zstd frame", Neither, ZSTD, frame[..frame.len() / 2].to_vec()),
        ("zstd with a wrong checksum", Neither, ZSTD, broken),
        ("zstd, then garbage", Neither, ZSTD, with(&frame, b"garbage behind it")),
        ("zstd that says gzip", Both, GZIP, frame.clone()),
        ("gzip that says zstd", Both, ZSTD, gzip(tar, 1)),
        ("a plain tar that says gzip", Both, GZIP, tar.to_vec()),
        ("a plain tar", Both, PLAIN, tar.to_vec()),
        ("nothing", Both, GZIP, Vec::new()),
        ("nothing, plain", Both, PLAIN, Vec::new()),
        ("an empty tar", Both, GZIP, gzip(&[0; 1024], 9)),
        ("a gzip of nothing", Both, GZIP, gzip(b"", 9)),
    ]
}

#[test]
fn whatever_containerd_decompresses_is_converted_and_nothing_else() {
    let tools = GzipTools::open(&Site::of_this_executable().unwrap()).unwrap();
    let spec = ZooSpec {
        files: 20,
        large_bytes: 200_000,
        sparse: None,
    };
    let tar = SyntheticImage::zoo(5, &spec).layers[0].tar.clone();
    let cases = [gzips(&tar, &tools), others(&tar)].concat();
    let (go, pigz) = (
        Runtime::start(Release::Machine),
        Runtime::start(Release::MachineWithPigz(tools)),
    );
    let check = |n: u64| {
        let (name, by, media_type, blob) = &cases[n as usize];
        let we = matches!(by, By::Both | By::Pigz);
        for (runtime, unpacks) in [(&go, *by == By::Both), (&pigz, *by != By::Neither)] {
            let verdicts = runtime.unpack(blob, media_type);
            let why = verdicts.theirs.as_ref().err();
            assert_eq!(verdicts.theirs.is_ok(), unpacks, "{name}: {why:?}");
            if unpacks && we {
                assert_eq!(verdicts.difference(), None, "{name}");
            }
            let why = verdicts.ours.as_ref().err();
            assert_eq!(verdicts.ours.is_ok(), we, "{name}: {why:?}");
        }
    };
    go.each(cases.len() as u64, check);
}

/// A type that says "not compressed" is believed by containerd, so such an image starts with nobody. We judge layers by their
/// bytes, and the same blob may be a layer of another image that says what it is.
#[test]
fn a_compressed_layer_that_says_it_is_plain_is_converted_by_its_bytes() {
    let tar = SyntheticImage::tiny(3).layers[0].tar.clone();
    let verdicts = Runtime::start(Release::Machine).unpack(&gzip(&tar, 6), PLAIN);
    assert!(verdicts.theirs.is_err() && verdicts.ours.is_ok());
}

/// The window is memory that a frame asks for in its head; [`zstd_window_bytes_max`](headstart_server::ingest::IngestConfig)
/// bounds it.
#[test]
fn a_large_window_is_refused() {
    let tar = SyntheticImage::tiny(3).layers[0].tar.clone();
    assert!(headstart_server::fuzz::converted(&windowed(&tar, 25)).is_ok());
    let why = headstart_server::fuzz::converted(&windowed(&tar, 26)).unwrap_err();
    assert!(why.contains("ingest.zstd_window_bytes_max"), "{why}");
}
