//! Where the chunks of a profile are in an image: the image it was learnt from, or another build.
//!
//! In: chunks in order, as they were learnt. Out: places in an image, in that order, each once.
//! Invariant: everything that comes out is in the image's tables. A chunk that is there by its digest is itself; else the
//! pieces of files that it held are looked up by path, through layers, whiteouts and links.
//! Not here: which profile is tried ([`super::answer`]).

use std::collections::{HashMap, HashSet};

use headstart_layer_format::{ChunkDigest, toc::Content};

use super::{
    image::{Image, Place, ranges},
    learned::Known,
};

/// Files that are looked up for one profile: each costs a walk through the layers.
const FILES_MAX: usize = 32_768;
/// Chunks of one file that are taken for one piece of it.
pub const FILE_CHUNKS_MAX: usize = 64;

/// Places, and how many of the chunks led to any.
#[derive(Debug, Default)]
pub struct Placed {
    pub places: Vec<Place>,
    pub found: usize,
}

/// The chunks of a piece of a file.
pub fn pieces<'i>(
    image: &'i Image<'_>,
    (layer, content): (u32, &'i Content),
    offset: u64,
    len: u64,
) -> impl Iterator<Item = Place> + 'i {
    let ranges = ranges(content, offset, len);
    ranges
        .flat_map(move |range| image.covering(layer, range))
        .take(FILE_CHUNKS_MAX)
}

/// Of the places that have a chunk's bytes the one that was read: in its layer, and of a file that it is known for.
fn best(image: &Image<'_>, known: &Known, places: &[Place]) -> Option<Place> {
    let own = || places.iter().filter(|place| place.layer == known.layer);
    let is_known_for = |place: &&Place| known.spans.iter().any(|(path, ..)| image.holds(**place, path));
    let read = match own().count() {
        0 | 1 => None,
        _ => own().find(is_known_for),
    };
    read.or_else(|| own().next()).or(places.first()).copied()
}

/// `by_path`: chunks that the image does not have are looked up by what they held.
pub fn place(image: &Image<'_>, chunks: &[&Known], by_path: bool) -> Placed {
    let wanted: HashSet<ChunkDigest> = chunks.iter().map(|known| known.digest).collect();
    let mut by_digest: HashMap<ChunkDigest, Vec<Place>> = HashMap::new();
    for layer in 0..image.layer_count() as u32 {
        for (digest, places) in image.places_in(layer, &wanted) {
            by_digest.entry(digest).or_default().extend(places);
        }
    }
    let mut placed = Placed::default();
    let mut taken: HashSet<ChunkDigest> = HashSet::new();
    let mut take = |place: Place| {
        // The same bytes at another place are the same chunk to whoever fetches it.
        if image.chunk(place).is_some_and(|chunk| taken.insert(chunk.digest)) {
            placed.places.push(place);
        }
    };
    // Files that were looked up.
    let mut files: HashMap<&str, Option<(u32, &Content)>> = HashMap::new();
    for known in chunks {
        match by_digest.get(&known.digest) {
            Some(places) => {
                if let Some(place) = best(image, known, places) {
                    take(place);
                }
                placed.found += 1;
            }
            None if by_path => {
                let mut any = false;
                for (path, offset, len) in &known.spans {
                    if files.len() >= FILES_MAX && !files.contains_key(path.as_str()) {
                        break;
                    }
                    let file = *files.entry(path).or_insert_with(|| image.find(path));
                    for place in file.into_iter().flat_map(|file| pieces(image, file, *offset, *len)) {
                        any = true;
                        take(place);
                    }
                }
                placed.found += usize::from(any);
            }
            None => {}
        }
    }
    placed
}
