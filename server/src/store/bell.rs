//! What wakes the reclaimer: one bell that originals, packs and the operator ring.
//!
//! In: reasons, from any thread. Out: a wait that ends when somebody rang.
//! Invariant: ringing never blocks on work and is never lost: a reason stays until it is taken.
//! Not here: what is done about it ([`crate::reclaim`]).

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Why the reclaimer is to look now and not at its next round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rung {
    /// A budget is exceeded.
    pub over_budget: bool,
    /// A write failed for want of space.
    pub disk_full: bool,
    /// The operator wants something.
    pub order: bool,
    /// The server is stopping.
    pub stop: bool,
}

impl Rung {
    fn any(self) -> bool {
        self.over_budget || self.disk_full || self.order || self.stop
    }
}

/// Clones ring the same bell.
#[derive(Clone, Debug, Default)]
pub struct Bell(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    rung: Mutex<Rung>,
    changed: Condvar,
}

impl Bell {
    /// Rings. `set` marks the reason.
    pub fn ring(&self, set: impl FnOnce(&mut Rung)) {
        set(&mut self.rung());
        self.0.changed.notify_all();
    }

    /// Whether the server is stopping: asked between the steps of long work.
    pub fn is_stopping(&self) -> bool {
        self.rung().stop
    }

    /// Waits until somebody rings, at most `period`, and takes the reasons. `stop` stays.
    pub fn wait(&self, period: Duration) -> Rung {
        let guard = self.rung();
        let (mut rung, _) = self
            .0
            .changed
            .wait_timeout_while(guard, period, |rung| !rung.any())
            .unwrap_or_else(PoisonError::into_inner);
        let taken = *rung;
        *rung = Rung {
            stop: taken.stop,
            ..Rung::default()
        };
        taken
    }

    /// Sleeps, but not beyond a stop.
    pub fn pause(&self, time: Duration) {
        let guard = self.rung();
        let waited = self.0.changed.wait_timeout_while(guard, time, |rung| !rung.stop);
        drop(waited);
    }

    fn rung(&self) -> MutexGuard<'_, Rung> {
        // Independent flags: nothing can be half-changed.
        self.0.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
