//! Many traces, one order.
//!
//! In: [`Learned`]. Out: its chunks, those that enough starts needed, in the order in which they are needed.
//! Invariant: a pure function of what was learnt: the same starts give the same profile at any time. A node has one vote,
//! however many starts it told; a minority can neither put a chunk before what the majority needs nor move that about.
//! Not here: how many bytes of it are used ([`super::answer`]).

use std::collections::HashMap;

use super::learned::{Learned, Start};

/// Starts below this number are believed as they are: there is nothing to compare them with.
const COMPARED_MIN: usize = 4;
/// A start that needed less than this part of what most needed is of something else.
const COMMON_MIN: f64 = 0.1;
/// A start that needed so many times the bytes of the middle one is no ordinary start.
const BYTES_FACTOR_MAX: u64 = 4;
/// Needed by at least so many: in the order of all. The others come after them.
const MOST: f64 = 0.5;

/// How starts are weighed.
#[derive(Clone, Copy, Debug)]
pub struct Weighing {
    pub share_min: f64,
    pub half_life_ms: u64,
}

/// A chunk of the profile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// Index in [`Learned::chunks`].
    pub at: usize,
    /// Part of the starts, by weight, that needed it.
    pub share: f64,
    /// Its middle place in their order.
    pub rank: u32,
}

/// The profile of all starts that are no outliers.
pub fn merge(learned: &Learned, weighing: Weighing) -> Vec<Ranked> {
    let all: Vec<&Start> = learned.starts.iter().collect();
    let first = rank(&all, weighing);
    let kept = ordinary(learned, &all, &first);
    let mut ranked = match kept.len() < all.len() {
        true => rank(&kept, weighing),
        false => first,
    };
    ranked.retain(|chunk| chunk.share >= weighing.share_min);
    ranked
}

/// Starts that are like the others; all, if none is.
fn ordinary<'s>(learned: &Learned, starts: &[&'s Start], ranked: &[Ranked]) -> Vec<&'s Start> {
    let most: Vec<usize> = ranked.iter().filter(|c| c.share >= MOST).map(|c| c.at).collect();
    if starts.len() < COMPARED_MIN || most.is_empty() {
        return starts.to_vec();
    }
    let bytes_of = |start: &Start| -> u64 {
        let frames = start
            .reads
            .iter()
            .map(|(at, _)| u64::from(learned.chunks[*at as usize].frame));
        frames.sum()
    };
    let mut bytes: Vec<u64> = starts.iter().map(|start| bytes_of(start)).collect();
    bytes.sort_unstable();
    let middle = bytes[(bytes.len() - 1) / 2];
    let mut kept = Vec::with_capacity(starts.len());
    let mut needed = vec![false; learned.chunks.len()];
    for start in starts {
        needed.fill(false);
        for (at, _) in &start.reads {
            needed[*at as usize] = true;
        }
        let common = most.iter().filter(|at| needed[**at]).count() as f64;
        if common >= COMMON_MIN * most.len() as f64 && bytes_of(start) <= middle.saturating_mul(BYTES_FACTOR_MAX) {
            kept.push(*start);
        }
    }
    match kept.is_empty() {
        true => starts.to_vec(),
        false => kept,
    }
}

/// All chunks of the starts, those that most needed first, each part by the weighted median of their places.
fn rank(starts: &[&Start], weighing: Weighing) -> Vec<Ranked> {
    let weights = weights(starts, weighing.half_life_ms);
    let total: f64 = weights.iter().sum();
    let mut places: HashMap<u32, Vec<(u32, f64)>> = HashMap::new();
    for (start, weight) in starts.iter().zip(&weights) {
        for (place, (at, _)) in (0..).zip(&start.reads) {
            places.entry(*at).or_default().push((place, *weight));
        }
    }
    let mut ranked: Vec<Ranked> = places
        .into_iter()
        .map(|(at, mut places)| {
            let weight: f64 = places.iter().map(|(_, weight)| weight).sum();
            places.sort_unstable_by_key(|(place, _)| *place);
            let mut below = 0.0;
            let middle = places.iter().find(|(_, part)| {
                below += part;
                below * 2.0 >= weight
            });
            Ranked {
                at: at as usize,
                share: weight / total,
                rank: middle.map_or(u32::MAX, |(place, _)| *place),
            }
        })
        .collect();
    // The index last, so that the order is one.
    ranked.sort_unstable_by_key(|chunk| (chunk.share < MOST, chunk.rank, chunk.at));
    ranked
}

/// By age beside the youngest, and shared among the starts of one node.
fn weights(starts: &[&Start], half_life_ms: u64) -> Vec<f64> {
    let youngest = starts.iter().map(|start| start.unix_ms).max().unwrap_or(0);
    let mut of_node: HashMap<&str, u32> = HashMap::new();
    for start in starts {
        *of_node.entry(&start.node).or_default() += 1;
    }
    let weight = |start: &&Start| {
        let age = (youngest - start.unix_ms) as f64 / half_life_ms.max(1) as f64;
        // Never nothing: the only start that knows a chunk still counts among starts of its age.
        (0.5f64).powf(age).max(1e-6) / f64::from(of_node[start.node.as_str()])
    };
    starts.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::super::learned::tests::{learned, trace};
    use super::*;
    use headstart_layer_format::ChunkDigest;

    const WEIGHING: Weighing = Weighing {
        share_min: 0.34,
        half_life_ms: 604_800_000,
    };

    fn order(traces: Vec<super::super::learned::Checked>) -> Vec<u32> {
        let learned = learned(traces);
        let number = |digest: &ChunkDigest| (0u32..2000).find(|n| ChunkDigest::of(&n.to_le_bytes()) == *digest);
        let ranked = merge(&learned, WEIGHING);
        ranked
            .iter()
            .map(|c| number(&learned.chunks[c.at].digest).unwrap())
            .collect()
    }

    #[test]
    fn one_start_is_its_profile_and_many_agree_on_the_middle() {
        assert_eq!(order(vec![trace(1, "a", &[3, 1, 2])]), [3, 1, 2]);
        let three = vec![
            trace(1, "a", &[1, 2, 3, 4]),
            trace(2, "b", &[2, 1, 3, 4]),
            trace(3, "c", &[1, 3, 2, 4]),
        ];
        assert_eq!(order(three), [1, 2, 3, 4]);
    }

    #[test]
    fn what_few_needed_is_left_out() {
        let traces = vec![
            trace(1, "a", &[1, 2, 50]),
            trace(2, "b", &[1, 2, 51]),
            trace(3, "c", &[1, 2, 52]),
        ];
        assert_eq!(order(traces), [1, 2]);
    }

    #[test]
    fn hostile_traces_neither_enter_nor_move_what_others_need() {
        let honest: Vec<u32> = (1..=20).collect();
        let mut traces: Vec<_> = (1..=6).map(|id| trace(id, &format!("n{id}"), &honest)).collect();
        // One of the image's other chunks, all of them, and the right ones the wrong way round, four starts each.
        let junk: Vec<u32> = (500..600).collect();
        let everything: Vec<u32> = (1..900).collect();
        let backwards: Vec<u32> = (1..=20).rev().collect();
        for (id, chunks) in (10u8..).step_by(10).zip([&junk, &everything, &backwards]) {
            traces.extend((0..3).map(|n| trace(id + n, &format!("evil{id}"), chunks)));
        }
        assert_eq!(order(traces), honest);
    }

    /// Many enough that their chunks would have the share: two of five nodes.
    #[test]
    fn starts_of_something_else_or_of_everything_bring_nothing_in() {
        let honest: Vec<u32> = (1..=20).collect();
        // Ten chunks that nobody else needed and one of twenty that all did; and all twenty, with hundreds more.
        let else_: Vec<u32> = (500..510).chain([1]).collect();
        let everything: Vec<u32> = honest.iter().copied().chain(600..1000).collect();
        for outlier in [else_, everything] {
            let mut traces: Vec<_> = (1..=3).map(|id| trace(id, &format!("n{id}"), &honest)).collect();
            traces.extend((4..=5).map(|id| trace(id, &format!("n{id}"), &outlier)));
            assert_eq!(order(traces), honest, "{outlier:?}");
        }
    }

    /// What half of the ordinary starts need is a smaller part of all starts than counts.
    #[test]
    fn starts_of_something_else_push_nothing_out() {
        let honest = |more: u32| (1..=20).chain([more]).collect::<Vec<u32>>();
        let mut traces: Vec<_> = (1..=2).map(|id| trace(id, &format!("n{id}"), &honest(30))).collect();
        traces.extend((3..=4).map(|id| trace(id, &format!("n{id}"), &honest(31))));
        // Each of another thing, so that none of theirs has the share either.
        traces.extend((5..=7).map(|id| trace(id, &format!("n{id}"), &[u32::from(id) * 100])));
        let mut order = order(traces);
        // The younger half weighs a little more.
        order.sort_unstable();
        assert_eq!(order, (1..=20).chain([30, 31]).collect::<Vec<_>>());
    }

    #[test]
    fn one_node_with_many_starts_has_one_vote() {
        let mut traces = vec![trace(1, "a", &[1, 2]), trace(2, "b", &[1, 2])];
        traces.extend((10..14).map(|id| trace(id, "loud", &[70, 71, 1])));
        // Two of three needed 1 and 2; a third is below the share.
        assert_eq!(order(traces), [1, 2]);
    }

    #[test]
    fn old_starts_fade() {
        let mut old: Vec<_> = (1..=3).map(|id| trace(id, &format!("n{id}"), &[1, 2])).collect();
        let mut new = trace(9, "new", &[2, 3]);
        new.unix_ms = old[0].unix_ms + 20 * WEIGHING.half_life_ms;
        old.push(new);
        assert_eq!(order(old), [2, 3]);
    }
}
