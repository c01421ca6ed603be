//! One round: what is over a budget or too old, originals first, then packs.
//!
//! In: who rang, what is remembered. Out: a [`Report`]. Invariant: neither budget takes from the other; what must stay
//! free on the disk stands above both.
//! Not here: when there is one ([`super`]), which originals ([`super::originals`]), a cycle over the packs
//! ([`super::packs`]).

use std::collections::HashSet;
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;

use super::packs::Cycle;
use super::report::Report;
use super::rest::Rest;
use super::{Inner, Memory, ReclaimError, originals, packs};
use crate::metrics::names::{Count, Gauge};
use crate::store::bell::Rung;
use crate::store::forget::Here;
use crate::store::plan::{Reason, Wanted};
use crate::store::sweep::Overhead;
use crate::store::usage::now_ms;

/// What a full disk costs at least: less would be asked for again at once.
const DISK_FULL_BYTES: u64 = 64 << 20;
/// Of the budget of packs, for facts; then some are forgotten, down to three quarters of that.
const FACTS_SHARE: u64 = 8;
/// When all that is known is pinned, it is looked again after this.
const FORGET_PAUSE: Duration = Duration::from_secs(600);
/// Unlinking a large file takes milliseconds of the file system's journal.
const UNLINK_PAUSE: Duration = Duration::from_millis(1);

impl Inner {
    /// What a ring, or the clock, makes necessary.
    pub(super) fn round(&self, rung: Rung, memory: &mut Memory) -> Result<(), ReclaimError> {
        let mut report = Report::default();
        let mut needed = self.bytes_short()?;
        if rung.disk_full {
            needed = needed.max(DISK_FULL_BYTES);
        }
        self.originals_round(needed, false, &mut report)?;
        let still_needed = needed.saturating_sub(report.originals_bytes);
        let held = self.store.pack_bytes();
        let over = held > self.store.reclaim_above();
        let ages = self.are_ages_due(memory);
        let waited_for = self.store.is_waited_for();
        let rests = |rest: Rest| !rest.is_over(Instant::now(), waited_for);
        if !(over || ages || memory.crowded || still_needed > 0) || memory.rest.is_some_and(rests) {
            return Ok(());
        }
        let forgotten = self.forget_facts(memory)?;
        let mut wanted = self.wanted(memory)?;
        if forgotten {
            // What is left of them is found out anew.
            memory.facts.clear();
        }
        let mut packs_bytes_wanted = self.low_water();
        if still_needed > 0 {
            packs_bytes_wanted = packs_bytes_wanted.min(held.saturating_sub(still_needed));
            if wanted.bytes_max > packs_bytes_wanted {
                wanted.bytes_max = packs_bytes_wanted;
                wanted.reason = Reason::DiskFull;
            }
        }
        let urgent = still_needed > 0 || held > self.store.bytes_max();
        let began = Instant::now();
        let swept = self.packs_round(wanted, packs_bytes_wanted, urgent, false, memory, &mut report);
        memory.crowded = false;
        let idle = match &swept {
            Ok(moved_bytes) => packs::is_idle(report.packs_bytes, *moved_bytes),
            Err(_) => true,
        };
        memory.rest = idle.then(|| Rest::after(began));
        swept.map(drop)
    }

    /// Facts of images that are gone, when facts have too much of the budget. Whether any were forgotten.
    pub(super) fn forget_facts(&self, memory: &mut Memory) -> Result<bool, ReclaimError> {
        let max = match self.budgets.chunks_bytes_max {
            u64::MAX => u64::MAX,
            max => max / FACTS_SHARE,
        };
        let held: u64 = memory.facts.values().map(|overhead| overhead.facts).sum();
        let waits = memory.forget_after.is_some_and(|at| Instant::now() < at);
        if held <= max || waits || !self.originals.usage().is_scanned() {
            return Ok(false);
        }
        let originals = self.originals.usage().oldest_first().into_iter();
        let here = Here {
            originals: originals.map(|kept| (kept.digest, kept.used_unix_ms)).collect(),
            pinned: self.store.pinned()?,
        };
        let bytes = held - max / 4 * 3;
        let rows = self.store.forget_facts(bytes, &here, &|| !self.bell.is_stopping())?;
        tracing::info!(rows, bytes, "facts of images that are gone are forgotten");
        memory.turn = rows != Some(0);
        memory.forget_after = (rows == Some(0)).then(|| Instant::now() + FORGET_PAUSE);
        Ok(memory.turn)
    }

    /// Ages are looked at four times within the shortest of them, and not all the time.
    fn are_ages_due(&self, memory: &mut Memory) -> bool {
        let Some(ttl_ms) = self.budgets.chunks_ttl_ms else {
            return false;
        };
        let every = Duration::from_millis(ttl_ms / 4);
        if memory.ages_looked_at.is_some_and(|at| at.elapsed() < every) {
            return false;
        }
        memory.ages_looked_at = Some(Instant::now());
        true
    }

    /// Rewriting ends here: between what may live and where a cycle begins.
    fn low_water(&self) -> u64 {
        match self.budgets.chunks_bytes_max {
            u64::MAX => u64::MAX,
            max => max / 16 * 13,
        }
    }

    /// By budget and age.
    pub(super) fn wanted(&self, memory: &Memory) -> Result<Wanted, ReclaimError> {
        let used_before_unix_ms = self.budgets.chunks_ttl_ms.map_or(0, |ttl| now_ms().saturating_sub(ttl));
        Ok(Wanted {
            bytes_max: match self.budgets.chunks_bytes_max {
                u64::MAX => u64::MAX,
                // Facts and footers stay, as many as there are: layers have what is left.
                max => (max / 4 * 3).saturating_sub(memory.facts.values().map(Overhead::bytes).sum()),
            },
            reason: Reason::Budget,
            used_before_unix_ms,
            pinned: self.store.pinned()?,
            removed: HashSet::new(),
            refusals_max: self.budgets.refusals_max,
        })
    }

    /// Bytes by which the disk is below what must stay free.
    pub(super) fn bytes_short(&self) -> Result<u64, ReclaimError> {
        let stat = rustix::fs::statvfs(&self.data_dir).map_err(std::io::Error::from)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok(self.budgets.free_bytes_min.saturating_sub(free))
    }

    pub(super) fn originals_round(
        &self,
        needed_bytes: u64,
        dry_run: bool,
        report: &mut Report,
    ) -> Result<(), ReclaimError> {
        if !self.originals.usage().is_scanned() {
            return Ok(());
        }
        let partials = self.originals.partials();
        let partial_bytes: u64 = partials.iter().map(|p| p.bytes).sum();
        self.metrics.set(Gauge::HeldBytes, partial_bytes, &["partials"]);
        let total = self.originals.usage().bytes() + partial_bytes;
        let ages = self.budgets.originals_ttl_ms.is_some() || self.budgets.manifests_ttl_ms.is_some();
        if total <= self.budgets.originals_bytes_max && needed_bytes == 0 && !ages {
            return Ok(());
        }
        let pinned = self.store.pinned()?;
        let kept = self.originals.usage().oldest_first();
        let held = originals::Held {
            kept: &kept,
            partials: &partials,
            pinned: &pinned,
            now_ms: now_ms(),
            needed_bytes,
        };
        let is_manifest = |digest: &BlobDigest| Ok(self.store.sure_manifest(digest)?.is_some());
        for victim in originals::choose(&held, &self.budgets, is_manifest)? {
            if self.bell.is_stopping() {
                break;
            }
            if dry_run {
                report.original(victim.digest, victim.bytes, victim.reason);
                continue;
            }
            if victim.partial {
                let idle = Duration::from_millis(originals::PARTIAL_IDLE_MS);
                if self
                    .originals
                    .remove_partials(&victim.digest, idle, &self.unless_in_use)?
                    == 0
                {
                    continue;
                }
            } else {
                self.originals.remove(&victim.digest)?;
            }
            self.count_original(&victim.digest, victim.bytes, victim.reason, report);
            if needed_bytes == 0 {
                self.bell.pause(UNLINK_PAUSE);
            }
        }
        Ok(())
    }

    pub(super) fn count_original(&self, digest: &BlobDigest, bytes: u64, reason: Reason, report: &mut Report) {
        tracing::debug!(%digest, bytes, reason = reason.name(), "an original is evicted");
        report.original(*digest, bytes, reason);
        self.metrics.add(Count::Evictions, 1, &["original", reason.name()]);
        self.metrics.add(Count::ReclaimedBytes, bytes, &["originals"]);
    }

    pub(super) fn packs_round(
        &self,
        wanted: Wanted,
        packs_bytes_wanted: u64,
        urgent: bool,
        dry_run: bool,
        memory: &mut Memory,
        report: &mut Report,
    ) -> Result<u64, ReclaimError> {
        let cycle = Cycle {
            store: &self.store,
            bell: &self.bell,
            packs_bytes_wanted,
            unready_max: self.unready_max(),
            turn: (std::mem::take(&mut memory.turn) || memory.crowded) && !dry_run,
            urgent,
            dry_run,
        };
        let done = cycle.run(&wanted, &mut memory.facts, report);
        if !dry_run {
            for gone in &report.layers {
                self.metrics.add(Count::Evictions, 1, &["layer", &gone.reason]);
            }
            self.metrics.add(Count::ReclaimedBytes, report.packs_bytes, &["packs"]);
        }
        Ok(done?)
    }
}
