//! Whether what a layer's readers will need has been fetched by somebody who knows it.
//!
//! In: starts that follow a profile. Out: a yes while one of them goes on. Invariant: a guard that is dropped is counted down.
//! Not here: what is left out for it (`cache/reader.rs`), and when a start is over (`profile/starts.rs`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Clone, Debug, Default)]
pub(super) struct Foresight(Arc<AtomicUsize>);

/// A start whose reads are known.
#[derive(Debug)]
pub struct Foreseen(Arc<AtomicUsize>);

impl Foresight {
    pub(super) fn begin(&self) -> Foreseen {
        self.0.fetch_add(1, Ordering::Relaxed);
        Foreseen(Arc::clone(&self.0))
    }

    pub(super) fn is(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }
}

impl Drop for Foreseen {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_as_long_as_any_of_them() {
        let foresight = Foresight::default();
        assert!(!foresight.is());
        let (one, other) = (foresight.begin(), foresight.begin());
        drop(one);
        assert!(foresight.is());
        drop(other);
        assert!(!foresight.is());
    }
}
