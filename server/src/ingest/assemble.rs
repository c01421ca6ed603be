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
use super::error::{ConvertError, Failure, Refusal};
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

#[derive(Debug)]
pub struct Assembler<C> {
    tree: TreeBuilder,
    skeleton: SkeletonBuilder,
    cutter: Cutter,
    chunks: C,
    skeleton_bytes_max: u64,
    entries_max: u64,
    members: u64,
}

impl<C: Chunks> Assembler<C> {
    pub fn new(config: &IngestConfig, chunks: C) -> Result<Self, ConvertError> {
        Ok(Self {
            tree: TreeBuilder::new(config.entries_max),
            skeleton: SkeletonBuilder::new().map_err(Failure::Compress)?,
            cutter: Cutter::new(),
            chunks,
            skeleton_bytes_max: config.skeleton_bytes_max.min(SKELETON_SIZE_MAX),
            entries_max: config.entries_max.min(ENTRIES_MAX),
            members: 0,
        })
    }

    /// The parts, in canonical form. Without the chunks if the scan did not end well, but always waits for the workers.
    pub fn finish(self, scanned: Result<(), ConvertError>) -> Result<(Tree, Vec<ChunkEntry>, Skeleton), ConvertError> {
        let Self {
            tree,
            skeleton,
            cutter,
            mut chunks,
            ..
        } = self;
        let last = match (&scanned, cutter.finish()) {
            (Ok(()), Some(chunk)) => chunks.push(chunk),
            _ => Ok(()),
        };
        let chunks = chunks.finish();
        match scanned.and(last) {
            // A worker's own error says more than that it is gone.
            Err(ConvertError::Failed(Failure::WorkerGone)) => {
                return Err(chunks.err().unwrap_or_else(|| Failure::WorkerGone.into()));
            }
            Err(e) => return Err(e),
            Ok(()) => {}
        }
        Ok((tree.finish()?, chunks?, skeleton.finish()?))
    }
}

impl<C: Chunks> Assembler<C> {
    fn chunk(&mut self, chunk: Vec<u8>) -> Result<(), ConvertError> {
        self.chunks.push(chunk)?;
        self.cutter.give(self.chunks.buffer());
        Ok(())
    }
}

impl<C: Chunks> Sink for Assembler<C> {
    fn literal(&mut self, bytes: &[u8]) -> Result<(), ConvertError> {
        if self.skeleton.size() + bytes.len() as u64 > self.skeleton_bytes_max {
            let (what, max) = ("bytes beside file bodies", self.skeleton_bytes_max);
            return Err(Refusal::OverBudget { what, max }.into());
        }
        self.skeleton.literal(bytes).map_err(|e| Failure::Compress(e).into())
    }

    fn member(&mut self, member: Member) -> Result<(), ConvertError> {
        self.members += 1;
        if self.members > self.entries_max {
            let (what, max) = ("members", self.entries_max);
            return Err(Refusal::OverBudget { what, max }.into());
        }
        if member.body_len > DATA_SIZE_MAX - self.skeleton.data_size().min(DATA_SIZE_MAX) {
            let (what, max) = ("bytes of files", DATA_SIZE_MAX);
            return Err(Refusal::OverBudget { what, max }.into());
        }
        let place = self.skeleton.body(member.body_len);
        let content = match &member.kind {
            MemberKind::File { sparse: Some(map) } => sparse_content(map, place)?,
            _ => Content::whole(place),
        };
        self.tree.add(&member, content)?;
        if member.body_len > 0
            && let Some(chunk) = self.cutter.begin(member.body_len)
        {
            self.chunk(chunk)?;
        }
        Ok(())
    }

    fn body(&mut self, mut bytes: &[u8]) -> Result<(), ConvertError> {
        while !bytes.is_empty() {
            let (n, chunk) = self.cutter.push(bytes);
            if let Some(chunk) = chunk {
                self.chunk(chunk)?;
            }
            bytes = &bytes[n..];
        }
        Ok(())
    }

    fn body_end(&mut self) -> Result<(), ConvertError> {
        match self.cutter.end() {
            Some(chunk) => self.chunk(chunk),
            None => Ok(()),
        }
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
