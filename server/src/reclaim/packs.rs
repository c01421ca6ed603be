//! One cycle over the packs: plan, evict, sweep.
//!
//! In: a store, what is wanted, how far to go. Out: a [`Report`]. Invariant: evictions are durable before anything of the
//! evicted layers goes; the pack with the least that lives goes first, so that a full disk is asked for as little as
//! possible. A dry run changes nothing.
//! Not here: when a cycle runs ([`super`]).

use std::collections::HashMap;
use std::time::Duration;

use super::report::Report;
use crate::store::bell::Bell;
use crate::store::plan::Wanted;
use crate::store::sweep::{Overhead, Step};
use crate::store::{PackId, Store, StoreError};

/// A pack of which at most this share lives is always worth rewriting.
const LIVE_PERCENT_WORTH: u64 = 50;
/// Under pressure, one with at least this share of garbage is.
const GARBAGE_PERCENT_MIN: u64 = 5;
/// When everything is to be rewritten, the pack being written is for this much garbage.
const GARBAGE_WORTH_ROLL: u64 = 1 << 20;
/// Whether a cycle was not worth what it wrote: another one soon would not be, either. How much there is in all says nothing
/// about it: conversions go on beside it, and may write more than it frees.
pub fn is_idle(freed_bytes: u64, moved_bytes: u64) -> bool {
    freed_bytes == 0 || freed_bytes.saturating_mul(100) < moved_bytes.saturating_mul(GARBAGE_PERCENT_MIN)
}

/// Copying is done in steps of this, with a pause between.
const BURST_BYTES: u64 = 4 << 20;
/// Copying without hurry: a fraction of what a disk can do.
const BYTES_PER_SEC: u64 = 64 << 20;

/// Live facts and their like of sealed packs, found once: a sealed pack gets no more, and what dies in it until facts are
/// forgotten, or until the next start, only makes it look fuller.
pub type FactBytes = HashMap<PackId, Overhead>;

#[derive(Debug)]
pub struct Cycle<'a> {
    pub store: &'a Store,
    pub bell: &'a Bell,
    /// Packs are rewritten until they hold no more than this.
    pub packs_bytes_wanted: u64,
    /// Layers that are refused or not converted any more: with more, the oldest pack is rewritten, which drops its own.
    pub unready_max: u64,
    /// The oldest pack is rewritten in any case.
    pub turn: bool,
    /// No pauses.
    pub urgent: bool,
    pub dry_run: bool,
}

struct Candidate {
    pack: PackId,
    len: u64,
    live: u64,
    current: bool,
}

impl Cycle<'_> {
    /// How many bytes were written once more.
    pub fn run(&self, wanted: &Wanted, facts: &mut FactBytes, report: &mut Report) -> Result<u64, StoreError> {
        let go_on = || !self.bell.is_stopping();
        let cycle = self.store.cycle();
        let mut moved_bytes = 0;
        let Some(mut plan) = self.store.plan(wanted, &go_on)? else {
            return Ok(moved_bytes);
        };
        if self.dry_run {
            for victim in &plan.victims {
                report.layer(victim.layer, victim.bytes, victim.reason);
            }
        } else {
            for victim in self.store.evict(&mut plan)? {
                tracing::info!(layer = %victim.layer, bytes = victim.bytes, reason = victim.reason.name(), "a layer is evicted");
                report.layer(victim.layer, victim.bytes, victim.reason);
            }
        }
        let mut all = Vec::new();
        let (current, end) = self.store.current_pack();
        let packs = self.store.sealed_packs();
        let crowded = plan.unready > self.unready_max || self.turn;
        let turned = packs.first().map(|(id, _)| *id).filter(|_| crowded);
        facts.retain(|pack, _| packs.iter().any(|(id, _)| id == pack));
        for (pack, len) in packs.into_iter().chain([(current, end)]) {
            let is_current = pack == current;
            let known = facts.get(&pack).copied().filter(|_| !is_current);
            let of_facts = match known {
                Some(bytes) => bytes,
                None => self.store.overhead(pack, len, &go_on)?,
            };
            if !is_current {
                facts.insert(pack, of_facts);
            }
            let live = plan.live.by_pack.get(&pack).copied().unwrap_or(0) + of_facts.bytes();
            all.push(Candidate {
                pack,
                len,
                live: live.min(len),
                current: is_current,
            });
        }
        all.sort_unstable_by_key(|c| (c.live * 1000 / c.len.max(1), c.pack));
        let mut held = self.store.pack_bytes();
        for candidate in all {
            let garbage = candidate.len - candidate.live;
            let worth = candidate.live * 100 <= candidate.len * LIVE_PERCENT_WORTH
                || (held > self.packs_bytes_wanted && garbage * 100 >= candidate.len * GARBAGE_PERCENT_MIN);
            // The current one is mostly new: what is mostly garbage is worth a roll, or what the operator waits for.
            let enough = self.packs_bytes_wanted == 0 && garbage >= GARBAGE_WORTH_ROLL;
            let too_small = candidate.current && !enough && garbage * 100 < candidate.len * LIVE_PERCENT_WORTH;
            let useless = garbage <= crate::store::EMPTY_PACK_BYTES || !worth || too_small;
            if (useless && turned != Some(candidate.pack)) || !go_on() {
                continue;
            }
            if self.dry_run {
                report.packs_count += 1;
                report.packs_bytes += garbage;
                held -= garbage;
                continue;
            }
            if candidate.current {
                self.store.seal_current_pack()?;
            }
            let mut debt = 0;
            let mut step = |step: Step| {
                if let Step::Record { moved_bytes } = step {
                    debt += moved_bytes;
                }
                if debt >= BURST_BYTES && !self.urgent {
                    self.bell.pause(Duration::from_micros(debt * 1_000_000 / BYTES_PER_SEC));
                    debt = 0;
                }
                !self.bell.is_stopping()
            };
            if let Some(swept) = self.store.sweep_pack(&cycle, candidate.pack, &plan.live, &mut step)? {
                report.packs_count += 1;
                report.packs_bytes += swept.pack_bytes.saturating_sub(swept.moved_bytes);
                moved_bytes += swept.moved_bytes;
                tracing::info!(
                    pack = candidate.pack.0,
                    bytes = swept.pack_bytes,
                    moved_bytes = swept.moved_bytes,
                    "a pack is reclaimed"
                );
            }
            held = self.store.pack_bytes();
        }
        Ok(moved_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It was judged by the bytes of all packs, before and after: beside conversions that wrote more than was freed, the next
    /// cycle was put off by twenty times what this one took, and they failed for want of room.
    #[test]
    fn a_cycle_that_freed_something_for_its_writing_is_not_idle() {
        assert!(is_idle(0, 0) && is_idle(0, 1 << 20));
        assert!(is_idle(224, 530_051), "nothing but a header and a footer");
        assert!(!is_idle(312_577, 0) && !is_idle(100_000, 1 << 20));
        assert!(!is_idle(u64::MAX, u64::MAX));
    }
}
