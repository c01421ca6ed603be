//! What is known of one kind of start of one image: the latest traces, over one table of chunks.
//!
//! In: checked traces. Out: the same, bounded: starts, starts of one node, chunks, bytes of paths.
//! Invariant: every index of a start is within the table, and the table has no chunk that no start names; a start that
//! comes again changes nothing.
//! Not here: what follows from it ([`super::merge`]), where it is kept ([`super::catalog`]).

use std::collections::HashMap;

use headstart_layer_format::{
    BlobDigest, ChunkDigest,
    limits::PROFILE_CHUNKS_MAX,
    profile::{Class, StartId},
};
use serde::{Deserialize, Serialize};

use crate::store::facts::Source;

/// Starts of one node: it may be the whole fleet, and must not outvote one.
pub const STARTS_A_NODE: usize = 4;
/// Names of starts that are remembered, so that one which was pushed out does not come in again.
const RECENT_MAX: usize = 128;
/// Pieces of files that are remembered for one chunk, so that another build's chunks are found by them.
pub const SPANS_A_CHUNK: usize = 16;
/// Bytes of all paths; an image of ten thousand chunks has no more names than that.
const PATHS_LEN_MAX: usize = 1 << 20;
/// Repositories that the image was taught from.
pub const SOURCES_MAX: usize = 4;

/// A piece of a file: path, offset in the file, length.
pub type Span = (String, u64, u64);

/// A chunk that some start needed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub digest: ChunkDigest,
    /// Position in the image.
    pub layer: u32,
    /// Bytes of its frame when it was learnt.
    pub frame: u32,
    /// What it holds of files; or, if that was told, of the files for whose sake it was needed.
    pub spans: Vec<Span>,
    /// Whether that was told.
    pub told: bool,
}

/// One start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub id: StartId,
    /// Who told it: a hash of its name, or of its address.
    pub node: String,
    pub unix_ms: u64,
    /// Index in [`Learned::chunks`] and milliseconds, in the order of first need.
    pub reads: Vec<(u32, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    pub config: BlobDigest,
    pub class: Class,
    /// The latest first.
    pub sources: Vec<Source>,
    /// Counts changes.
    pub generation: u64,
    pub chunks: Vec<Known>,
    /// The latest last.
    pub starts: Vec<Start>,
    pub recent: Vec<StartId>,
}

/// A trace that was compared with the image.
#[derive(Clone, Debug)]
pub struct Checked {
    pub id: StartId,
    pub node: String,
    pub unix_ms: u64,
    /// Each chunk once, with its milliseconds.
    pub reads: Vec<(Known, u32)>,
}

impl Learned {
    pub fn new(config: BlobDigest, class: Class) -> Self {
        Self {
            config,
            class,
            sources: Vec::new(),
            generation: 0,
            chunks: Vec::new(),
            starts: Vec::new(),
            recent: Vec::new(),
        }
    }

    /// Whether what was read fits together: it comes from a disk.
    pub fn is_sound(&self) -> bool {
        let count = self.chunks.len();
        let within = |start: &Start| start.reads.iter().all(|(at, _)| (*at as usize) < count);
        count <= PROFILE_CHUNKS_MAX && self.starts.iter().all(within)
    }

    pub fn knows(&self, id: &StartId) -> bool {
        self.recent.contains(id)
    }

    pub fn nodes(&self) -> usize {
        let mut nodes: Vec<&str> = self.starts.iter().map(|start| start.node.as_str()).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes.len()
    }

    /// Takes a trace in; the oldest goes, of its node if that has its share. Whether anything changed.
    pub fn add(&mut self, trace: Checked, sources: &[Source], starts_max: usize) -> bool {
        if self.knows(&trace.id) || trace.reads.is_empty() {
            return false;
        }
        let mut places: HashMap<ChunkDigest, u32> = HashMap::new();
        for (at, known) in (0..).zip(&self.chunks) {
            places.insert(known.digest, at);
        }
        let mut reads = Vec::with_capacity(trace.reads.len());
        for (known, ms) in trace.reads {
            let at = match places.get(&known.digest) {
                Some(at) => {
                    self.chunks[*at as usize].hear(known);
                    *at
                }
                None => {
                    let at = self.chunks.len() as u32;
                    places.insert(known.digest, at);
                    self.chunks.push(known);
                    at
                }
            };
            reads.push((at, ms));
        }
        self.recent.push(trace.id);
        let forgotten = self.recent.len().saturating_sub(RECENT_MAX);
        self.recent.drain(..forgotten);
        self.starts.push(Start {
            id: trace.id,
            node: trace.node.clone(),
            unix_ms: trace.unix_ms,
            reads,
        });
        let own = |start: &Start| start.node == trace.node;
        if self.starts.iter().filter(|start| own(start)).count() > STARTS_A_NODE.min(starts_max)
            && let Some(oldest) = self.starts.iter().position(own)
        {
            self.starts.remove(oldest);
        }
        while self.starts.len() > starts_max {
            self.starts.remove(0);
        }
        self.prune();
        while self.chunks.len() > PROFILE_CHUNKS_MAX && self.starts.len() > 1 {
            self.starts.remove(0);
            self.prune();
        }
        self.bound_paths();
        for source in sources.iter().take(SOURCES_MAX) {
            self.sources.retain(|known| known != source);
            self.sources.insert(0, source.clone());
        }
        self.sources.truncate(SOURCES_MAX);
        self.generation += 1;
        true
    }

    /// Drops chunks that no start names.
    fn prune(&mut self) {
        let mut used = vec![false; self.chunks.len()];
        for (at, _) in self.starts.iter().flat_map(|start| &start.reads) {
            used[*at as usize] = true;
        }
        let mut places = vec![0; self.chunks.len()];
        let kept = places.iter_mut().zip(&used).filter(|(_, used)| **used);
        for (place, (at, _)) in (0u32..).zip(kept) {
            *at = place;
        }
        let mut used = used.into_iter();
        self.chunks.retain(|_| used.next().unwrap_or(false));
        for (at, _) in self.starts.iter_mut().flat_map(|start| &mut start.reads) {
            *at = places[*at as usize];
        }
    }

    fn bound_paths(&mut self) {
        let mut left = PATHS_LEN_MAX;
        for known in &mut self.chunks {
            let len: usize = known.spans.iter().map(|(path, ..)| path.len() + 16).sum();
            match left.checked_sub(len) {
                Some(rest) => left = rest,
                None => known.spans.clear(),
            }
        }
    }
}

impl Known {
    /// Another start needed the same chunk.
    fn hear(&mut self, other: Known) {
        if other.told && !self.told {
            self.spans.clear();
            self.told = true;
        }
        if other.told || (!self.told && self.spans.is_empty()) {
            for span in other.spans {
                if self.spans.len() < SPANS_A_CHUNK && !self.spans.contains(&span) {
                    self.spans.push(span);
                }
            }
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn trace(id: u8, node: &str, chunks: &[u32]) -> Checked {
        let known = |n: &u32| Known {
            digest: ChunkDigest::of(&n.to_le_bytes()),
            layer: 0,
            frame: 100,
            spans: vec![(format!("f{n}"), 0, 10)],
            told: false,
        };
        Checked {
            id: StartId([id; 16]),
            node: node.into(),
            unix_ms: 1_000 + u64::from(id),
            reads: chunks.iter().map(|n| (known(n), 0)).collect(),
        }
    }

    pub fn learned(traces: impl IntoIterator<Item = Checked>) -> Learned {
        let mut learned = Learned::new(BlobDigest::of(b"c"), Class::default());
        for trace in traces {
            assert!(learned.add(trace, &[], 16));
        }
        assert!(learned.is_sound());
        learned
    }

    #[test]
    fn a_start_counts_once_and_a_node_has_its_share_and_no_more() {
        let mut learned = learned([trace(1, "a", &[1, 2]), trace(2, "b", &[2, 3])]);
        assert!(!learned.add(trace(1, "a", &[9]), &[], 16));
        for id in 10..30 {
            assert!(learned.add(trace(id, "evil", &[u32::from(id) + 100]), &[], 16));
        }
        let of = |node| learned.starts.iter().filter(|start| start.node == node).count();
        assert_eq!((of("a"), of("b"), of("evil")), (1, 1, STARTS_A_NODE));
        assert!(learned.is_sound());
        // Chunks of the starts that went are gone.
        assert_eq!(learned.chunks.len(), 3 + STARTS_A_NODE);
        assert!(learned.knows(&StartId([10; 16])));
    }

    #[test]
    fn the_oldest_starts_go_and_the_chunks_stay_within_their_bound() {
        let mut learned = learned((1..=5).map(|id| trace(id, &format!("n{id}"), &[u32::from(id)])));
        assert!(learned.add(trace(6, "n6", &[6]), &[], 3));
        let ids: Vec<u8> = learned.starts.iter().map(|start| start.id.0[0]).collect();
        assert_eq!(ids, [4, 5, 6]);
        let many: Vec<u32> = (0..PROFILE_CHUNKS_MAX as u32 - 1).collect();
        assert!(learned.add(trace(7, "n7", &many), &[], 16));
        assert!(learned.chunks.len() <= PROFILE_CHUNKS_MAX && learned.is_sound());
        assert!(learned.starts.iter().any(|start| start.id.0[0] == 7));
        let paths: usize = learned
            .chunks
            .iter()
            .flat_map(|known| &known.spans)
            .map(|s| s.0.len())
            .sum();
        assert!(paths <= PATHS_LEN_MAX);
    }

    #[test]
    fn what_was_told_of_a_chunk_replaces_what_was_guessed() {
        let mut told = trace(2, "b", &[1]);
        told.reads[0].0.told = true;
        told.reads[0].0.spans = vec![("needed".into(), 5, 6)];
        let learned = learned([trace(1, "a", &[1]), told, trace(3, "c", &[1])]);
        assert_eq!(learned.chunks[0].spans, [("needed".to_owned(), 5, 6)]);
    }
}
