//! Reclaiming: one thread that keeps originals and packs within their budgets.
//!
//! In: budgets, a bell, the operator's orders. Out: less on the disk, and what was done about it.
//! Invariant: one thread, at low priority, decides and deletes; it waits for nothing but the bell and stops promptly.
//! Nothing goes from under a reader: originals are unlinked (readers hold open files), layers that are read are held,
//! and records that move are looked up again. Memberships and facts stay, so that a later request simply fetches again,
//! up to a share of the budget: then those of images that are gone longest go.
//! Here is when; a round is in [`round`], the operator's orders are in [`order`].
//! Not here: what is old ([`crate::store::usage`]), which layers ([`crate::store::plan`]), how a pack is emptied
//! ([`crate::store::sweep`]).

mod order;
mod originals;
mod packs;
mod report;
mod rest;
mod round;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::Budgets;
use crate::metrics::Metrics;
use crate::metrics::names::{Gauge, Seconds};
use crate::orders::{OrderError, Orders, Worker};
use crate::store::bell::{Bell, Rung};
use crate::store::leftovers::Remove;
use crate::store::originals::Originals;
use crate::store::pins::PINS_MAX;
use crate::store::usage::SAVE_EVERY_MS;
use crate::store::{Store, StoreError};
pub use order::Order;
use packs::FactBytes;
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
/// The index is looked at so often as configured, or after this many times what it took: to count its rows is to read
/// some of them.
const INDEX_TIMES: u32 = 200;
/// Nice value: serving and converting go first.
const NICENESS: i32 = 15;
/// Orders waiting at once; an operator gives one at a time.
const ORDERS_MAX: usize = 16;

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
