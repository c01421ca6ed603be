//! One pass over the tar becomes tree, skeleton and chunks.
//!
//! In: what the scanner hands out. Out: the parts of a TOC. Invariant: a file's content refers to the place that the
//! skeleton gave its body, and the cutter sees the same bodies in the same order.
//! Not here: reading, hashing, storing.

use headstart_layer_format::FileOffset;
use headstart_layer_format::limits::{DATA_SIZE_MAX, ENTRIES_MAX, SKELETON_SIZE_MAX};
use headstart_layer_format::offset::{LayerOffset, LayerRange};
use headstart_layer_format::toc::{ChunkEntry, Content, Extent, Skeleton, SkeletonBuilder, Tree};

use super::config::IngestConfig;
use super::cut::Cutter;
use super::error::{ConvertError, Failure, Limit, Refusal};
use super::memory::{self, Memory};
use super::sparse::SparseMap;
use super::tar_scan::{Member, MemberKind, Sink};
use super::tree::TreeBuilder;

/// Where the raw chunks go.
pub trait Chunks {
    /// An empty buffer, which may be an old one.
    fn buffer(&mut self) -> Vec<u8> {
        Vec::new()
    }
    /// The next chunk.
    fn push(&mut self, raw: Vec<u8>) -> Result<(), ConvertError>;
    /// Their table entries, in order.
    fn finish(self) -> Result<Vec<ChunkEntry>, ConvertError>;
}

/// The parts of a TOC, and what they keep in memory.
pub type Assembled = (Tree, Vec<ChunkEntry>, Skeleton, Memory);

#[derive(Debug)]
pub struct Assembler<C> {
    tree: TreeBuilder,
    skeleton: SkeletonBuilder,
    cutter: Cutter,
    chunks: C,
    memory: Memory,
    skeleton_bytes_max: u64,
    /// Compressed bytes of the skeleton that are accounted for.
    skeleton_kept: u64,
    /// Of a sparse file, too: an unpacker would write it out.
    file_size_max: u64,
    entries_max: u64,
    members: u64,
}

impl<C: Chunks> Assembler<C> {
    pub fn new(config: &IngestConfig, chunks: C, memory: Memory) -> Result<Self, ConvertError> {
        Ok(Self {
            tree: TreeBuilder::new(config.entries_max),
            skeleton: SkeletonBuilder::new().map_err(Failure::Compress)?,
            cutter: Cutter::new(),
            chunks,
            memory,
            skeleton_kept: 0,
            file_size_max: config.tar_bytes_max,
            skeleton_bytes_max: config.skeleton_bytes_max.min(SKELETON_SIZE_MAX),
            entries_max: config.entries_max.min(ENTRIES_MAX),
            members: 0,
        })
    }

    /// The parts, in canonical form. Without the chunks if the scan did not end well, but always waits for the workers.
    pub fn finish(self, scanned: Result<(), ConvertError>) -> Result<Assembled, ConvertError> {
        let Self {
            tree,
            skeleton,
            cutter,
            mut chunks,
            mut memory,
            ..
        } = self;
        let last = match (&scanned, cutter.finish()) {
            (Ok(()), Some(chunk)) => memory.take(memory::CHUNK).and_then(|()| chunks.push(chunk)),
            _ => Ok(()),
        };
        match scanned.and(last) {
            // A worker's own error says more than that it is gone.
            Err(ConvertError::Failed(Failure::WorkerGone)) => {
                let chunks = chunks.finish();
                Err(chunks.err().unwrap_or_else(|| Failure::WorkerGone.into()))
            }
            Err(e) => {
                let _ = chunks.finish();
                Err(e)
            }
            Ok(()) => {
                // While the last chunks are compressed.
                let (tree, skeleton) = (tree.finish(), skeleton.finish());
                let chunks = chunks.finish();
                Ok((tree?, chunks?, skeleton?, memory))
            }
        }
    }

    fn push(&mut self, chunk: Option<Vec<u8>>) -> Result<(), ConvertError> {
        let Some(chunk) = chunk else { return Ok(()) };
        self.memory.take(memory::CHUNK)?;
        self.chunks.push(chunk)?;
        self.cutter.give(self.chunks.buffer());
        Ok(())
    }
}

impl<C: Chunks> Sink for Assembler<C> {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        if self.skeleton.size() + bytes.len() as u64 > self.skeleton_bytes_max {
            let (what, max) = ("bytes beside file bodies", self.skeleton_bytes_max);
            return Err(Refusal::OverBudget {
                limit: Limit::SkeletonBytes,
                what,
                max,
            }
            .into());
        }
        self.skeleton.literal(bytes).map_err(Failure::Compress)?;
        let kept = self.skeleton.compressed_size();
        self.memory.take((kept - self.skeleton_kept) * memory::SKELETON_BYTE)?;
        self.skeleton_kept = kept;
        Ok(())
    }

    fn stretches_max(&self) -> u64 {
        self.memory.left() / memory::EXTENT
    }

    fn member(&mut self, member: Member) -> Result<(), ConvertError> {
        self.members += 1;
        if self.members > self.entries_max {
            let (what, max) = ("members", self.entries_max);
            return Err(Refusal::OverBudget {
                limit: Limit::Entries,
                what,
                max,
            }
            .into());
        }
        if member.body_len > DATA_SIZE_MAX - self.skeleton.data_size().min(DATA_SIZE_MAX) {
            let (what, max) = ("bytes of files", DATA_SIZE_MAX);
            return Err(Refusal::OverBudget {
                limit: Limit::Format,
                what,
                max,
            }
            .into());
        }
        if member.body_len > 0 {
            self.memory.take(memory::BODY)?;
        }
        if let MemberKind::File { sparse: Some(map) } = &member.kind
            && map.size > self.file_size_max
        {
            let (what, max) = ("bytes in a sparse file", self.file_size_max);
            return Err(Refusal::OverBudget {
                limit: Limit::TarBytes,
                what,
                max,
            }
            .into());
        }
        let place = self.skeleton.body(member.body_len);
        let content = match &member.kind {
            MemberKind::File { sparse: Some(map) } => sparse_content(map, place)?,
            _ => Content::whole(place),
        };
        self.tree.add(&member, content, &mut self.memory)?;
        match member.body_len {
            0 => Ok(()),
            len => {
                let chunk = self.cutter.begin(len);
                self.push(chunk)
            }
        }
    }

    fn body(&mut self, mut bytes: &[u8]) -> Result<(), ConvertError> {
        while !bytes.is_empty() {
            let (n, chunk) = self.cutter.push(bytes);
            self.push(chunk)?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn body_end(&mut self) -> Result<(), ConvertError> {
        let chunk = self.cutter.end();
        self.push(chunk)
    }
}

/// The stored body holds the stretches one behind the other.
fn sparse_content(map: &SparseMap, place: LayerRange) -> Result<Content, ConvertError> {
    let mut at = place.start.0;
    let extents = map.stretches.iter().map(|&(offset, len)| {
        let start = LayerOffset(at);
        at += len;
        Extent {
            offset: FileOffset(offset),
            range: LayerRange { start, len },
        }
    });
    Ok(Content::sparse(map.size, extents.collect())?)
}
