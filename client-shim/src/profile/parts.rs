//! What of a plan is asked for at a time.
//!
//! In: the chunks that a plan wants. Out: [`Part`]s, a request each, in the profile's order, as things are when one is made.
//! Invariant: a chunk is in one part at the most; what is here by then, or on its way to a reader, is in none, so that only what
//! readers fetch out of the part under way comes twice.
//! Not here: asking (`profile/stream.rs`).

use std::collections::VecDeque;

use headstart_layer_format::profile::Have;

use super::plan::{Plan, Wanted};

/// Compressed bytes of a part, about: no more than one or two parts may come twice. Most starts need a few of them, and each costs
/// the server a look at its layers.
const PART_BYTES: u64 = 4 << 20;

#[derive(Debug)]
pub struct Part {
    /// What the server need not send: all of the profile but this part.
    pub have: Have,
    pub wanted: VecDeque<Wanted>,
    pub bytes: u64,
}

/// What is not asked for yet.
#[derive(Debug)]
pub struct Parts {
    rest: VecDeque<Wanted>,
    rest_bytes: u64,
    /// Of the whole profile.
    positions: usize,
}

impl Parts {
    pub fn of(plan: &mut Plan) -> Self {
        Self {
            rest: std::mem::take(&mut plan.wanted).into(),
            rest_bytes: plan.bytes,
            positions: plan.positions,
        }
    }

    /// A part that nobody brings.
    pub fn put_back(&mut self, wanted: VecDeque<Wanted>) {
        for wanted in wanted.into_iter().rev() {
            self.rest_bytes = self.rest_bytes.saturating_add(wanted.chunk.frame.len);
            self.rest.push_front(wanted);
        }
    }

    /// `None`: nothing is missing any more.
    pub fn next_part(&mut self) -> Option<Part> {
        let (mut wanted, mut bytes) = (VecDeque::new(), 0);
        let mut asked = vec![false; self.positions];
        while let Some(next) = self.rest.pop_front() {
            self.rest_bytes = self.rest_bytes.saturating_sub(next.chunk.frame.len);
            if !next.layer.reader().flights().is_missing(next.chunk.index) {
                continue;
            }
            bytes += next.chunk.frame.len;
            if let Some(asked) = asked.get_mut(next.at) {
                *asked = true;
            }
            wanted.push_back(next);
            // A little is not left for a request of its own.
            if bytes >= PART_BYTES && self.rest_bytes >= PART_BYTES / 2 {
                break;
            }
        }
        let have = Have::of((0..self.positions).filter(|at| !asked[*at]));
        (!wanted.is_empty()).then_some(Part { have, wanted, bytes })
    }
}
