//! A ready image, as profiles look at it: the chunk tables of its layers, and its tree of files when that is needed.
//!
//! In: an image status. Out: where chunks are, and what files are made of.
//! Invariant: all layers are ready and are what the image's config says (`read/images.rs` has compared the DiffIDs), so the
//! config digest stands for exactly these bytes. While this lives, none of the layers is evicted.
//! Not here: which chunks matter.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use headstart_layer_format::{
    BlobDigest, ChunkDigest, LayerOffset, LayerRange, Toc, TocDigest,
    api::ImageStatus,
    profile::Run,
    toc::{Content, EntryId, Extent, Kind, Tree},
};

use super::learned::{SPANS_A_CHUNK, Span};
use crate::{
    read::seekable::{LayerData, Opened, Seekable},
    store::{Store, StoreError},
};

/// Symbolic links that are followed for one path.
const LINKS_MAX: usize = 8;

/// Places of one chunk in a layer that are told apart: files there more than once.
pub const SAME_MAX: usize = 16;

/// A chunk's place: position of the layer, index in its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    pub layer: u32,
    pub index: u32,
}

#[derive(Debug)]
pub struct Image<'s> {
    /// None: every TOC is here.
    store: Option<&'s Store>,
    pub config: BlobDigest,
    layers: Vec<Arc<LayerData>>,
    _held: Vec<Opened>,
    /// Decoded when somebody asks.
    tocs: Vec<OnceLock<Option<Toc>>>,
}

impl<'s> Image<'s> {
    /// `None` when not every layer is ready. Blocks.
    pub fn open(store: &'s Store, seekable: &Seekable, status: &ImageStatus) -> Result<Option<Self>, StoreError> {
        if !status.is_ready() {
            return Ok(None);
        }
        let mut layers = Vec::with_capacity(status.layers.len());
        for layer in &status.layers {
            match seekable.open(&layer.digest)? {
                // A layer that was converted again since the status was made has another TOC.
                Some(opened)
                    if layer
                        .toc
                        .as_ref()
                        .is_some_and(|toc| toc.digest == opened.summary.digest) =>
                {
                    layers.push(opened);
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(Self {
            store: Some(store),
            config: status.config_digest,
            tocs: layers.iter().map(|_| OnceLock::new()).collect(),
            layers: layers.iter().map(Opened::data).collect(),
            _held: layers,
        }))
    }

    /// Of layers that are in no store.
    pub fn of(config: BlobDigest, layers: Vec<(LayerData, Toc)>) -> Self {
        let (layers, tocs): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
        Self {
            store: None,
            config,
            layers: layers.into_iter().map(Arc::new).collect(),
            tocs: tocs.into_iter().map(|toc| OnceLock::from(Some(toc))).collect(),
            _held: Vec::new(),
        }
    }

    pub fn digests(&self) -> Vec<BlobDigest> {
        self.layers.iter().map(|layer| layer.layer()).collect()
    }

    pub fn tocs(&self) -> Vec<TocDigest> {
        self.layers.iter().map(|layer| layer.summary.digest).collect()
    }

    pub fn layer_count(&self) -> usize {
        self.layers.len()
    }

    /// Bytes of all frames.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.table().blob_size()).sum()
    }

    pub fn chunk(&self, place: Place) -> Option<headstart_layer_format::toc::Chunk> {
        self.layers.get(place.layer as usize)?.table().chunk(place.index)
    }

    /// Where chunks are in one layer: the first [`SAME_MAX`] places of each, one at the least.
    pub fn places_in(&self, layer: u32, wanted: &HashSet<ChunkDigest>) -> HashMap<ChunkDigest, Vec<Place>> {
        let mut found: HashMap<ChunkDigest, Vec<Place>> = HashMap::new();
        let Some(data) = self.layers.get(layer as usize) else {
            return found;
        };
        for (index, entry) in (0..).zip(data.table().entries()) {
            if wanted.contains(&entry.digest) {
                let places = found.entry(entry.digest).or_default();
                if places.len() < SAME_MAX {
                    places.push(Place { layer, index });
                }
            }
        }
        found
    }

    /// Whether a chunk has bytes of a file of its layer.
    pub fn holds(&self, place: Place, path: &str) -> bool {
        let content = || {
            let tree = self.tree(place.layer)?;
            match &tree.inode(tree.entry(tree.find(path.as_bytes())?)?.inode)?.kind {
                Kind::Regular(content) => Some(content),
                _ => None,
            }
        };
        let (Some(content), Some(chunk)) = (content(), self.chunk(place)) else {
            return false;
        };
        let of = |extent: &Extent| within(extent.range, extent.offset.0, chunk.range);
        content.extents().iter().any(|extent| of(extent).is_some())
    }

    /// The chunks that hold a range of a layer's data.
    pub fn covering(&self, layer: u32, range: LayerRange) -> impl Iterator<Item = Place> {
        let table = self.layers.get(layer as usize).map(|data| data.table());
        let indices = table.map_or(0..0, |table| table.covering(range));
        indices.map(move |index| Place { layer, index })
    }

    /// A layer's tree; `None` when its TOC is gone, or does not decode.
    pub fn tree(&self, layer: u32) -> Option<&Tree> {
        let toc = self.tocs.get(layer as usize)?.get_or_init(|| {
            let read = self.store?.toc(&self.layers[layer as usize].layer()).ok().flatten();
            read.and_then(|(_, encoded)| Toc::decode(&encoded).ok())
        });
        toc.as_ref().map(Toc::tree)
    }

    /// A regular file as a container sees it: the topmost layer that has it, whiteouts and links followed.
    pub fn find(&self, path: &str) -> Option<(u32, &Content)> {
        let mut path = clean(path.as_bytes());
        for _ in 0..=LINKS_MAX {
            match self.step(&path)? {
                Found::File(layer, content) => return Some((layer, content)),
                Found::Link { parent, target, rest } => {
                    let mut next = match target.starts_with(b"/") {
                        true => Vec::new(),
                        false => parent,
                    };
                    for part in [&target, &rest] {
                        next.push(b'/');
                        next.extend_from_slice(part);
                    }
                    path = clean(&next);
                }
            }
        }
        None
    }

    fn step(&self, path: &[u8]) -> Option<Found<'_>> {
        let parts: Vec<&[u8]> = path
            .split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
            .collect();
        for layer in (0..self.layers.len() as u32).rev() {
            let tree = self.tree(layer)?;
            let (mut dir, mut opaque) = (EntryId::ROOT, false);
            for (depth, part) in parts.iter().enumerate() {
                let Some(entry) = tree.lookup(dir, part) else { break };
                match &tree.inode(tree.entry(entry)?.inode)?.kind {
                    Kind::Directory { opaque: hides, .. } => {
                        opaque |= *hides;
                        dir = entry;
                    }
                    Kind::Symlink { target } => {
                        return Some(Found::Link {
                            parent: parts[..depth].join(&b'/'),
                            target: target.to_vec(),
                            rest: parts[depth + 1..].join(&b'/'),
                        });
                    }
                    Kind::Regular(content) if depth + 1 == parts.len() => return Some(Found::File(layer, content)),
                    _ => return None,
                }
            }
            if opaque {
                return None;
            }
        }
        None
    }

    /// What chunks of a layer hold of its files, some files of each.
    pub fn spans(&self, layer: u32, places: &HashSet<u32>) -> HashMap<u32, Vec<Span>> {
        let mut found: HashMap<u32, Vec<(EntryId, u64, u64)>> = HashMap::new();
        let (Some(tree), Some(data)) = (self.tree(layer), self.layers.get(layer as usize)) else {
            return HashMap::new();
        };
        let mut seen = vec![false; tree.inodes().len()];
        for (id, entry) in (0..).map(EntryId).zip(tree.entries()) {
            let Some(Kind::Regular(content)) = tree.inode(entry.inode).map(|inode| &inode.kind) else {
                continue;
            };
            // Another name of the same file says nothing new.
            if std::mem::replace(&mut seen[entry.inode.0 as usize], true) {
                continue;
            }
            for extent in content.extents() {
                for index in data
                    .table()
                    .covering(extent.range)
                    .filter(|index| places.contains(index))
                {
                    let Some(chunk) = data.table().chunk(index) else {
                        continue;
                    };
                    let Some((offset, len)) = within(extent.range, extent.offset.0, chunk.range) else {
                        continue;
                    };
                    let files = found.entry(index).or_default();
                    match files.last_mut() {
                        // A sparse file may have thousands of pieces in a chunk. From the first to the last is one.
                        Some((last, from, of)) if *last == id => *of = (offset + len).max(*from + *of) - *from,
                        _ => files.push((id, offset, len)),
                    }
                }
            }
        }
        let spans = found.into_iter().map(|(index, files)| {
            // Evenly from all of them: a chunk of small files is found again by any.
            let step = files.len().div_ceil(SPANS_A_CHUNK).max(1);
            let some = files.into_iter().step_by(step).filter_map(|(id, offset, len)| {
                let path = String::from_utf8(tree.path(id)).ok()?;
                Some((path, offset, len))
            });
            (index, some.collect())
        });
        spans.collect()
    }
}

enum Found<'i> {
    File(u32, &'i Content),
    Link {
        parent: Vec<u8>,
        target: Vec<u8>,
        rest: Vec<u8>,
    },
}

/// Offset and length in the file of what an extent has in common with a range of the data space.
pub fn within(extent: LayerRange, file_offset: u64, range: LayerRange) -> Option<(u64, u64)> {
    let start = extent.start.0.max(range.start.0);
    let end = extent.end().0.min(range.end().0);
    (start < end).then(|| (file_offset + (start - extent.start.0), end - start))
}

/// Ranges of the data space that hold `len` bytes of a file from `offset`.
pub fn ranges(content: &Content, offset: u64, len: u64) -> impl Iterator<Item = LayerRange> + '_ {
    let end = offset.saturating_add(len);
    // A sparse file may have millions of pieces, and be asked for thousands of times.
    let extents = content.extents();
    let first = extents.partition_point(|extent| extent.offset.0 + extent.range.len <= offset);
    extents[first..].iter().map_while(move |extent| {
        let from = offset.max(extent.offset.0);
        let to = end.min(extent.offset.0 + extent.range.len);
        (from < to).then(|| LayerRange {
            start: LayerOffset(extent.range.start.0 + (from - extent.offset.0)),
            len: to - from,
        })
    })
}

/// Neighbours in a table become one run.
pub fn runs(places: impl IntoIterator<Item = (Place, u64)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (place, bytes) in places {
        match runs.last_mut() {
            Some(run) if run.layer == place.layer && run.first + run.count == place.index => {
                run.count += 1;
                run.bytes += bytes;
            }
            _ => runs.push(Run {
                layer: place.layer,
                first: place.index,
                count: 1,
                bytes,
            }),
        }
    }
    runs
}

/// Without empty parts and dots, and never above the root.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_and_runs_are_joined() {
        for (path, clean_path) in [("/a//b/./c/", "a/b/c"), ("../../a/../b", "b"), ("", "")] {
            assert_eq!(clean(path.as_bytes()), clean_path.as_bytes());
        }
        let place = |layer, index| (Place { layer, index }, 10);
        let runs = runs([place(0, 4), place(0, 5), place(1, 6), place(0, 6)]);
        let rows: Vec<(u32, u32, u32, u64)> = runs.into_iter().map(Into::into).collect();
        assert_eq!(rows, [(0, 4, 2, 20), (1, 6, 1, 10), (0, 6, 1, 10)]);
    }

    #[test]
    fn pieces_of_files_are_found_in_the_data_space_and_back() {
        let range = |start, len| LayerRange {
            start: LayerOffset(start),
            len,
        };
        assert_eq!(within(range(4096, 100), 0, range(4150, 4096)), Some((54, 46)));
        assert_eq!(within(range(4096, 100), 0, range(8192, 1)), None);
        let content = Content::whole(range(4096, 100));
        assert_eq!(ranges(&content, 54, 1000).collect::<Vec<_>>(), [range(4150, 46)]);
        assert_eq!(ranges(&content, 100, 5).count(), 0);
    }
}
