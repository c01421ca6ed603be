//! Which bodies a stretch of the data space belongs to.
//!
//! In: a skeleton. Out: the bodies that a range touches, so that a reader of the data space fetches as a reader of the
//! files would. Invariant: 4 bytes a body. Not here: which files the bodies are of.

use headstart_layer_format::limits::BODY_ALIGN;
use headstart_layer_format::toc::Skeleton;
use headstart_layer_format::{LayerOffset, LayerRange};

/// The kernel reads one file at a time; a range over more bodies is somebody's `dd`.
const TOUCHED_MAX: usize = 16;

#[derive(Debug)]
pub struct Bodies {
    /// First block of each body, and the end of the last.
    edges: Box<[u32]>,
}

impl Bodies {
    pub(super) fn of(skeleton: &Skeleton) -> Self {
        let mut at = 0u64;
        let starts = skeleton.bodies().iter().map(|body| {
            let start = at;
            at += body.len.div_ceil(BODY_ALIGN);
            start
        });
        let mut edges: Vec<u32> = starts.map(block).collect();
        edges.push(block(at));
        Self { edges: edges.into() }
    }

    /// The bodies from the first to the last that `range` touches, with the zeros behind them.
    pub fn touched(&self, range: LayerRange) -> Vec<LayerRange> {
        let last = block(range.end().0.saturating_sub(1) / BODY_ALIGN);
        let first = self.edges.partition_point(|e| *e <= block(range.start.0 / BODY_ALIGN));
        let end = self.edges.partition_point(|e| *e <= last);
        let first = first.max(1).max((end + 1).saturating_sub(TOUCHED_MAX));
        let edge = |at: usize| self.edges.get(at).map(|e| u64::from(*e) * BODY_ALIGN);
        (first..=end)
            .filter_map(|at| {
                let (start, end) = (edge(at - 1)?, edge(at)?);
                Some(LayerRange {
                    start: LayerOffset(start),
                    len: end - start,
                })
            })
            .collect()
    }
}

/// At most 2^28: `DATA_SIZE_MAX` in blocks.
fn block(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_touches_the_bodies_it_lies_in() {
        let bodies = Bodies {
            edges: [0, 1, 4, 5].into(),
        };
        let touched = |start: u64, len: u64| {
            let start = LayerOffset(start);
            let ranges = bodies.touched(LayerRange { start, len });
            ranges
                .iter()
                .map(|r| (r.start.0 / 4096, r.len / 4096))
                .collect::<Vec<_>>()
        };
        assert_eq!(touched(0, 4096), [(0, 1)]);
        assert_eq!(touched(4096, 1), [(1, 3)]);
        assert_eq!(touched(4095, 2), [(0, 1), (1, 3)]);
        assert_eq!(touched(8192, 12288), [(1, 3), (4, 1)]);
        assert_eq!(touched(20_480, 4096), []);
        assert_eq!(
            Bodies { edges: [0].into() }.touched(LayerRange {
                start: LayerOffset(0),
                len: 0
            }),
            []
        );
    }
}
