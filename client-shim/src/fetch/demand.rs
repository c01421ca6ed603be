//! Whether a reader waits for bytes now, anywhere on the node.
//!
//! In: fetches that readers wait for. Out: a number, and a wait for quiet. Invariant: a guard that is dropped is counted down,
//! however its fetch ended. Not here: what gives way (`fetch/run.rs`, the background fill).

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

#[derive(Debug)]
pub struct Demand {
    waiting: watch::Sender<usize>,
}

/// A fetch that a reader waits for.
#[derive(Debug)]
pub(super) struct Waiting<'a>(&'a Demand);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|n| *n = n.saturating_sub(1));
    }
}

impl Demand {
    pub(super) fn new() -> Self {
        Self {
            waiting: watch::Sender::new(0),
        }
    }

    pub(super) fn begin(&self) -> Waiting<'_> {
        self.waiting.send_modify(|n| *n += 1);
        Waiting(self)
    }

    pub fn is_quiet(&self) -> bool {
        *self.waiting.borrow() == 0
    }

    /// Returns when nobody waits, or after `patience`; says which.
    pub async fn quiet(&self, patience: Duration) -> bool {
        let mut watch = self.waiting.subscribe();
        let quiet = watch.wait_for(|n| *n == 0);
        timeout(patience, quiet).await.is_ok()
    }

    /// As [`Demand::quiet`], but no longer than until `stop` says so; asked every few milliseconds.
    pub(super) async fn quiet_unless(&self, patience: Duration, stop: impl Fn() -> bool) {
        const LOOK: Duration = Duration::from_millis(5);
        let until = Instant::now() + patience;
        while !self.is_quiet() && !stop() && Instant::now() < until {
            self.quiet(LOOK).await;
        }
    }
}
