//! A profile as a file that can be taken elsewhere: to another server, or beside an image's sources.
//!
//! In: an answer, or a file. Out: the file, or what it says as a trace of the image it is imported for.
//! Invariant: an import is one start, told by nobody's node: it has one vote. What it names is mapped like another build's
//! profile, so what is not in the image is left out.
//! Not here: who may do that ([`crate::admin`]).

use headstart_layer_format::{
    ChunkDigest,
    limits::{PATH_LEN_MAX, PROFILE_CHUNKS_MAX, TRACE_READS_MAX},
    profile::{Class, StartId},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{HashMap, HashSet};

use super::{
    answer::Answer,
    image::{Image, Place},
    learned::{Checked, Known, SPANS_A_CHUNK, Span},
    place::place,
};

const VERSION: u32 = 1;
/// The node of imports.
const NODE: &str = "import";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Export {
    pub version: u32,
    #[serde(default)]
    pub class: Class,
    /// In the order of first need.
    pub chunks: Vec<Exported>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    pub chunk: ChunkDigest,
    pub layer: u32,
    /// Of its frame.
    pub bytes: u32,
    /// Path, offset and length of what it holds; some, if they are many.
    #[serde(default)]
    pub files: Vec<Span>,
}

/// `told`: what is known better than the trees say.
pub fn export(image: &Image<'_>, answer: &Answer, told: &HashMap<ChunkDigest, Vec<Span>>) -> Export {
    let places: Vec<Place> = answer
        .profile
        .positions()
        .map(|(layer, index)| Place { layer, index })
        .collect();
    let mut by_layer: HashMap<u32, HashSet<u32>> = HashMap::new();
    for place in &places {
        by_layer.entry(place.layer).or_default().insert(place.index);
    }
    let spans: HashMap<u32, HashMap<u32, Vec<Span>>> = by_layer
        .into_iter()
        .map(|(layer, indices)| (layer, image.spans(layer, &indices)))
        .collect();
    let chunks = places.iter().filter_map(|place| {
        let chunk = image.chunk(*place)?;
        let guessed = || spans.get(&place.layer)?.get(&place.index).cloned();
        Some(Exported {
            chunk: chunk.digest,
            layer: place.layer,
            bytes: u32::try_from(chunk.frame.len).ok()?,
            files: told.get(&chunk.digest).cloned().or_else(guessed).unwrap_or_default(),
        })
    });
    Export {
        version: VERSION,
        class: answer.profile.class.clone(),
        chunks: chunks.collect(),
    }
}

/// `Err`: why it says nothing of this image.
pub fn import(image: &Image<'_>, export: &Export, unix_ms: u64) -> Result<Checked, &'static str> {
    if export.version != VERSION {
        return Err("it has another version");
    }
    if export.chunks.len() > PROFILE_CHUNKS_MAX {
        return Err("it has too many chunks");
    }
    let known: Vec<Known> = export.chunks.iter().map(Known::from).collect();
    let known: Vec<&Known> = known.iter().collect();
    let placed = place(image, &known, true);
    let told: HashMap<ChunkDigest, &Vec<Span>> = export.chunks.iter().map(|c| (c.chunk, &c.files)).collect();
    let reads = placed.places.iter().filter_map(|place| {
        let chunk = image.chunk(*place)?;
        let known = Known {
            digest: chunk.digest,
            layer: place.layer,
            frame: u32::try_from(chunk.frame.len).ok()?,
            told: false,
            spans: told.get(&chunk.digest).map_or_else(Vec::new, |spans| bounded(spans)),
        };
        Some((known, 0))
    });
    let reads: Vec<_> = reads.take(TRACE_READS_MAX).collect();
    if reads.is_empty() {
        return Err("nothing of it is in the image");
    }
    // The same file twice is one start.
    let text = serde_json::to_vec(export).map_err(|_| "it cannot be written")?;
    let mut id = [0; 16];
    id.copy_from_slice(&Sha256::digest(text)[..16]);
    Ok(Checked {
        id: StartId(id),
        node: NODE.into(),
        unix_ms,
        reads,
    })
}

fn bounded(spans: &[Span]) -> Vec<Span> {
    let some = spans.iter().filter(|(path, ..)| path.len() <= PATH_LEN_MAX);
    some.take(SPANS_A_CHUNK).cloned().collect()
}

impl From<&Exported> for Known {
    fn from(chunk: &Exported) -> Self {
        Self {
            digest: chunk.chunk,
            layer: chunk.layer,
            frame: chunk.bytes,
            told: false,
            spans: bounded(&chunk.files),
        }
    }
}
