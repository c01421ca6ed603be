//! A trace, compared with the image that it is said to be of.
//!
//! In: a [`Trace`] from a node. Out: [`Checked`], with what the chunks hold of files.
//! Invariant: every chunk is in the table of the layer that the trace names, every file is in that layer: a trace that
//! says anything else is refused whole, so a node can teach nothing but an order of the image's own chunks. Memory and time
//! are those of the trace and of the image's trees, however often the one names the same of the other.
//! Not here: what is done with it ([`super::learned`]).

use std::collections::{HashMap, HashSet};

use headstart_layer_format::{
    ChunkDigest,
    limits::TRACE_READS_MAX,
    profile::{Trace, TraceRead},
    toc::{Content, InodeId, Kind},
};

use super::{
    image::{Image, Place, SAME_MAX, within},
    learned::{Checked, Known, Learned, SPANS_A_CHUNK, Span},
    place::FILE_CHUNKS_MAX,
};

/// Why a trace teaches nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    #[error("take a trace: {0}")]
    Malformed(&'static str),
    #[error("take a trace: {0} reads are over the limit of {TRACE_READS_MAX}")]
    TooMany(usize),
    #[error("take a trace: read {0} names nothing of the image")]
    Strange(usize),
}

/// What the shape alone says.
pub fn check_shape(trace: &Trace) -> Result<(), TraceError> {
    if trace.reads.len() > TRACE_READS_MAX {
        return Err(TraceError::TooMany(trace.reads.len()));
    }
    if trace.reads.is_empty() {
        return Err(TraceError::Malformed("it has no reads"));
    }
    if trace
        .reads
        .iter()
        .any(|read| read.chunk.is_none() && read.file.is_none())
    {
        return Err(TraceError::Malformed("a read has neither chunk nor file"));
    }
    if !trace.reads.is_sorted_by_key(|read| read.ms) {
        return Err(TraceError::Malformed("its reads are not in the order of their time"));
    }
    Ok(())
}

/// `known`: what needs no second look at the trees.
pub fn check(
    trace: &Trace,
    image: &Image<'_>,
    known: Option<&Learned>,
    node: String,
    unix_ms: u64,
) -> Result<Checked, TraceError> {
    check_shape(trace)?;
    let places = places(trace, image);
    let mut needed = Needed::default();
    let mut whole: HashSet<(u32, InodeId)> = HashSet::new();
    for (number, read) in trace.reads.iter().enumerate() {
        let strange = TraceError::Strange(number);
        let chunk = match read.chunk {
            Some(digest) => Some(places.get(&(read.layer, digest)).ok_or(TraceError::Strange(number))?),
            None => None,
        };
        match (chunk, file(read, image).ok_or(strange)?) {
            (Some(places), None) => {
                if let Some(place) = places.first() {
                    needed.add(image, *place, None, read.ms);
                }
            }
            (Some(places), Some(file)) => {
                // The same bytes may be at several places of a layer, and one of them is the file's.
                let is_own = |place: &&Place| spans(image, **place, &file).next().is_some();
                match (places.iter().find(is_own), places.first()) {
                    (Some(own), _) => needed.add(image, *own, Some(&file), read.ms),
                    // It may be one that is not told apart any more.
                    (None, Some(first)) if places.len() >= SAME_MAX => needed.add(image, *first, None, read.ms),
                    _ => return Err(TraceError::Strange(number)),
                }
            }
            (None, Some(file)) => {
                // Any further time, under any name, it is no first need.
                if !whole.insert((read.layer, file.inode)) {
                    continue;
                }
                let ranges = file.content.extents().iter().map(|extent| extent.range);
                let mut last = None;
                let covering = ranges
                    .flat_map(|range| image.covering(read.layer, range))
                    .filter(|place| last.replace(*place) != Some(*place));
                for place in covering.take(FILE_CHUNKS_MAX) {
                    needed.add(image, place, Some(&file), read.ms);
                }
            }
            // Refused by its shape.
            (None, None) => return Err(TraceError::Strange(number)),
        }
    }
    Ok(Checked {
        id: trace.start,
        node,
        unix_ms,
        reads: needed.described(image, known),
    })
}

/// A regular file that a read names.
struct Named<'i> {
    path: &'i str,
    inode: InodeId,
    content: &'i Content,
}

/// Where the chunks are that the trace names.
fn places(trace: &Trace, image: &Image<'_>) -> HashMap<(u32, ChunkDigest), Vec<Place>> {
    let mut wanted: HashMap<u32, HashSet<ChunkDigest>> = HashMap::new();
    for read in &trace.reads {
        if let Some(digest) = read.chunk {
            wanted.entry(read.layer).or_default().insert(digest);
        }
    }
    let mut found = HashMap::new();
    for (layer, digests) in wanted {
        let places = image.places_in(layer, &digests);
        found.extend(places.into_iter().map(|(digest, places)| ((layer, digest), places)));
    }
    found
}

/// The file that a read names, if it names one; `None` when there is no such file.
#[expect(clippy::option_option, reason = "named or not, there or not")]
fn file<'i>(read: &'i TraceRead, image: &'i Image<'_>) -> Option<Option<Named<'i>>> {
    let Some(path) = &read.file else { return Some(None) };
    let tree = image.tree(read.layer)?;
    let entry = tree.entry(tree.find(path.as_bytes())?)?;
    match &tree.inode(entry.inode)?.kind {
        Kind::Regular(content) => Some(Some(Named {
            path,
            inode: entry.inode,
            content,
        })),
        _ => None,
    }
}

/// What a chunk has of a file: offset and length of each piece.
fn spans(image: &Image<'_>, place: Place, file: &Named<'_>) -> impl Iterator<Item = (u64, u64)> {
    let range = image.chunk(place).map(|chunk| chunk.range);
    // Pieces of a file follow each other in the layer as they do in the file.
    let extents = file.content.extents();
    let first = range.map_or(extents.len(), |range| {
        extents.partition_point(|extent| extent.range.end() <= range.start)
    });
    extents[first..]
        .iter()
        .map_while(move |extent| within(extent.range, extent.offset.0, range?))
}

/// Each chunk once, in the order of first need.
#[derive(Default)]
struct Needed {
    at: HashMap<ChunkDigest, usize>,
    reads: Vec<(Known, u32, Place)>,
}

impl Needed {
    fn add(&mut self, image: &Image<'_>, place: Place, file: Option<&Named<'_>>, ms: u32) {
        let Some(chunk) = image.chunk(place) else { return };
        let at = match self.at.get(&chunk.digest) {
            Some(at) => *at,
            None if self.reads.len() >= TRACE_READS_MAX => return,
            None => {
                let known = Known {
                    digest: chunk.digest,
                    layer: place.layer,
                    frame: u32::try_from(chunk.frame.len).unwrap_or(u32::MAX),
                    told: false,
                    spans: Vec::new(),
                };
                self.reads.push((known, ms, place));
                self.at.insert(chunk.digest, self.reads.len() - 1);
                self.reads.len() - 1
            }
        };
        let (Some(file), Some((known, ..))) = (file, self.reads.get_mut(at)) else {
            return;
        };
        known.told = true;
        let room = SPANS_A_CHUNK.saturating_sub(known.spans.len());
        for (offset, len) in spans(image, place, file).take(room) {
            let span: Span = (file.path.to_owned(), offset, len);
            if !known.spans.contains(&span) {
                known.spans.push(span);
            }
        }
    }

    /// With what is known of each.
    fn described(self, image: &Image<'_>, known: Option<&Learned>) -> Vec<(Known, u32)> {
        let old: HashSet<ChunkDigest> = known.iter().flat_map(|k| &k.chunks).map(|chunk| chunk.digest).collect();
        let mut reads = self.reads;
        let mut unknown: HashMap<u32, HashSet<u32>> = HashMap::new();
        for (read, _, place) in &reads {
            if !read.told && !old.contains(&read.digest) {
                unknown.entry(place.layer).or_default().insert(place.index);
            }
        }
        for (layer, places) in unknown {
            let mut spans = image.spans(layer, &places);
            for (read, _, place) in reads
                .iter_mut()
                .filter(|(read, _, place)| place.layer == layer && !read.told)
            {
                read.spans = spans.remove(&place.index).unwrap_or_default();
            }
        }
        for (read, ..) in &mut reads {
            read.spans.dedup();
            read.spans.truncate(SPANS_A_CHUNK);
        }
        reads.into_iter().map(|(known, ms, _)| (known, ms)).collect()
    }
}
