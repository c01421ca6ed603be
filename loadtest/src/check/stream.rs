//! Whether a stream of bytes is what its digest says.
//!
//! In: pieces, in order. Out: the length, or what is wrong and, when the right bytes are at hand, where.
//! Invariant: nothing passes without the digest having been compared.
//! Not here: fetching.

use std::io::Read;

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use sha2::{Digest as _, Sha256, Sha512};

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Digest(Box<WrongDigest>),
    #[error("reading after {len} good bytes: {source}")]
    Read { len: u64, source: std::io::Error },
}

/// The bytes are others than the digest says.
#[derive(Debug, thiserror::Error)]
#[error("the bytes have digest {found}, not {expected} ({len} bytes{})", at(.first_difference))]
pub struct WrongDigest {
    pub expected: BlobDigest,
    pub found: BlobDigest,
    pub len: u64,
    /// Offset of the first wrong, missing or surplus byte, when the expectation is known.
    pub first_difference: Option<u64>,
}

fn at(first_difference: &Option<u64>) -> String {
    first_difference.map_or(String::new(), |at| format!(", first difference at {at}"))
}

enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

/// Hashes what passes by.
pub struct ByteChecker {
    expected: BlobDigest,
    hasher: Hasher,
    expectation: Option<Bytes>,
    len: u64,
    first_difference: Option<u64>,
}

impl std::fmt::Debug for ByteChecker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ByteChecker")
            .field("expected", &self.expected)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl ByteChecker {
    pub fn new(expected: BlobDigest) -> Self {
        let hasher = match expected {
            BlobDigest::Sha256(_) => Hasher::Sha256(Sha256::new()),
            BlobDigest::Sha512(_) => Hasher::Sha512(Sha512::new()),
        };
        Self {
            expected,
            hasher,
            expectation: None,
            len: 0,
            first_difference: None,
        }
    }

    /// With the right bytes at hand, an error says where.
    pub fn expecting(mut self, bytes: Bytes) -> Self {
        self.expectation = Some(bytes);
        self
    }

    pub fn update(&mut self, piece: &[u8]) {
        match &mut self.hasher {
            Hasher::Sha256(h) => h.update(piece),
            Hasher::Sha512(h) => h.update(piece),
        }
        if let (Some(right), None) = (&self.expectation, self.first_difference) {
            let rest = right.get(self.len as usize..).unwrap_or_default();
            let same = rest.iter().zip(piece).take_while(|(a, b)| a == b).count();
            if same < piece.len() {
                self.first_difference = Some(self.len + same as u64);
            }
        }
        self.len += piece.len() as u64;
    }

    /// The length, if the digest is right.
    pub fn finish(self) -> Result<u64, CheckError> {
        let found = match self.hasher {
            Hasher::Sha256(h) => BlobDigest::Sha256(h.finalize().into()),
            Hasher::Sha512(h) => BlobDigest::Sha512(h.finalize().into()),
        };
        if found == self.expected {
            return Ok(self.len);
        }
        let is_short = self.expectation.is_some_and(|right| self.len < right.len() as u64);
        Err(CheckError::Digest(Box::new(WrongDigest {
            expected: self.expected,
            found,
            len: self.len,
            first_difference: self.first_difference.or(is_short.then_some(self.len)),
        })))
    }
}

/// Reads to the end and checks.
pub fn check_reader(mut reader: impl Read, mut checker: ByteChecker) -> Result<u64, CheckError> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return checker.finish(),
            Ok(n) => checker.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(source) => {
                return Err(CheckError::Read {
                    len: checker.len,
                    source,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_bytes_differ() {
        let right = Bytes::from_static(b"0123456789");
        let digest = BlobDigest::of(&right);
        let offset = |bytes: &[u8]| match check_reader(bytes, ByteChecker::new(digest).expecting(right.clone())) {
            Ok(len) => Ok(len),
            Err(CheckError::Digest(wrong)) => Err(wrong.first_difference),
            Err(other) => panic!("{other}"),
        };
        assert_eq!(offset(b"0123456789"), Ok(10));
        assert_eq!(offset(b"01234x6789"), Err(Some(5)));
        assert_eq!(offset(b"0123"), Err(Some(4)));
        assert_eq!(offset(b"01234567890"), Err(Some(10)));
        assert!(check_reader(&b"0"[..], ByteChecker::new(digest)).is_err());
    }
}
