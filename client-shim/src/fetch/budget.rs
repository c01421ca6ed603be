//! Memory for chunks in flight, on the whole node.
//!
//! In: how many bytes a fetch may hold. Out: a permit, after waiting in line.
//! Invariant: the permits out never exceed the budget, except that one fetch larger than all of it runs alone.
//! Not here: priorities; a prefetch asks [`Budget::try_acquire`] and gives up, so demand reads never wait behind a
//! queue of prefetches.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Permits count KiB, so that budgets of up to 4 TiB fit a `u32`.
const UNIT: u64 = 1024;

#[derive(Clone, Debug)]
pub(super) struct Budget {
    permits: Arc<Semaphore>,
    total: u32,
}

impl Budget {
    pub(super) fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX).max(1);
        // `Semaphore::MAX_PERMITS` is above u32::MAX on 64-bit machines; smaller ones are clipped.
        let total = total.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self {
            permits: Arc::new(Semaphore::new(total as usize)),
            total,
        }
    }

    fn cost(&self, bytes: u64) -> u32 {
        u32::try_from(bytes.div_ceil(UNIT))
            .unwrap_or(u32::MAX)
            .clamp(1, self.total)
    }

    /// Waits in line. `None` never happens while `self` lives: the semaphore is not closed.
    pub(super) async fn acquire(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits)
            .acquire_many_owned(self.cost(bytes))
            .await
            .ok()
    }

    /// At once or not at all.
    pub(super) fn try_acquire(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.permits).try_acquire_many_owned(self.cost(bytes)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_over_the_whole_budget_runs_alone() {
        let budget = Budget::new(1 << 20);
        let all = budget.try_acquire(1 << 40);
        assert!(all.is_some());
        assert!(budget.try_acquire(1).is_none());
        drop(all);
        assert!(budget.try_acquire(1).is_some());
    }
}
