//! From the original blob to its tar: verify, sniff, decompress, count.
//!
//! In: the compressed bytes as a `Read`. Out: [`Original`] (the compressed side, verified by digest) and [`TarStream`]
//! (the uncompressed side, which computes the DiffID and enforces size and ratio).
//! Invariant: the format is told by magic, never by a media type; whatever a decoder says, the verdict about the layer
//! stands only after [`Original::finish`] has seen the whole blob with the right digest.
//! Not here: what is in the tar.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::atomic::Ordering;

use headstart_layer_format::{BlobDigest, DiffId};
use sha2::{Digest as _, Sha256};
use zstd::zstd_safe::zstd_sys::ZSTD_ErrorCode;

use super::config::IngestConfig;
use super::error::{ConvertError, Failure, Limit, Refusal};
use super::gzip::GzipMembers;
use super::progress::Progress;
use crate::store::hasher::BlobHasher;

/// As the library counts errors: from the largest number down.
const WINDOW_TOO_LARGE: usize = (ZSTD_ErrorCode::ZSTD_error_frameParameter_windowTooLarge as usize).wrapping_neg();

/// zlib-rs does 625 MB/s with buffers of this size, and half of it with 32 KiB.
pub const BUFFER: usize = 256 << 10;

/// The compressed blob, hashed as it is read.
#[derive(Debug)]
pub struct Original<'a, R> {
    input: R,
    expected: BlobDigest,
    hasher: BlobHasher,
    progress: &'a Progress,
}

impl<'a, R: Read> Original<'a, R> {
    pub fn new(input: R, expected: BlobDigest, progress: &'a Progress) -> Self {
        Self {
            input,
            expected,
            hasher: BlobHasher::of(&expected),
            progress,
        }
    }

    /// Reads what is left and compares the digest.
    pub fn finish(mut self) -> Result<(), ConvertError> {
        io::copy(&mut self, &mut io::sink()).map_err(ConvertError::from_io)?;
        if self.hasher.finish() == self.expected {
            Ok(())
        } else {
            Err(Failure::DigestMismatch.into())
        }
    }
}

/// Not cancelled, and not out of time. Asked on both sides of the decoder: few compressed bytes may make much work.
fn go_on(progress: &Progress) -> io::Result<()> {
    if progress.is_cancelled() {
        return Err(ConvertError::from(Failure::Cancelled).into_io());
    }
    if progress.is_late() {
        return Err(ConvertError::from(Failure::TimedOut).into_io());
    }
    Ok(())
}

impl<R: Read> Read for Original<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        go_on(self.progress)?;
        let n = loop {
            match self.input.read(buf) {
                Ok(n) => break n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(ConvertError::from(Failure::Read(e)).into_io()),
            }
        };
        self.hasher.update(&buf[..n]);
        self.progress.compressed.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}

/// What comes out of [`inflate`].
#[allow(missing_debug_implementations, reason = "decoders")]
pub struct Inflated<'a> {
    pub input: Box<dyn Read + 'a>,
    /// Bytes that the decoder may keep besides its buffers.
    pub window: u64,
}

impl<'a> Inflated<'a> {
    /// For a [`TarStream`], where nobody reads ahead.
    pub fn buffered(self, bytes: usize) -> Box<dyn BufRead + 'a> {
        Box::new(BufReader::with_capacity(bytes, self.input))
    }
}

/// Decompresses by magic. Anything without a known magic is taken for a tar, and the tar's own checksums decide; no bytes at
/// all are a layer without files, as they are to runtimes.
pub fn inflate<'a, R: Read>(original: &'a mut Original<'_, R>, window_max: u64) -> Result<Inflated<'a>, ConvertError> {
    let mut magic = Vec::with_capacity(4);
    original
        .by_ref()
        .take(4)
        .read_to_end(&mut magic)
        .map_err(ConvertError::from_io)?;
    let head = Cursor::new(magic.clone());
    let input = BufReader::with_capacity(BUFFER, head.chain(original));
    let plain = |input| Inflated { input, window: 0 };
    match magic.as_slice() {
        [0x1f, 0x8b, ..] => Ok(plain(Box::new(GzipMembers::new(input)))),
        // A frame, or a skippable one (which may come first).
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(ConvertError::from_io)?;
            let window_log = window_max.max(1).ilog2().clamp(10, 31);
            decoder.window_log_max(window_log).map_err(ConvertError::from_io)?;
            let window = 1 << window_log;
            let input = Box::new(Windowed { decoder, max: window });
            Ok(Inflated { input, window })
        }
        _ => Ok(plain(Box::new(input))),
    }
}

/// A decoder that says which bound a frame is over, if it is its window's.
struct Windowed<D> {
    decoder: D,
    max: u64,
}

impl<D: Read> Read for Windowed<D> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.decoder.read(buf).map_err(|error| {
            // The library hands on the name of the error, and nothing else.
            match error.to_string() == zstd::zstd_safe::get_error_name(WINDOW_TOO_LARGE) {
                true => {
                    let what = "bytes of a zstd frame's window (ingest.zstd_window_bytes_max)";
                    let refusal = Refusal::OverBudget {
                        limit: Limit::ZstdWindow,
                        what,
                        max: self.max,
                    };
                    ConvertError::from(refusal).into_io()
                }
                false => error,
            }
        })
    }
}

/// Bounds on what comes out of the decoder.
#[derive(Clone, Copy, Debug)]
pub struct TarBudget {
    pub bytes_max: u64,
    pub ratio_max: u64,
    pub ratio_floor_bytes: u64,
}

impl TarBudget {
    pub fn of(config: &IngestConfig) -> Self {
        Self {
            bytes_max: config.tar_bytes_max,
            ratio_max: config.ratio_max,
            ratio_floor_bytes: config.ratio_floor_bytes,
        }
    }
}

/// The uncompressed tar, hashed as it comes. What it comes in is handed on without a copy.
pub struct TarStream<'a> {
    input: Box<dyn BufRead + 'a>,
    /// Of the input's buffer: counted and hashed, not consumed.
    ready: usize,
    hasher: Sha256,
    size: u64,
    budget: TarBudget,
    progress: &'a Progress,
}

impl std::fmt::Debug for TarStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TarStream").field("size", &self.size).finish()
    }
}

impl<'a> TarStream<'a> {
    /// `progress` counts what the decoder has consumed.
    pub fn new(input: Box<dyn BufRead + 'a>, budget: TarBudget, progress: &'a Progress) -> Self {
        Self {
            input,
            ready: 0,
            hasher: Sha256::new(),
            size: 0,
            budget,
            progress,
        }
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// DiffID of everything read, to be called at the end of the stream.
    pub fn diff_id(self) -> DiffId {
        DiffId::from_bytes(self.hasher.finalize().into())
    }

    fn check_budget(&self) -> Result<(), Refusal> {
        let TarBudget {
            bytes_max,
            ratio_max,
            ratio_floor_bytes,
        } = self.budget;
        if self.size > bytes_max {
            let what = "uncompressed bytes";
            return Err(Refusal::OverBudget {
                limit: Limit::TarBytes,
                what,
                max: bytes_max,
            });
        }
        let allowed = self
            .progress
            .compressed
            .load(Ordering::Relaxed)
            .saturating_mul(ratio_max);
        if self.size > ratio_floor_bytes && self.size > allowed {
            let what = "uncompressed bytes for each compressed one";
            return Err(Refusal::OverBudget {
                limit: Limit::Ratio,
                what,
                max: ratio_max,
            });
        }
        Ok(())
    }
}

impl BufRead for TarStream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.ready == 0 {
            go_on(self.progress)?;
            let bytes = self.input.fill_buf()?;
            self.hasher.update(bytes);
            self.ready = bytes.len();
            self.size += bytes.len() as u64;
            if let Err(refusal) = self.check_budget() {
                // Nobody gets to see them.
                self.input.consume(std::mem::take(&mut self.ready));
                return Err(ConvertError::from(refusal).into_io());
            }
        }
        match self.ready {
            0 => Ok(&[]),
            _ => self.input.fill_buf(),
        }
    }

    fn consume(&mut self, amount: usize) {
        let amount = amount.min(self.ready);
        self.ready -= amount;
        self.input.consume(amount);
    }
}

impl Read for TarStream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}
