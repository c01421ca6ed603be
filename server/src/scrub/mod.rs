//! Scrubbing: everything that is kept is read again now and then, and compared with what it should be.
//!
//! In: originals, the store, an interval, orders of the operator. Out: damage is set aside or forgotten, so that it is a
//! miss before somebody asks for it; metrics, and reports.
//! Invariant: one thread, at the lowest priority and a bounded rate; it stops promptly, and goes on where it was after a
//! restart. An order comes first: the pass that runs by itself waits for its end. Without `repair` an order changes
//! nothing.
//! Not here: the checks ([`pass`], [`crate::store::audit`]), and the same without a server ([`offline`]).

pub mod offline;
mod pace;
mod pass;
mod position;
mod quarantine;
mod report;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::watch;

pub use self::report::{Damage, Progress, Report};
use self::{
    pass::{Ended, Pass, Runner, ScrubError, Told},
    position::{Position, State},
    quarantine::Quarantine,
};
use crate::{
    config::ScrubConfig,
    metrics::{Metrics, names::Count},
    orders::{OrderError, Orders, Worker},
    reclaim::{self, Reclaimer},
    store::{PackId, Store, bell::Bell, originals::Originals, usage::now_ms},
};

/// After a start, before the first look: a server that has just come back has other things to do.
const START_DELAY: Duration = Duration::from_secs(600);
/// Nice value: everything else goes first.
const NICENESS: i32 = 19;
/// The position is written at most this often.
const SAVE_EVERY: Duration = Duration::from_secs(10);
/// After a pass that failed.
const RETRY: Duration = Duration::from_secs(3600);
/// Orders waiting at once; an operator gives one at a time.
const ORDERS_MAX: usize = 4;

/// What the operator wants.
#[derive(Debug)]
pub struct Order {
    pub repair: bool,
    /// 0: no bound. `None`: as configured.
    pub bytes_per_sec: Option<u64>,
    /// Told how far it is; nobody left to listen ends it.
    pub progress: watch::Sender<Progress>,
}

/// Clones talk to the same thread.
#[derive(Clone, Debug)]
pub struct Scrubber {
    inner: Arc<Inner>,
    worker: Arc<Worker>,
}

#[derive(Debug)]
struct Inner {
    data_dir: PathBuf,
    originals: Originals,
    store: Store,
    reclaimer: Reclaimer,
    config: ScrubConfig,
    metrics: Metrics,
    bell: Bell,
    orders: Orders<Order, Report>,
}

impl Scrubber {
    pub fn start(
        data_dir: PathBuf,
        originals: Originals,
        store: Store,
        reclaimer: Reclaimer,
        config: ScrubConfig,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let bell = Bell::default();
        let inner = Arc::new(Inner {
            data_dir,
            originals,
            store,
            reclaimer,
            config,
            metrics,
            orders: Orders::new("check the data", ORDERS_MAX, bell.clone()),
            bell: bell.clone(),
        });
        let worker = Worker::start("scrub", NICENESS, bell, {
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

    /// Ends the thread at its next step. Blocks.
    pub fn stop(&self) {
        self.worker.stop();
    }
}

impl Inner {
    fn run(&self) {
        let interval = Duration::from_millis(self.config.interval_ms);
        let mut state = State::load(&self.data_dir);
        let mut not_before = Instant::now() + START_DELAY.min(interval);
        while !self.bell.is_stopping() {
            self.carry_out_orders();
            state.is_now(now_ms());
            let wait = match self.config.interval_ms {
                0 => Duration::MAX,
                _ => not_before
                    .saturating_duration_since(Instant::now())
                    .max(self.pass_due_in(&state)),
            };
            if wait.is_zero() {
                not_before = Instant::now() + self.by_itself(&mut state);
                continue;
            }
            // A while at a time: the clock by which passes are due may be set.
            self.bell.wait(wait.min(RETRY));
        }
        self.orders.refuse_all();
    }

    fn pass_due_in(&self, state: &State) -> Duration {
        if state.position.is_some() {
            return Duration::ZERO;
        }
        state.due_in(self.config.interval_ms, now_ms())
    }

    /// A pass, or the rest of one. How long to wait at least before the next.
    fn by_itself(&self, state: &mut State) -> Duration {
        let from = state.position.take().unwrap_or_default();
        tracing::debug!(?from, "a scrub begins");
        let mut runner = ByItself {
            inner: self,
            state,
            saved: Instant::now(),
        };
        runner.state.position = Some(from.clone());
        let ended = self.pass(&mut runner, self.config.bytes_per_sec, true, &from);
        let pause = match &ended {
            Ok(ended) if ended.whole => {
                let report = &ended.report;
                *state = State {
                    ended_unix_ms: now_ms(),
                    position: None,
                };
                tracing::info!(
                    originals_bytes = report.originals_bytes,
                    packs_bytes = report.packs_bytes,
                    rows = report.rows_count,
                    damaged = report.damaged_count,
                    repaired = report.repaired_count,
                    "everything was read again"
                );
                Duration::ZERO
            }
            // Told to stop, or to carry out an order.
            Ok(ended) if !ended.reopen => Duration::ZERO,
            Ok(_) => RETRY,
            Err(error) => {
                tracing::error!(%error, "a scrub failed");
                RETRY
            }
        };
        if let Err(error) = state.save(&self.data_dir) {
            tracing::warn!(%error, "the position of the scrub is not saved");
        }
        pause
    }

    fn carry_out_orders(&self) {
        while let Some((order, reply)) = self.orders.next() {
            let rate = order.bytes_per_sec.unwrap_or(self.config.bytes_per_sec);
            let repair = order.repair;
            let mut runner = ByOrder { inner: self, order };
            let done = match self.pass(&mut runner, rate, repair, &Position::default()) {
                Ok(ended) if ended.whole || !self.bell.is_stopping() => Ok(ended.report),
                Ok(_) => Err("check the data: the server is stopping".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            // Whoever asked may have gone.
            let _ = reply.send(done);
        }
    }

    fn pass(&self, runner: &mut dyn Runner, rate: u64, repair: bool, from: &Position) -> Result<Ended, ScrubError> {
        let quarantine = Quarantine::new(&self.data_dir, self.config.quarantine_bytes_max);
        Pass::new(&self.originals, &self.store, &quarantine, runner, rate, repair).run(from)
    }

    fn count(&self, told: &Told<'_>) {
        match told {
            Told::Read(what, bytes, _) => self.metrics.add(Count::ScrubbedBytes, *bytes, &[what]),
            Told::Damage(damage) => {
                tracing::error!(
                    what = damage.what,
                    name = damage.name,
                    why = damage.why,
                    repaired = damage.repaired,
                    "a scrub found damage"
                );
                self.metrics.add(Count::ScrubDamage, 1, &[&damage.what]);
            }
            Told::At(_) => {}
        }
    }

    /// By the one thread that deletes packs.
    fn rewrite(&self, packs: &[PackId]) -> Result<(), String> {
        let order = reclaim::Order::Rewrite(packs.to_vec());
        match self.reclaimer.order_blocking(order) {
            Ok(report) if report.packs_count == packs.len() as u64 => Ok(()),
            Ok(_) => Err("rewrite packs: the server is stopping".into()),
            Err(error) => Err(error.to_string()),
        }
    }
}

struct ByItself<'a> {
    inner: &'a Inner,
    state: &'a mut State,
    saved: Instant,
}

impl Runner for ByItself<'_> {
    fn go_on(&self) -> bool {
        !self.inner.bell.is_stopping() && self.inner.orders.is_empty()
    }

    fn rest(&self, time: Duration) {
        self.inner.bell.pause(time);
    }

    fn tell(&mut self, told: Told<'_>) {
        self.inner.count(&told);
        if let Told::At(position) = told {
            self.state.position = Some(position.clone());
            if self.saved.elapsed() >= SAVE_EVERY {
                self.saved = Instant::now();
                if let Err(error) = self.state.save(&self.inner.data_dir) {
                    tracing::warn!(%error, "the position of the scrub is not saved");
                }
            }
        }
    }

    fn rewrite(&self, packs: &[PackId]) -> Result<(), String> {
        self.inner.rewrite(packs)
    }
}

struct ByOrder<'a> {
    inner: &'a Inner,
    order: Order,
}

impl Runner for ByOrder<'_> {
    fn go_on(&self) -> bool {
        !self.inner.bell.is_stopping() && !self.order.progress.is_closed()
    }

    fn rest(&self, time: Duration) {
        self.inner.bell.pause(time);
    }

    fn tell(&mut self, told: Told<'_>) {
        self.inner.count(&told);
        if let Told::Read(_, _, progress) = told {
            // The latest is enough; nobody may listen.
            let _ = self.order.progress.send(progress);
        }
    }

    fn rewrite(&self, packs: &[PackId]) -> Result<(), String> {
        self.inner.rewrite(packs)
    }
}
