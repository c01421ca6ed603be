//! Reclaiming: one thread that keeps originals and packs within their budgets.
//!
//! In: budgets, a bell, the operator's orders. Out: less on the disk, and what was done about it.
//! Invariant: one thread, at low priority, decides and deletes; it waits for nothing but the bell and stops promptly.
//! Nothing goes from under a reader: originals are unlinked (readers hold open files), layers that are read are held, and
//! records that move are looked up again. Memberships and facts stay, so that a later request simply fetches again, up to
//! a share of the budget: then those of images that are gone longest go.
//! Not here: what is old ([`crate::store::usage`]), which layers ([`crate::store::plan`]), how a pack is emptied
//! ([`crate::store::sweep`]).

mod originals;
mod packs;
mod report;
mod rest;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use headstart_layer_format::BlobDigest;

use crate::config::Budgets;
use crate::metrics::Metrics;
use crate::metrics::names::{Count, Gauge, Seconds};
use crate::orders::{OrderError, Orders, Worker};
use crate::store::bell::{Bell, Rung};
use crate::store::forget::Here;
use crate::store::leftovers::Remove;
use crate::store::originals::Originals;
use crate::store::pins::PINS_MAX;
use crate::store::plan::{Reason, Wanted};
use crate::store::sweep::Overhead;
use crate::store::usage::{SAVE_EVERY_MS, now_ms};
use crate::store::{PackId, Store, StoreError};
use packs::{Cycle, FactBytes};
pub use report::{Gone, Report};
use rest::Rest;

/// A look at the budgets, also when nobody rings: the free space of the disk changes without us.
const PERIOD: Duration = Duration::from_secs(20);
/// Last uses of layers are one row each, in one batch.
const SAVE_LAYERS_EVERY_MS: u64 = 600_000;
/// Between two rounds, however often the bell rings: so many times what the last one took, within these.
const PAUSE_TIMES: u32 = 4;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// The index is looked at so often as configured, or after this many times what it took: to count its rows is to read some
/// of them.
const INDEX_TIMES: u32 = 200;
/// What a full disk costs at least: less would be asked for again at once.
const DISK_FULL_BYTES: u64 = 64 << 20;
/// Of the budget of packs, for facts; then some are forgotten, down to three quarters of that.
const FACTS_SHARE: u64 = 8;
/// When all that is known is pinned, it is looked again after this.
const FORGET_PAUSE: Duration = Duration::from_secs(600);
/// Nice value: serving and converting go first.
const NICENESS: i32 = 15;
/// Unlinking a large file takes milliseconds of the file system's journal.
const UNLINK_PAUSE: Duration = Duration::from_millis(1);
/// Orders waiting at once; an operator gives one at a time.
const ORDERS_MAX: usize = 16;

/// What the operator wants.
#[derive(Clone, Debug)]
pub enum Order {
    /// A full round: budgets, ages, and every pack that is worth it.
    Collect { dry_run: bool },
    /// These originals and layers go, pinned or not.
    Remove(HashSet<BlobDigest>),
    /// What can be read of these packs moves to the end of the log; they go.
    Rewrite(Vec<PackId>),
}

/// Runs what it is given unless a fetch with this partial is under way; none begins meanwhile.
pub type UnlessInUse = Box<dyn Fn(&Path, Remove<'_>) + Send + Sync>;

/// Clones talk to the same thread.
#[derive(Clone, Debug)]
pub struct Reclaimer {
    inner: Arc<Inner>,
    worker: Arc<Worker>,
}

struct Inner {
    data_dir: PathBuf,
    originals: Originals,
    store: Store,
    budgets: Budgets,
    metrics: Metrics,
    bell: Bell,
    orders: Orders<Order, Report>,
    unless_in_use: UnlessInUse,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("budgets", &self.budgets)
            .finish_non_exhaustive()
    }
}

impl Reclaimer {
    /// Starts the thread. It first finds out what there is; nothing is evicted before.
    pub fn start(
        data_dir: PathBuf,
        originals: Originals,
        store: Store,
        budgets: Budgets,
        metrics: Metrics,
        unless_in_use: UnlessInUse,
    ) -> std::io::Result<Self> {
        let bell = originals.bell().clone();
        originals.set_bytes_max(budgets.originals_bytes_max);
        store.set_bytes_max(budgets.chunks_bytes_max, bell.clone());
        let inner = Arc::new(Inner {
            data_dir,
            originals,
            store,
            budgets,
            metrics,
            orders: Orders::new("reclaim", ORDERS_MAX, bell.clone()),
            bell: bell.clone(),
            unless_in_use,
        });
        let worker = Worker::start("reclaim", NICENESS, bell, {
            let inner = inner.clone();
            move || inner.run()
        })?;
        Ok(Self {
            inner,
            worker: Arc::new(worker),
        })
    }

    /// Has an order carried out; waits for it.
    pub async fn order(&self, order: Order) -> Result<Report, OrderError> {
        self.inner.orders.order(order).await
    }

    /// The same for a thread of its own.
    pub fn order_blocking(&self, order: Order) -> Result<Report, OrderError> {
        self.inner.orders.order_blocking(order)
    }

    /// Ends the thread, at its next step, and writes down what was used when. Blocks.
    pub fn stop(&self) {
        self.worker.stop();
    }
}

/// What the thread remembers between rounds.
#[derive(Debug, Default)]
struct Memory {
    facts: FactBytes,
    /// After a cycle that was not worth it.
    rest: Option<Rest>,
    ages_looked_at: Option<Instant>,
    /// There are too many layers that are refused or not converted any more, or targets that are not pinned any more.
    crowded: bool,
    /// Facts were forgotten: records of theirs wait for the oldest pack's turn.
    turn: bool,
    /// There was none to forget: not again before this.
    forget_after: Option<Instant>,
}

impl Inner {
    fn run(&self) {
        let mut memory = Memory::default();
        let mut rung = Rung::default();
        let (mut round, mut saved): (Option<Instant>, Option<Instant>) = (None, None);
        let index_every = Duration::from_millis(self.budgets.index_look_ms);
        let mut look_at_index = Instant::now() + index_every;
        while !rung.stop {
            let started = Instant::now();
            if !self.originals.usage().is_scanned() {
                self.scan();
            }
            self.carry_out_orders(&mut memory);
            // An order is not a reason: a dry run must not bring forward what it foretells.
            if rung.over_budget || rung.disk_full || round.is_none_or(|at| at.elapsed() >= PERIOD) {
                round = Some(Instant::now());
                if let Err(error) = self.round(rung, &mut memory) {
                    tracing::error!(%error, "a round of reclaiming failed");
                }
            }
            if saved.is_none_or(|at| at.elapsed() >= PERIOD) {
                saved = Some(Instant::now());
                self.originals.save_uses(SAVE_EVERY_MS);
                self.save_layer_uses(SAVE_LAYERS_EVERY_MS);
            }
            if Instant::now() >= look_at_index {
                let began = Instant::now();
                self.compact_index();
                memory.crowded = self.is_crowded();
                let took = began.elapsed().saturating_mul(INDEX_TIMES);
                look_at_index = Instant::now() + took.max(index_every);
            }
            self.report_held();
            let took = started.elapsed();
            self.metrics.add_seconds(Seconds::Reclaim, took.as_secs_f64(), &[]);
            // Where nothing can go, the bell is rung without end; what comes meanwhile is not lost.
            self.bell.pause((took * PAUSE_TIMES).clamp(PAUSE_MIN, PAUSE_MAX));
            let next = round.map_or(PERIOD, |at| PERIOD.saturating_sub(at.elapsed()));
            rung = self.bell.wait(next.max(PAUSE_MIN));
        }
        self.originals.save_uses(0);
        self.save_layer_uses(0);
        self.orders.refuse_all();
    }

    /// Again in the next round when it fails: without it, no original goes.
    fn scan(&self) {
        if let Err(error) = self.originals.scan(|| !self.bell.is_stopping()) {
            tracing::error!(%error, "failed to find out which originals there are; none is evicted");
        }
    }

    fn save_layer_uses(&self, lag_ms: u64) {
        if let Err(error) = self.store.save_layer_uses(lag_ms) {
            tracing::warn!(%error, "last uses of layers are not saved");
        }
    }

    fn compact_index(&self) {
        if let Err(error) = self
            .store
            .compact_index_over(self.budgets.index_spare_bytes, &|| !self.bell.is_stopping())
        {
            tracing::warn!(%error, "the index is not compacted");
        }
    }

    fn is_crowded(&self) -> bool {
        let look = || {
            let unready = self.store.unready_layers()? > self.unready_max();
            Ok::<_, StoreError>(unready || self.store.unpinned_count()? > PINS_MAX)
        };
        match look() {
            Ok(is_crowded) => is_crowded,
            Err(error) => {
                tracing::warn!(%error, "failed to count what only the oldest pack may drop");
                false
            }
        }
    }

    /// Twice the refusals that are kept: those, and as many layers that were evicted.
    fn unready_max(&self) -> u64 {
        self.budgets.refusals_max.saturating_mul(2)
    }

    fn carry_out_orders(&self, memory: &mut Memory) {
        while let Some((order, reply)) = self.orders.next() {
            let done = match order {
                Order::Collect { dry_run } => self.collect(dry_run, memory),
                Order::Remove(digests) => self.remove(digests, memory),
                Order::Rewrite(packs) => self.rewrite(&packs),
            };
            // Whoever asked may have gone.
            let _ = reply.send(done.map_err(|error| error.to_string()));
        }
    }

    fn collect(&self, dry_run: bool, memory: &mut Memory) -> Result<Report, ReclaimError> {
        let mut report = Report {
            dry_run,
            ..Report::default()
        };
        self.originals_round(self.bytes_short()?, dry_run, &mut report)?;
        let forgotten = !dry_run && self.forget_facts(memory)?;
        let wanted = self.wanted(memory)?;
        if forgotten {
            memory.facts.clear();
        }
        self.packs_round(wanted, 0, false, dry_run, memory, &mut report)?;
        Ok(self.ended(report))
    }

    fn remove(&self, digests: HashSet<BlobDigest>, memory: &mut Memory) -> Result<Report, ReclaimError> {
        let mut report = Report::default();
        for digest in &digests {
            if let Some(kept) = self.originals.kept(digest) {
                self.originals.remove(digest)?;
                self.count_original(digest, kept.bytes, Reason::Removed, &mut report);
            }
            self.store.forget_refusal(digest)?;
        }
        let wanted = Wanted {
            removed: digests,
            ..self.wanted(memory)?
        };
        self.packs_round(wanted, 0, false, false, memory, &mut report)?;
        Ok(self.ended(report))
    }

    fn rewrite(&self, packs: &[PackId]) -> Result<Report, ReclaimError> {
        let report = Report {
            packs_count: self.store.rewrite_packs(packs, &|| !self.bell.is_stopping())?,
            ..Report::default()
        };
        Ok(self.ended(report))
    }

    fn ended(&self, mut report: Report) -> Report {
        report.originals_held_bytes = self.originals.usage().bytes();
        report.packs_held_bytes = self.store.pack_bytes();
        report
    }

    /// What a ring, or the clock, makes necessary.
    fn round(&self, rung: Rung, memory: &mut Memory) -> Result<(), ReclaimError> {
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
    fn forget_facts(&self, memory: &mut Memory) -> Result<bool, ReclaimError> {
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
    fn wanted(&self, memory: &Memory) -> Result<Wanted, ReclaimError> {
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
    fn bytes_short(&self) -> Result<u64, ReclaimError> {
        let stat = rustix::fs::statvfs(&self.data_dir).map_err(std::io::Error::from)?;
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok(self.budgets.free_bytes_min.saturating_sub(free))
    }

    fn originals_round(&self, needed_bytes: u64, dry_run: bool, report: &mut Report) -> Result<(), ReclaimError> {
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
        let is_manifest = |digest: &BlobDigest| Ok(self.store.manifest(digest)?.is_some());
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

    fn count_original(&self, digest: &BlobDigest, bytes: u64, reason: Reason, report: &mut Report) {
        tracing::debug!(%digest, bytes, reason = reason.name(), "an original is evicted");
        report.original(*digest, bytes, reason);
        self.metrics.add(Count::Evictions, 1, &["original", reason.name()]);
        self.metrics.add(Count::ReclaimedBytes, bytes, &["originals"]);
    }

    fn packs_round(
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

    fn report_held(&self) {
        let set = |kind, bytes| self.metrics.set(Gauge::HeldBytes, bytes, &[kind]);
        set("originals", self.originals.usage().bytes());
        set("packs", self.store.pack_bytes());
    }
}

#[derive(Debug, thiserror::Error)]
enum ReclaimError {
    #[error("reclaim: {0}")]
    Store(#[from] crate::store::StoreError),
    #[error("reclaim: {0}")]
    Io(#[from] std::io::Error),
}
