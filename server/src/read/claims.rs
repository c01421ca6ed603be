//! Who is fetching which part of a blob.
//!
//! In: ranges that nobody fetches yet. Out: claims to them.
//! Invariant: claims never overlap, so no byte of the file has two writers, and no two requests upstream are for the
//! same byte. A claim can be cut, but not into what its holder has begun to write.
//! Not here: what has landed ([`super::landed`]), and the requests ([`super::run`]).

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use super::error::ReadError;

/// Where those who wait for a claim learn why it was given up.
pub type Failed = Arc<OnceLock<ReadError>>;

/// A part of the blob that somebody is fetching.
#[derive(Debug)]
pub struct Claim {
    pub id: u64,
    pub range: Range<u64>,
    /// Everything before this was handed to the disk.
    pub at: u64,
    /// It is part of the fetch of the whole blob, which can wait for parts that readers fetch ahead of it.
    pub of_whole: bool,
    pub failed: Failed,
}

/// All claims of one blob: about as many as connections to the upstream.
#[derive(Debug, Default)]
pub struct Claims {
    list: Vec<Claim>,
    next: u64,
}

impl Claims {
    /// The caller has made sure that nobody has any of `range`.
    pub fn add(&mut self, range: Range<u64>, of_whole: bool) -> u64 {
        debug_assert!(
            self.list
                .iter()
                .all(|c| c.range.end <= range.start || range.end <= c.range.start)
        );
        let id = self.next;
        self.next += 1;
        self.list.push(Claim {
            id,
            at: range.start,
            range,
            of_whole,
            failed: Failed::default(),
        });
        id
    }

    pub fn get(&mut self, id: u64) -> Option<&mut Claim> {
        self.list.iter_mut().find(|c| c.id == id)
    }

    pub fn remove(&mut self, id: u64) -> Option<Claim> {
        let at = self.list.iter().position(|c| c.id == id)?;
        Some(self.list.swap_remove(at))
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub fn ranges(&self) -> impl Iterator<Item = &Range<u64>> {
        self.list.iter().map(|c| &c.range)
    }

    /// The claim to this byte.
    pub fn of(&mut self, at: u64) -> Option<&mut Claim> {
        self.list.iter_mut().find(|c| c.range.contains(&at))
    }

    /// Lets a claim go on up to the next one, or to `size`.
    pub fn widen(&mut self, id: u64, size: u64) {
        let Some(end) = self.get(id).map(|c| c.range.end) else {
            return;
        };
        let next = self.ranges().map(|r| r.start).filter(|&start| start >= end).min();
        if let Some(claim) = self.get(id) {
            claim.range.end = next.unwrap_or(size);
        }
    }

    /// The claim that was cut at `at` gets back what lies behind, as far as nobody has it.
    pub fn heal(&mut self, at: u64, size: u64) {
        let cut = self.list.iter().find(|c| c.of_whole && c.range.end == at).map(|c| c.id);
        if let Some(id) = cut {
            self.widen(id, size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_claim_grows_back_up_to_its_neighbour() {
        let mut claims = Claims::default();
        let stream = claims.add(0..100, true);
        claims.get(stream).unwrap().range.end = 40;
        let ahead = claims.add(40..50, false);
        let other = claims.add(70..80, false);
        assert_eq!(claims.of(45).map(|c| c.id), Some(ahead));
        claims.remove(ahead);
        claims.heal(40, 100);
        assert_eq!(claims.get(stream).unwrap().range, 0..70);
        claims.remove(other);
        claims.heal(70, 100);
        assert_eq!(claims.get(stream).unwrap().range, 0..100);
        assert!(claims.remove(stream).is_some() && claims.is_empty());
    }
}
