//! Hashing of a blob as it passes by.
//!
//! In: bytes in order. Out: whether they are what a [`BlobDigest`] names.
//! Invariant: the algorithm is the digest's own.
//! Not here: I/O.

use std::fmt;

use headstart_layer_format::BlobDigest;
use sha2::{Digest as _, Sha256, Sha512};

/// Running hash of the algorithm that a digest needs.
#[derive(Clone)]
pub enum BlobHasher {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
}

impl fmt::Debug for BlobHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlobHasher")
    }
}

impl BlobHasher {
    /// For verifying `digest`.
    pub fn of(digest: &BlobDigest) -> Self {
        match digest {
            BlobDigest::Sha256(_) => Self::Sha256(Sha256::new()),
            BlobDigest::Sha512(_) => Self::Sha512(Box::default()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(h) => h.update(bytes),
            Self::Sha512(h) => h.update(bytes),
        }
    }

    pub fn finish(self) -> BlobDigest {
        match self {
            Self::Sha256(h) => BlobDigest::Sha256(h.finalize().into()),
            Self::Sha512(h) => BlobDigest::Sha512(h.finalize().into()),
        }
    }

    /// Whether `bytes` are what `digest` names.
    pub fn matches(digest: &BlobDigest, bytes: &[u8]) -> bool {
        let mut hasher = Self::of(digest);
        hasher.update(bytes);
        hasher.finish() == *digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_algorithms_verify_and_reject() {
        let sha512: BlobDigest = format!("sha512:{}", headstart_layer_format::digest::hex(&Sha512::digest(b"x")))
            .parse()
            .unwrap();
        for digest in [BlobDigest::of(b"x"), sha512] {
            assert!(BlobHasher::matches(&digest, b"x"));
            assert!(!BlobHasher::matches(&digest, b"y"));
        }
    }
}
