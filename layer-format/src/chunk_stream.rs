//! The framed stream that `POST chunks` answers with.
//!
//! In: chunk frames. Out: a 40-byte header and the frame, for each digest asked, in the order asked.
//! Invariant: a miss is a value (a header with no frame), so one lost chunk does not cost the others.
//! Not here: verification of the frame; the receiver decompresses and compares the digest before use.
//!
//! ```text
//! 0        32        33      36         40
//! | digest | status | zero  | frame_len | frame ...
//! ```

use crate::digest::ChunkDigest;
use crate::limits::FRAME_SIZE_MAX;

/// Bytes of a header.
pub const HEADER_LEN: usize = 40;

/// What follows a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkStatus {
    /// `frame_len` bytes of one zstd frame follow.
    Found { frame_len: u32 },
    /// The server does not have this chunk; nothing follows.
    Missing,
}

/// One header of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    pub digest: ChunkDigest,
    pub status: ChunkStatus,
}

/// Why a header is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkHeaderError {
    #[error("unknown chunk status {0}")]
    UnknownStatus(u8),
    #[error("reserved bytes of a chunk header are not zero")]
    Reserved,
    #[error("a chunk frame of {0} bytes is over the limit")]
    FrameTooLarge(u32),
    #[error("a found chunk announces no frame")]
    FoundWithoutFrame,
    #[error("a missing chunk announces a frame")]
    MissingWithFrame,
}

const FOUND: u8 = 0;
const MISSING: u8 = 1;

impl ChunkHeader {
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let (status, frame_len) = match self.status {
            ChunkStatus::Found { frame_len } => (FOUND, frame_len),
            ChunkStatus::Missing => (MISSING, 0),
        };
        let mut out = [0; HEADER_LEN];
        out[..32].copy_from_slice(self.digest.as_bytes());
        out[32] = status;
        out[36..].copy_from_slice(&frame_len.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, ChunkHeaderError> {
        let mut digest = [0; 32];
        digest.copy_from_slice(&bytes[..32]);
        if bytes[33..36] != [0; 3] {
            return Err(ChunkHeaderError::Reserved);
        }
        let frame_len = u32::from_le_bytes([bytes[36], bytes[37], bytes[38], bytes[39]]);
        let status = match bytes[32] {
            FOUND if frame_len > FRAME_SIZE_MAX => return Err(ChunkHeaderError::FrameTooLarge(frame_len)),
            FOUND if frame_len == 0 => return Err(ChunkHeaderError::FoundWithoutFrame),
            FOUND => ChunkStatus::Found { frame_len },
            MISSING if frame_len != 0 => return Err(ChunkHeaderError::MissingWithFrame),
            MISSING => ChunkStatus::Missing,
            other => return Err(ChunkHeaderError::UnknownStatus(other)),
        };
        Ok(Self {
            digest: ChunkDigest::from_bytes(digest),
            status,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip_and_bad_ones_are_named() {
        let digest = ChunkDigest::of(b"c");
        for status in [ChunkStatus::Found { frame_len: 77 }, ChunkStatus::Missing] {
            let header = ChunkHeader { digest, status };
            assert_eq!(ChunkHeader::decode(&header.encode()), Ok(header));
        }
        let good = ChunkHeader {
            digest,
            status: ChunkStatus::Found { frame_len: 1 },
        }
        .encode();
        let with = |at: usize, byte: u8| {
            let mut h = good;
            h[at] = byte;
            ChunkHeader::decode(&h)
        };
        assert_eq!(with(32, 9), Err(ChunkHeaderError::UnknownStatus(9)));
        assert_eq!(with(34, 1), Err(ChunkHeaderError::Reserved));
        assert_eq!(with(32, MISSING), Err(ChunkHeaderError::MissingWithFrame));
        assert_eq!(with(36, 0), Err(ChunkHeaderError::FoundWithoutFrame));
        assert!(matches!(with(39, 0xff), Err(ChunkHeaderError::FrameTooLarge(_))));
    }
}
