//! Digests, one type for each thing that is digested.
//!
//! In: text (`sha256:<hex>`) or raw bytes. Out: [`BlobDigest`], [`DiffId`], [`ChainId`], [`ChunkDigest`], [`TocDigest`].
//! Invariant: a value is well formed (registered algorithm, right length, lowercase hex), so it is safe as a path
//! component. The types do not convert into each other: a layer's digest (compressed) and its DiffID (uncompressed)
//! are different facts even when both are SHA-256.
//! Not here: hashing of streams (the server's and the shim's I/O paths do that with `sha2`).
//!
//! Grammar: OCI image-spec, descriptor.md, "Digests".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Why a text is not a digest. The text itself is not repeated: it is the caller's and may be long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("a digest has the form algorithm:hex")]
    NoSeparator,
    #[error("unsupported digest algorithm (sha256 and sha512 are known)")]
    UnknownAlgorithm,
    #[error("the hex part of a {0} digest must have exactly {1} lowercase hex digits")]
    BadHex(&'static str, usize),
}

/// Lowercase hex of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = Vec::with_capacity(bytes.len() * 2);
    for b in bytes {
        out.extend_from_slice(&[DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
    }
    String::from_utf8(out).expect("hex digits are ASCII")
}

/// Strict inverse of [`hex`]: exactly `2 * N` lowercase digits.
fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// Digest of a blob or manifest *as the registry holds it* (compressed): the key of the `/v2/` API.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BlobDigest {
    Sha256([u8; 32]),
    Sha512([u8; 64]),
}

impl BlobDigest {
    /// SHA-256 digest of bytes held in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(bytes).into())
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The raw digest, 32 or 64 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(b) => b,
            Self::Sha512(b) => b,
        }
    }

    /// The hex part alone; safe as a file name.
    pub fn hex(&self) -> String {
        hex(self.as_bytes())
    }
}

impl fmt::Display for BlobDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.algorithm())?;
        f.write_str(":")?;
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for BlobDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for BlobDigest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::NoSeparator)?;
        match algorithm {
            "sha256" => unhex(hex).map(Self::Sha256).ok_or(DigestError::BadHex("sha256", 64)),
            "sha512" => unhex(hex).map(Self::Sha512).ok_or(DigestError::BadHex("sha512", 128)),
            _ => Err(DigestError::UnknownAlgorithm),
        }
    }
}

impl Serialize for BlobDigest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for BlobDigest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<str>::deserialize(d)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// A digest that is always SHA-256: written `sha256:<hex>` in text, 32 bytes on disk and wire.
macro_rules! sha256_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps a digest computed elsewhere.
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// SHA-256 of bytes held in memory.
            pub fn of(bytes: &[u8]) -> Self {
                Self(Sha256::digest(bytes).into())
            }

            /// The raw 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The hex part alone; safe as a file name.
            pub fn hex(&self) -> String {
                hex(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "sha256:{}", self.hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = DigestError;

            fn from_str(text: &str) -> Result<Self, DigestError> {
                let (algorithm, hex) = text.split_once(':').ok_or(DigestError::NoSeparator)?;
                if algorithm != "sha256" {
                    return Err(DigestError::UnknownAlgorithm);
                }
                unhex(hex).map(Self).ok_or(DigestError::BadHex("sha256", 64))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                std::borrow::Cow::<str>::deserialize(d)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

sha256_newtype! {
    /// Digest of a layer's *uncompressed* tar, as the image config's `rootfs.diff_ids` lists it.
    DiffId
}
sha256_newtype! {
    /// Digest of a stack of layers (OCI image-spec, config.md, "Layer ChainID"): what containerd calls a snapshot.
    ChainId
}
sha256_newtype! {
    /// Digest of one chunk's *uncompressed* bytes: the key of the chunk store.
    ChunkDigest
}
sha256_newtype! {
    /// Digest of an encoded TOC, exactly as served.
    TocDigest
}
sha256_newtype! {
    /// Names a profile: which chunks, in which order, over which TOCs.
    ProfileDigest
}

impl ChainId {
    /// The chain ID of a bottom layer is its DiffID.
    pub fn bottom(diff_id: DiffId) -> Self {
        Self(diff_id.0)
    }

    /// The chain ID of `diff_id` on top of `self`: SHA-256 of `"<chain> <diff>"`.
    pub fn push(&self, diff_id: DiffId) -> Self {
        Self::of(format!("{self} {diff_id}").as_bytes())
    }

    /// Chain IDs of every layer of an image, bottom first.
    pub fn chain(diff_ids: &[DiffId]) -> Vec<Self> {
        let mut out: Vec<Self> = Vec::with_capacity(diff_ids.len());
        for &diff_id in diff_ids {
            let next = match out.last() {
                None => Self::bottom(diff_id),
                Some(below) => below.push(diff_id),
            };
            out.push(next);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_rejects_what_could_be_a_path() {
        let d = BlobDigest::of(b"x");
        assert_eq!(d.to_string().parse::<BlobDigest>(), Ok(d));
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:../../etc/passwd",
            "md5:00",
            "SHA256:00",
        ] {
            assert!(bad.parse::<BlobDigest>().is_err(), "{bad:?}");
        }
        let upper = d.to_string().to_uppercase().replace("SHA256", "sha256");
        assert!(upper.parse::<BlobDigest>().is_err());
    }

    #[test]
    fn chain_id_follows_the_image_spec() {
        let a = DiffId::of(b"a");
        let b = DiffId::of(b"b");
        let chain = ChainId::chain(&[a, b]);
        assert_eq!(chain[0].as_bytes(), a.as_bytes());
        assert_eq!(chain[1], ChainId::of(format!("{a} {b}").as_bytes()));
    }
}
