//! What must hold for any bytes that a registry may hand us as a layer: entry points for fuzzers.
//!
//! In: bytes. Out: whether they were accepted; a panic if a property was broken: the parts must rebuild the input, the
//! verdict must not depend on how the bytes arrive, and no error but a refusal may come out of bytes alone.
//! Invariant: pure functions of their input, in memory bounded by its length and by [`TAR_MAX`].
//! Not here: making inputs (`server/tests/fuzz`, `fuzz/`), threads and the store.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};
use std::time::Duration;

use headstart_layer_format::toc::{ChunkEntry, ChunkTable, Kind, Piece, Toc};
use headstart_layer_format::{BlobDigest, ChunkDigest, DiffId};

use super::assemble::{Assembler, Chunks};
use super::config::IngestConfig;
use super::error::{ConvertError, Failure};
use super::inflate::{BUFFER, Original, TarBudget, TarStream};
use super::memory::Memory;
use super::progress::Progress;
use super::tar_header::BLOCK;
use super::tar_scan::{self, Member, Sink};

/// Uncompressed bytes of one input; longer ones trip the budget.
pub const TAR_MAX: u64 = 1 << 20;

/// What a decoder may keep; the harness's bound on memory is above it.
const WINDOW_MAX: u64 = 32 << 20;

/// Gives bytes in pieces of at most `piece`.
struct Dribble<'a> {
    rest: &'a [u8],
    piece: usize,
}

impl Read for Dribble<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.piece.min(buf.len()).min(self.rest.len());
        buf[..n].copy_from_slice(&self.rest[..n]);
        self.rest = &self.rest[n..];
        Ok(n)
    }
}

fn dribble(rest: &[u8], piece: usize) -> impl BufRead {
    BufReader::with_capacity(BUFFER, Dribble { rest, piece })
}

fn progress() -> Progress {
    Progress::new(Duration::from_secs(24 * 3600))
}

/// Bytes alone are no reason for a failure that would be tried again.
fn refused(error: &ConvertError) -> String {
    assert!(
        matches!(error, ConvertError::Refused(_)),
        "bytes made a failure: {error}"
    );
    error.to_string()
}

/// Bytes taken for a compressed layer: the decoders and their bounds.
pub fn inflate(data: &[u8]) -> bool {
    let free = TarBudget {
        bytes_max: TAR_MAX,
        ratio_max: u64::MAX,
        ratio_floor_bytes: u64::MAX,
    };
    let (whole, result) = inflated(data, data.len().max(1), 1 << 16, free);
    let (dribbled, again) = inflated(data, 7, 4093, free);
    assert_eq!(result.is_ok(), again.is_ok(), "{result:?} or {again:?}");
    if result.is_ok() {
        assert!(whole == dribbled, "what comes out depends on how the bytes arrive");
    } else {
        let common = whole.len().min(dribbled.len());
        assert!(whole[..common] == dribbled[..common]);
    }
    let (floor, ratio, read) = (TAR_MAX / 16, 20, 1 << 12);
    let bound = TarBudget {
        ratio_max: ratio,
        ratio_floor_bytes: floor,
        ..free
    };
    let (out, bounded) = inflated(data, data.len().max(1), read, bound);
    let most = floor.max(ratio * data.len() as u64) + read as u64;
    assert!(out.len() as u64 <= most, "{} bytes of {}", out.len(), data.len());
    assert!(bounded.is_err() || whole == out);
    result.is_ok()
}

/// Decodes `data`, handed over in pieces, read in others.
fn inflated(data: &[u8], piece: usize, read: usize, budget: TarBudget) -> (Vec<u8>, Result<(), String>) {
    let mut out = Vec::new();
    let decode = |expected: BlobDigest, out: &mut Vec<u8>| {
        let progress = progress();
        let mut original = Original::new(Dribble { rest: data, piece }, expected, &progress);
        let decoded = super::inflate::inflate(&mut original, WINDOW_MAX).and_then(|inflated| {
            let mut tar = TarStream::new(inflated.buffered(read), budget, &progress);
            let mut buf = vec![0; read];
            loop {
                match tar.read(&mut buf).map_err(ConvertError::from_io)? {
                    0 => break,
                    n => out.extend_from_slice(&buf[..n]),
                }
                assert!(tar.size() <= budget.bytes_max, "over the budget, and going on");
            }
            assert_eq!(tar.size(), out.len() as u64);
            Ok(tar.diff_id())
        });
        (decoded, original.finish())
    };
    let (decoded, verified) = decode(BlobDigest::of(data), &mut out);
    assert!(verified.is_ok(), "the right bytes have the right digest");
    let result = match decoded {
        Ok(diff_id) => {
            assert_eq!(diff_id, DiffId::of(&out));
            Ok(())
        }
        Err(e) => Err(refused(&e)),
    };
    let (_, verified) = decode(BlobDigest::of(b"something else"), &mut Vec::new());
    assert!(matches!(verified, Err(ConvertError::Failed(Failure::DigestMismatch))));
    (out, result)
}

/// Bytes taken for a tar, as they are and with all checksums put right: the scanner.
pub fn tar(data: &[u8]) -> bool {
    as_is_and_sealed(data, scanned)
}

/// The same, down to a TOC and chunks that rebuild the tar.
pub fn layer(data: &[u8]) -> bool {
    as_is_and_sealed(data, |tar| assembled(tar).is_some())
}

/// The encoded TOC of a tar, and its data space; `None` if it is refused.
pub fn toc_of(tar: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    assembled(tar)
}

/// The encoded TOC of a layer blob, and its data space; or why it is refused.
pub fn converted(blob: &[u8]) -> Result<(Vec<u8>, Vec<u8>), String> {
    let config = IngestConfig::default();
    let progress = progress();
    let mut original = Original::new(blob, BlobDigest::of(blob), &progress);
    let mut tar = Vec::new();
    super::inflate::inflate(&mut original, config.zstd_window_bytes_max)
        .and_then(|inflated| {
            TarStream::new(inflated.buffered(BUFFER), TarBudget::of(&config), &progress)
                .read_to_end(&mut tar)
                .map_err(ConvertError::from_io)
        })
        .map_err(|e| refused(&e))?;
    let mut data = Vec::new();
    let toc = assemble(&tar, tar.len().max(1), &mut data).map_err(|e| refused(&e))?;
    Ok((headstart_layer_format::fuzz::check(&toc), data))
}

fn as_is_and_sealed(data: &[u8], one: impl Fn(&[u8]) -> bool) -> bool {
    if data.len() as u64 > TAR_MAX {
        return false;
    }
    let sealed = sealed(data);
    let accepted = one(data);
    if sealed == data {
        accepted
    } else {
        one(&sealed) || accepted
    }
}

/// Every block that looks like a header gets the checksum that it should have.
fn sealed(tar: &[u8]) -> Vec<u8> {
    let mut out = tar.to_vec();
    for block in out.chunks_exact_mut(BLOCK).filter(|b| b[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    out
}

fn scanned(data: &[u8]) -> bool {
    let (whole, result) = scan(data, data.len().max(1));
    match &result {
        Ok(()) => assert!(whole.out == data, "literals and bodies are not the tar"),
        Err(_) => assert!(data.starts_with(&whole.out), "literals and bodies are not in the tar"),
    }
    let (dribbled, again) = scan(data, 61);
    assert_eq!(result, again, "the verdict depends on how the bytes arrive");
    assert!(whole.out == dribbled.out && whole.members == dribbled.members);
    result.is_ok()
}

fn scan(data: &[u8], piece: usize) -> (Recorder, Result<(), String>) {
    let mut recorder = Recorder::default();
    let result = tar_scan::scan(dribble(data, piece), &mut recorder);
    if result.is_ok() {
        assert_eq!(recorder.left, None, "the last body has no end");
    }
    (recorder, result.map_err(|e| refused(&e)))
}

/// Keeps everything, and insists on the order of the calls.
#[derive(Default)]
struct Recorder {
    out: Vec<u8>,
    members: Vec<Member>,
    /// Of the body that is open.
    left: Option<u64>,
}

impl Sink for Recorder {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        assert_eq!(self.left, None, "a literal inside a body");
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn member(&mut self, member: Member) -> Result<(), ConvertError> {
        assert_eq!(self.left, None, "a member inside a body");
        self.left = Some(member.body_len).filter(|&len| len > 0);
        self.members.push(member);
        Ok(())
    }

    fn stretches_max(&self) -> u64 {
        1 << 16
    }

    fn body(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        let left = self.left.and_then(|left| left.checked_sub(bytes.len() as u64));
        assert!(left.is_some(), "more body than was announced");
        self.left = left;
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn body_end(&mut self) -> Result<(), ConvertError> {
        assert_eq!(self.left.take(), Some(0), "a body ends early");
        Ok(())
    }
}

/// A file shows one body, all of it, in order.
fn check_contents(toc: &Toc) {
    let bodies = toc.skeleton().pieces().filter_map(|piece| match piece {
        Piece::Body(range) => Some((range.start, range.end())),
        Piece::Literal { .. } => None,
    });
    let bodies: HashMap<_, _> = bodies.collect();
    for inode in toc.tree().inodes() {
        let Kind::Regular(content) = &inode.kind else { continue };
        let Some(first) = content.extents().first() else {
            continue;
        };
        let end = bodies.get(&first.range.start).expect("a file begins with a body");
        let shown = content.extents().iter().fold(first.range.start, |at, e| {
            assert_eq!(e.range.start, at, "a file leaves out a part of its body");
            e.range.end()
        });
        assert_eq!(shown, *end, "a file ends before its body");
    }
}

/// Chunks in memory, not compressed.
#[derive(Default)]
struct Kept<'a> {
    entries: Vec<ChunkEntry>,
    data: Option<&'a mut Vec<u8>>,
}

impl Chunks for Kept<'_> {
    fn push(&mut self, raw: Vec<u8>) -> Result<(), ConvertError> {
        self.entries.push(ChunkEntry {
            digest: ChunkDigest::of(&raw),
            raw_len: raw.len() as u32,
            frame_len: 1 + raw.len() as u32 / 2,
        });
        if let Some(data) = &mut self.data {
            data.extend_from_slice(&raw);
        }
        Ok(())
    }

    fn finish(self) -> Result<Vec<ChunkEntry>, ConvertError> {
        Ok(self.entries)
    }
}

fn assemble(tar: &[u8], piece: usize, data: &mut Vec<u8>) -> Result<Toc, ConvertError> {
    let config = IngestConfig::default();
    let kept = Kept {
        data: Some(data),
        ..Kept::default()
    };
    let memory = Memory::start(&config)?;
    let mut assembler = Assembler::new(&config, kept, memory)?;
    let scanned = tar_scan::scan(dribble(tar, piece), &mut assembler);
    let (tree, chunks, skeleton, _memory) = assembler.finish(scanned)?;
    let toc = Toc::new(
        BlobDigest::of(tar),
        DiffId::of(tar),
        tree,
        ChunkTable::new(chunks)?,
        skeleton,
    );
    Ok(toc.expect("parts of one tar fit each other"))
}

fn assembled(tar: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (mut data, mut again) = (Vec::new(), Vec::new());
    let toc = assemble(tar, tar.len().max(1), &mut data).map_err(|e| refused(&e));
    let dribbled = assemble(tar, 509, &mut again).map_err(|e| refused(&e));
    assert!(toc == dribbled, "what is made depends on how the bytes arrive");
    let toc = toc.ok()?;
    assert!(data == again);
    check_contents(&toc);
    let encoded = headstart_layer_format::fuzz::check(&toc);
    let mut rebuilt = Vec::new();
    let written = toc.skeleton().write_tar(&mut rebuilt, |range, out| {
        out.extend_from_slice(&data[range.start.0 as usize..range.end().0 as usize]);
        Ok(())
    });
    assert!(written.is_ok() && rebuilt == tar, "the parts do not rebuild the tar");
    Some((encoded, data))
}
