//! The skeleton: every byte of the uncompressed tar that is not a file body.
//!
//! In: the tar as alternating literals and bodies, in order. Out: the pieces again, so that skeleton + data space
//! give the exact tar, which anyone can hash and compare with the DiffID in the signed image config.
//! Invariant: the bodies, each aligned up to 4 KiB, fill the data space in tar order.
//! Not here: reading bodies (the caller has the data space), and hashing.

use std::io::{self, Read, Write};

use super::{TocError, within};
use crate::limits::{BODIES_MAX, BODY_ALIGN, DATA_SIZE_MAX, SKELETON_SIZE_MAX};
use crate::offset::{LayerOffset, LayerRange};

/// zstd level of the skeleton: headers compress about 20:1 at any level, so the fastest useful one.
const SKELETON_LEVEL: i32 = 3;

/// One file body, and how many literal bytes come before it (since the body before).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Body {
    pub literal_len: u64,
    /// Not zero.
    pub len: u64,
}

/// A stretch of the tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// The next `len` bytes of the decompressed skeleton.
    Literal { len: u64 },
    /// Bytes of the data space.
    Body(LayerRange),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skeleton {
    bodies: Vec<Body>,
    size: u64,
    frame: Vec<u8>,
    data_size: u64,
}

impl Skeleton {
    /// `frame` is a zstd frame of `size` bytes; whether it really is shows when it is read.
    pub fn from_parts(bodies: Vec<Body>, size: u64, frame: Vec<u8>) -> Result<Self, TocError> {
        within("skeleton size", size, SKELETON_SIZE_MAX)?;
        within("body count", bodies.len() as u64, BODIES_MAX)?;
        let (mut literals, mut data) = (0u64, LayerOffset(0));
        for b in &bodies {
            if b.len == 0 {
                return Err(TocError::Malformed("an empty body"));
            }
            within("body size", b.len, DATA_SIZE_MAX)?;
            literals = literals.saturating_add(b.literal_len);
            data = LayerOffset(data.0 + b.len).align_up();
            within("data space size", data.0, DATA_SIZE_MAX)?;
        }
        if literals > size {
            return Err(TocError::Malformed("skeleton literals exceed its size"));
        }
        Ok(Self {
            bodies,
            size,
            frame,
            data_size: data.0,
        })
    }

    pub fn bodies(&self) -> &[Body] {
        &self.bodies
    }

    /// Uncompressed size of the literals.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The literals, compressed.
    pub fn frame(&self) -> &[u8] {
        &self.frame
    }

    /// Size of the data space that the bodies fill, a multiple of 4 KiB.
    pub fn data_size(&self) -> u64 {
        self.data_size
    }

    /// Size of the tar.
    pub fn tar_size(&self) -> u64 {
        self.size + self.bodies.iter().map(|b| b.len).sum::<u64>()
    }

    /// The tar, stretch by stretch.
    pub fn pieces(&self) -> impl Iterator<Item = Piece> + '_ {
        let mut data = LayerOffset(0);
        let tail = self.size - self.bodies.iter().map(|b| b.literal_len).sum::<u64>();
        let bodies = self.bodies.iter().flat_map(move |b| {
            let range = LayerRange {
                start: data,
                len: b.len,
            };
            data = range.end().align_up();
            [Piece::Literal { len: b.literal_len }, Piece::Body(range)]
        });
        bodies.chain([Piece::Literal { len: tail }])
    }

    /// The decompressed literals as a stream, never more than [`Skeleton::size`] bytes.
    pub fn literals(&self) -> io::Result<impl Read + '_> {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(self.frame.as_slice())?;
        decoder.window_log_max(super::codec::WINDOW_LOG_MAX)?;
        Ok(decoder.single_frame().take(self.size))
    }

    /// Writes the exact tar. `read_body` copies one range of the data space into the writer.
    pub fn write_tar<W: Write>(
        &self,
        out: &mut W,
        mut read_body: impl FnMut(LayerRange, &mut W) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut literals = self.literals()?;
        for piece in self.pieces() {
            match piece {
                Piece::Literal { len } => {
                    if io::copy(&mut (&mut literals).take(len), out)? != len {
                        return Err(io::Error::new(io::ErrorKind::InvalidData, "the skeleton ends early"));
                    }
                }
                Piece::Body(range) => read_body(range, out)?,
            }
        }
        Ok(())
    }
}

/// Collects a skeleton while a tar is scanned. Memory: the compressed literals and 16 bytes a body.
pub struct SkeletonBuilder {
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    bodies: Vec<Body>,
    size: u64,
    literal_len: u64,
    data_end: LayerOffset,
}

impl std::fmt::Debug for SkeletonBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SkeletonBuilder")
            .field("bodies", &self.bodies.len())
            .field("size", &self.size)
            .finish()
    }
}

impl SkeletonBuilder {
    /// Bytes of the compressed literals so far, without those that the encoder still has.
    pub fn compressed_size(&self) -> u64 {
        self.encoder.get_ref().len() as u64
    }

    pub fn new() -> io::Result<Self> {
        Ok(Self {
            encoder: zstd::stream::write::Encoder::new(Vec::new(), SKELETON_LEVEL)?,
            bodies: Vec::new(),
            size: 0,
            literal_len: 0,
            data_end: LayerOffset(0),
        })
    }

    /// Bytes of the tar that are not a body.
    pub fn literal(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.encoder.write_all(bytes)?;
        self.size += bytes.len() as u64;
        self.literal_len += bytes.len() as u64;
        Ok(())
    }

    /// A body of `len` bytes comes next in the tar; returns its place in the data space. Its padding is a literal.
    pub fn body(&mut self, len: u64) -> LayerRange {
        let range = LayerRange {
            start: self.data_end,
            len,
        };
        if len > 0 {
            self.bodies.push(Body {
                literal_len: std::mem::take(&mut self.literal_len),
                len,
            });
            self.data_end = range.end().align_up();
        }
        range
    }

    /// Uncompressed bytes so far, for the caller's bound.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that the bodies so far take in the data space, padding included.
    pub fn data_size(&self) -> u64 {
        self.data_end.0
    }

    pub fn finish(self) -> Result<Skeleton, TocError> {
        let frame = self.encoder.finish().map_err(|_| TocError::BadFrame("skeleton"))?;
        Skeleton::from_parts(self.bodies, self.size, frame)
    }
}

const _: () = assert!(BODY_ALIGN.is_power_of_two());
