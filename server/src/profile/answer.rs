//! The profile of an image, as it is given out.
//!
//! In: what was learnt, mapped into the image; what is pinned. Out: [`Answer`].
//! Invariant: never more than the bounds allow, in bytes and in chunks, whatever was learnt: files that are pinned first,
//! within the absolute bound; then what starts need, within the share of the image.
//! Not here: which profile is taken ([`super`]).

use std::collections::HashSet;

use headstart_layer_format::{
    BlobDigest, ChunkDigest, TocDigest,
    limits::PROFILE_CHUNKS_MAX,
    profile::{Class, Origin, Profile},
};

use super::{
    image::{Image, Place, runs},
    shelf::Name,
};
use crate::config::ProfileConfig;

/// What an answer was made of; another choice, another answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub tocs: Vec<TocDigest>,
    pub objects: Vec<Name>,
    pub pins: Vec<Name>,
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub profile: Profile,
    /// The image's layers, bottom first.
    pub layers: Vec<BlobDigest>,
    /// In the profile's order, each with the position of its layer.
    pub chunks: Vec<(u32, ChunkDigest)>,
    pub choice: Choice,
}

/// Where the chunks come from, for [`Answer::new`].
#[derive(Debug)]
pub struct Parts {
    pub origin: Origin,
    pub class: Class,
    pub starts: u32,
    pub pinned: Vec<Place>,
    pub needed: Vec<Place>,
}

impl Answer {
    /// `None`: nothing is known.
    pub fn new(image: &Image<'_>, parts: Parts, choice: Choice, config: &ProfileConfig) -> Option<Self> {
        let share = image.bytes() / 100 * u64::from(config.image_percent_max);
        let share = share.max(config.bytes_floor).min(config.bytes_max);
        let mut taken = HashSet::new();
        let mut chosen: Vec<(Place, u64)> = Vec::new();
        let mut bytes = 0u64;
        let lists = [(parts.pinned, config.bytes_max), (parts.needed, share)];
        for (places, bytes_max) in lists {
            for place in places {
                let Some(chunk) = image.chunk(place) else { continue };
                if taken.contains(&chunk.digest) {
                    continue;
                }
                if bytes + chunk.frame.len > bytes_max || chosen.len() >= PROFILE_CHUNKS_MAX {
                    break;
                }
                taken.insert(chunk.digest);
                bytes += chunk.frame.len;
                chosen.push((place, chunk.frame.len));
            }
        }
        if chosen.is_empty() {
            return None;
        }
        let chunks = chosen
            .iter()
            .filter_map(|(place, _)| Some((place.layer, image.chunk(*place)?.digest)))
            .collect();
        let chunk_count = u32::try_from(chosen.len()).unwrap_or(u32::MAX);
        let runs = runs(chosen);
        Some(Self {
            profile: Profile {
                digest: Profile::digest_of(&choice.tocs, &runs),
                origin: parts.origin,
                class: parts.class,
                starts: parts.starts,
                chunk_count,
                bytes,
                runs,
            },
            layers: image.digests(),
            chunks,
            choice,
        })
    }

    /// Memory, about.
    pub fn weight(&self) -> u32 {
        let weight = 512 + self.chunks.len() * 40 + self.profile.runs.len() * 24 + self.layers.len() * 128;
        u32::try_from(weight).unwrap_or(u32::MAX)
    }
}
