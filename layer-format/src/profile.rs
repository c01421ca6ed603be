//! What starts of an image read first: traces, which nodes post, and profiles, which servers make of them.
//!
//! In/out: serde values. Invariant: a value that exists is within the limits of its shape: a start's name is 16 bytes, a
//! class is short hex, a have-set has no more bits than a profile has chunks.
//! Not here: whether the chunks of a trace are the image's (the server's question), and how traces become a profile.

use std::fmt;

use serde::{Deserialize, Serialize, de, ser};

use crate::digest::{BlobDigest, ChunkDigest, ProfileDigest, TocDigest, hex};
use crate::limits::{CLASS_LEN_MAX, PROFILE_CHUNKS_MAX};

/// Why a text is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    #[error("a start is named by 32 lowercase hex digits")]
    BadStart,
    #[error("a class is at most {CLASS_LEN_MAX} lowercase hex digits")]
    BadClass,
    #[error("a have-set is at most {} pairs of lowercase hex digits", PROFILE_CHUNKS_MAX / 8)]
    BadHave,
}

/// Names one start of one container; random, so that a trace that is posted twice counts once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StartId(pub [u8; 16]);

/// What kind of start of an image: the same program with the same arguments. Empty: not told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Class(String);

/// Which chunks of a profile a node has: bit `i % 8` (the least is 0) of byte `i / 8` for the chunk at position `i`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Have(Vec<u8>);

impl Class {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Have {
    /// Of positions, in any order; those beyond [`PROFILE_CHUNKS_MAX`] are left out.
    pub fn of(positions: impl IntoIterator<Item = usize>) -> Self {
        let mut bytes = Vec::new();
        for at in positions.into_iter().filter(|at| *at < PROFILE_CHUNKS_MAX) {
            if bytes.len() <= at / 8 {
                bytes.resize(at / 8 + 1, 0);
            }
            bytes[at / 8] |= 1 << (at % 8);
        }
        Self(bytes)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the chunk at this position is had.
    pub fn has(&self, position: usize) -> bool {
        self.0
            .get(position / 8)
            .is_some_and(|byte| byte >> (position % 8) & 1 == 1)
    }
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[a, b]| Some(nibble(*a)? << 4 | nibble(*b)?))
        .collect()
}

impl std::str::FromStr for StartId {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let bytes = (text.len() == 32).then(|| unhex(text)).flatten();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(ProfileError::BadStart)
    }
}

impl std::str::FromStr for Class {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let right = text.len() <= CLASS_LEN_MAX && text.bytes().all(|digit| nibble(digit).is_some());
        right.then(|| Self(text.to_owned())).ok_or(ProfileError::BadClass)
    }
}

impl std::str::FromStr for Have {
    type Err = ProfileError;

    fn from_str(text: &str) -> Result<Self, ProfileError> {
        let bytes = (text.len() <= PROFILE_CHUNKS_MAX / 4).then(|| unhex(text)).flatten();
        bytes.map(Self).ok_or(ProfileError::BadHave)
    }
}

impl fmt::Display for StartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Have {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// As text, both ways.
macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: ser::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: de::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                std::borrow::Cow::<str>::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }
    )*};
}

as_text!(StartId, Class, Have);

/// Body of `POST images/{manifest-digest}/trace`: what one start needed, in the order of first need; at most
/// [`crate::limits::TRACE_READS_MAX`] reads in [`crate::limits::TRACE_SIZE_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    pub start: StartId,
    #[serde(default, skip_serializing_if = "Class::is_empty")]
    pub class: Class,
    pub reads: Vec<TraceRead>,
}

/// The first need of something: of a chunk, of a file, or of a chunk for a file's sake. One of the two is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRead {
    /// Position of the layer in the manifest; 0 is the bottom.
    pub layer: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk: Option<ChunkDigest>,
    /// Path in the layer, relative to the root, without a leading slash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Milliseconds since the start; never less than the read before.
    pub ms: u32,
}

/// Where a profile comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Traces of this image.
    Learned,
    /// Traces of another image of the repository, mapped.
    Derived,
    /// Nothing but files that the operator named.
    Pinned,
}

impl Origin {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Learned => "learned",
            Self::Derived => "derived",
            Self::Pinned => "pinned",
        }
    }
}

/// `profile` of an image status: chunks that starts of the image need, in the order of first need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    pub digest: ProfileDigest,
    pub origin: Origin,
    /// Of the traces that it is made of.
    #[serde(default, skip_serializing_if = "Class::is_empty")]
    pub class: Class,
    /// How many traces those are.
    #[serde(default)]
    pub starts: u32,
    /// At most [`PROFILE_CHUNKS_MAX`].
    pub chunk_count: u32,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Empty when the request named this digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runs: Vec<Run>,
}

/// Neighbours in a layer's chunk table, in that order: an array of four numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u32, u32, u32, u64)", into = "(u32, u32, u32, u64)")]
pub struct Run {
    /// Position of the layer; 0 is the bottom.
    pub layer: u32,
    /// Index of the first chunk in the table of the layer's TOC.
    pub first: u32,
    pub count: u32,
    /// Bytes of their frames.
    pub bytes: u64,
}

impl From<(u32, u32, u32, u64)> for Run {
    fn from((layer, first, count, bytes): (u32, u32, u32, u64)) -> Self {
        Self {
            layer,
            first,
            count,
            bytes,
        }
    }
}

impl From<Run> for (u32, u32, u32, u64) {
    fn from(run: Run) -> Self {
        (run.layer, run.first, run.count, run.bytes)
    }
}

impl Profile {
    /// Layer and index of each chunk, in order: what a [`Have`]'s bits are about. Bounded, whatever the runs say.
    pub fn positions(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let each = |run: &Run| {
            let layer = run.layer;
            (run.first..run.first.saturating_add(run.count)).map(move |index| (layer, index))
        };
        self.runs.iter().flat_map(each).take(PROFILE_CHUNKS_MAX)
    }

    /// The name of these runs over these TOCs (the image's, bottom first).
    pub fn digest_of(tocs: &[TocDigest], runs: &[Run]) -> ProfileDigest {
        let mut text = b"headstart profile 1\n".to_vec();
        for toc in tocs {
            text.extend_from_slice(toc.as_bytes());
        }
        for run in runs {
            for number in [run.layer, run.first, run.count] {
                text.extend_from_slice(&number.to_le_bytes());
            }
            text.extend_from_slice(&run.bytes.to_le_bytes());
        }
        ProfileDigest::of(&text)
    }
}

/// The other body of `POST chunks`: what a node lacks of a profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProfileRequest {
    /// The image's manifest.
    pub image: BlobDigest,
    /// As the image status said it.
    pub profile: ProfileDigest,
    /// What is not to be sent.
    #[serde(default, skip_serializing_if = "Have::is_empty")]
    pub have: Have,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_round_trip_and_strange_ones_are_refused() {
        let start: StartId = "000102030405060708090a0b0c0d0eff".parse().unwrap();
        assert_eq!(start.to_string(), "000102030405060708090a0b0c0d0eff");
        for bad in [
            "",
            "00",
            "000102030405060708090A0B0C0D0EFF",
            "000102030405060708090a0b0c0d0ef\u{e9}",
        ] {
            assert_eq!(bad.parse::<StartId>(), Err(ProfileError::BadStart), "{bad}");
        }
        assert!("".parse::<Class>().unwrap().is_empty());
        assert_eq!("0af".parse::<Class>().unwrap().as_str(), "0af");
        for bad in ["../x", "AB", &"a".repeat(CLASS_LEN_MAX + 1)] {
            assert_eq!(bad.parse::<Class>(), Err(ProfileError::BadClass), "{bad}");
        }
        assert!("abc".parse::<Have>().is_err());
        assert!("00".repeat(PROFILE_CHUNKS_MAX / 8).parse::<Have>().is_ok());
        assert!("00".repeat(PROFILE_CHUNKS_MAX / 8 + 1).parse::<Have>().is_err());
    }

    #[test]
    fn a_have_set_says_what_it_was_told() {
        let have = Have::of([9, 0, 17, PROFILE_CHUNKS_MAX]);
        assert_eq!(have.to_string(), "010202");
        let again: Have = have.to_string().parse().unwrap();
        let positions: Vec<usize> = (0..100).filter(|at| again.has(*at)).collect();
        assert_eq!(positions, [0, 9, 17]);
        assert!(!again.has(usize::MAX));
    }

    #[test]
    fn runs_are_arrays_and_do_not_run_away() {
        let run = Run {
            layer: 1,
            first: 7,
            count: 2,
            bytes: 300,
        };
        assert_eq!(serde_json::to_string(&run).unwrap(), "[1,7,2,300]");
        let mut profile = Profile {
            digest: Profile::digest_of(&[], &[run]),
            origin: Origin::Learned,
            class: Class::default(),
            starts: 1,
            chunk_count: 2,
            bytes: 300,
            runs: vec![run],
        };
        assert_eq!(profile.positions().collect::<Vec<_>>(), [(1, 7), (1, 8)]);
        profile.runs[0].count = u32::MAX;
        profile.runs.push(run);
        assert_eq!(profile.positions().count(), PROFILE_CHUNKS_MAX);
        assert_ne!(profile.digest, Profile::digest_of(&[TocDigest::of(b"t")], &[run]));
    }
}
