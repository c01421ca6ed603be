//! What is kept, as bytes: small objects, each named by its digest and never changed.
//!
//! In: [`Learned`] or [`Pins`]. Out: compressed JSON, and back. Invariant: what decodes fits together, whatever the bytes
//! are; an object's name is the SHA-256 of its bytes, so what has the name is what was written.
//! Not here: files ([`super::shelf`]).

use std::io::Read as _;

use headstart_layer_format::BlobDigest;
use serde::{Deserialize, Serialize};

use super::{learned::Learned, pins::Pins};
use crate::store::facts::Source;

/// Bytes of an object, compressed.
pub const OBJECT_SIZE_MAX: u64 = 8 << 20;
/// And as JSON: starts, chunks and paths at their bounds.
const RAW_SIZE_MAX: u64 = 32 << 20;
/// Digits repeat: more effort gains little.
const ZSTD_LEVEL: i32 = 3;

/// What an object is about; there is one at a time for each.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    Profile {
        config: BlobDigest,
        class: headstart_layer_format::profile::Class,
    },
    Pins {
        source: Source,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Object {
    Profile(Learned),
    Pins(Pins),
}

impl Object {
    pub fn key(&self) -> Key {
        match self {
            Self::Profile(learned) => Key::Profile {
                config: learned.config,
                class: learned.class.clone(),
            },
            Self::Pins(pins) => Key::Pins {
                source: pins.source.clone(),
            },
        }
    }

    /// Of two for one key the later counts.
    pub fn generation(&self) -> u64 {
        match self {
            Self::Profile(learned) => learned.generation,
            Self::Pins(pins) => pins.generation,
        }
    }

    /// Memory, about.
    pub fn weight(&self) -> u32 {
        let path = |path: &String| path.len() + 40;
        let weight = match self {
            Self::Profile(learned) => {
                let chunks = learned
                    .chunks
                    .iter()
                    .map(|c| 72 + c.spans.iter().map(|s| path(&s.0)).sum::<usize>());
                chunks.sum::<usize>()
                    + learned
                        .starts
                        .iter()
                        .map(|start| 100 + 8 * start.reads.len())
                        .sum::<usize>()
            }
            Self::Pins(pins) => pins.paths.iter().map(path).sum(),
        };
        u32::try_from(512 + weight).unwrap_or(u32::MAX)
    }

    /// `None` only for what is over its bound.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let json = serde_json::to_vec(self).ok()?;
        let bytes = zstd::bulk::compress(&json, ZSTD_LEVEL).ok()?;
        (json.len() as u64 <= RAW_SIZE_MAX && bytes.len() as u64 <= OBJECT_SIZE_MAX).then_some(bytes)
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut json = Vec::new();
        let frame = zstd::stream::read::Decoder::new(bytes).ok()?;
        frame.take(RAW_SIZE_MAX + 1).read_to_end(&mut json).ok()?;
        if json.len() as u64 > RAW_SIZE_MAX {
            return None;
        }
        let object: Self = serde_json::from_slice(&json).ok()?;
        match &object {
            Self::Profile(learned) if !learned.is_sound() => None,
            _ => Some(object),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::learned::tests::{learned, trace};
    use super::*;

    #[test]
    fn objects_round_trip_and_rubbish_is_none() {
        let object = Object::Profile(learned([trace(1, "a", &[1, 2, 3])]));
        let bytes = object.encode().unwrap();
        assert_eq!(Object::decode(&bytes), Some(object.clone()));
        for len in 0..bytes.len() {
            assert_eq!(Object::decode(&bytes[..len]), None, "cut at {len}");
        }
        let Object::Profile(mut unsound) = object else {
            unreachable!()
        };
        unsound.starts[0].reads[0].0 = 3;
        let bytes = Object::Profile(unsound).encode().unwrap();
        assert_eq!(Object::decode(&bytes), None);
        let bomb = zstd::bulk::compress(&vec![b' '; RAW_SIZE_MAX as usize + 1], 3).unwrap();
        assert_eq!(Object::decode(&bomb), None);
    }
}
