//! Chunks of a layer from its tar.
//!
//! In: the tar as a stream, the layer's TOC. Out: each chunk that is missing, checked, in the sink as soon as its last byte
//! has come. Invariant: a chunk passes the same gate as one from a server (`fetch/verify.rs`), so it does not matter who
//! sent the tar; memory is one chunk. Not here: where the tar comes from.

use std::cell::Cell;
use std::io::{self, Read};

use headstart_layer_format::toc::{Chunk, ChunkTable, Piece};
use headstart_layer_format::{DiffId, Toc};
use sha2::{Digest as _, Sha256};

use crate::fetch::verify::{ChunkSink, Corrupt, VerifiedChunk};

const BUFFER: usize = 256 << 10;

/// Why a tar does not give the layer's chunks. Each text completes "failed to ...".
#[derive(Debug, thiserror::Error)]
pub(super) enum RefillError {
    #[error("read what the layer contains: {0}")]
    Toc(io::Error),
    #[error("read the layer's original: {0}")]
    Read(io::Error),
    #[error("find a chunk in the layer's original: {0}")]
    Chunk(#[from] Corrupt),
    #[error("recognise the layer's original: its tar has another digest than the layer's DiffID")]
    DiffId,
    #[error("store a chunk: {0}")]
    Disk(io::Error),
}

/// Puts what is missing into `sink`; `landed` is called after each chunk that was put. Stops reading when nothing is missing
/// any more. Blocks.
pub(super) fn refill(
    toc: &Toc,
    tar: impl Read,
    sink: &dyn ChunkSink,
    mut landed: impl FnMut(),
) -> Result<(), RefillError> {
    let chunks = toc.chunks();
    let missing = Cell::new((0..chunks.len()).filter(|&i| !sink.has(i)).count());
    let mut tar = Tar {
        input: tar,
        hasher: Sha256::new(),
    };
    let mut cutter = Cutter::new(chunks);
    let mut put = |chunk: Chunk, bytes: Vec<u8>| {
        if sink.has(chunk.index) {
            return Ok(());
        }
        let verified = VerifiedChunk::check(chunk, bytes)?;
        sink.put(verified).map_err(RefillError::Disk)?;
        missing.set(missing.get().saturating_sub(1));
        landed();
        Ok(())
    };
    let mut buffer = vec![0; BUFFER];
    for piece in toc.skeleton().pieces() {
        if missing.get() == 0 {
            return Ok(());
        }
        let (mut left, is_body) = match piece {
            Piece::Literal { len } => (len, false),
            Piece::Body(range) => {
                cutter.zeros_until(range.start.0, &mut put)?;
                (range.len, true)
            }
        };
        while left > 0 {
            let part = &mut buffer[..BUFFER.min(usize::try_from(left).unwrap_or(BUFFER))];
            tar.read_exact(part).map_err(RefillError::Read)?;
            if is_body {
                cutter.push(part, &mut put)?;
            }
            left -= part.len() as u64;
        }
    }
    cutter.zeros_until(chunks.data_size(), &mut put)?;
    // The chunks are what the TOC says. That the TOC says the truth about this very tar is worth knowing too.
    tar.finish(toc.diff_id())
}

struct Tar<R> {
    input: R,
    hasher: Sha256,
}

impl<R: Read> Tar<R> {
    fn read_exact(&mut self, out: &mut [u8]) -> io::Result<()> {
        self.input.read_exact(out)?;
        self.hasher.update(out);
        Ok(())
    }

    /// Nothing may follow the last piece. Bytes behind the compressed tar, which decoders complain of, are no part of it.
    fn finish(mut self, expected: &DiffId) -> Result<(), RefillError> {
        let more = self.input.read(&mut [0]).unwrap_or(0);
        let diff_id = DiffId::from_bytes(self.hasher.finalize().into());
        match more == 0 && diff_id == *expected {
            true => Ok(()),
            false => Err(RefillError::DiffId),
        }
    }
}

/// Cuts the data space, as it comes, where the table says.
struct Cutter<'a> {
    chunks: &'a ChunkTable,
    next: u32,
    at: u64,
    bytes: Vec<u8>,
}

impl<'a> Cutter<'a> {
    fn new(chunks: &'a ChunkTable) -> Self {
        Self {
            chunks,
            next: 0,
            at: 0,
            bytes: Vec::new(),
        }
    }

    fn push(
        &mut self,
        mut data: &[u8],
        put: &mut impl FnMut(Chunk, Vec<u8>) -> Result<(), RefillError>,
    ) -> Result<(), RefillError> {
        while !data.is_empty() {
            let Some(chunk) = self.chunks.chunk(self.next) else {
                // The TOC's skeleton and its table agree on the size, so this is a body past both.
                return Err(RefillError::DiffId);
            };
            // At most CHUNK_SIZE_MAX: the table checked it.
            let left = usize::try_from(chunk.range.end().0 - self.at).unwrap_or(usize::MAX);
            let (part, rest) = data.split_at(left.min(data.len()));
            self.bytes.extend_from_slice(part);
            self.at += part.len() as u64;
            data = rest;
            if self.at == chunk.range.end().0 {
                self.next += 1;
                put(chunk, std::mem::take(&mut self.bytes))?;
            }
        }
        Ok(())
    }

    /// The padding between bodies.
    fn zeros_until(
        &mut self,
        end: u64,
        put: &mut impl FnMut(Chunk, Vec<u8>) -> Result<(), RefillError>,
    ) -> Result<(), RefillError> {
        const ZEROS: [u8; 4096] = [0; 4096];
        while self.at < end {
            let len = (end - self.at).min(ZEROS.len() as u64);
            self.push(&ZEROS[..len as usize], put)?;
        }
        Ok(())
    }
}
