//! Upstreams that have sent wrong bytes lately.
//!
//! In: an upstream whose bytes were not what their digest names. Out: whether it is suspected of sending more of them.
//! Invariant: an entry is an upstream of the configuration, so there are no more of them, whatever clients ask for.
//! Manifests do not count: they are compared as a whole before anything of one goes out, and the digest that comes with
//! some old ones is not that of their bytes.
//! Not here: what follows ([`super::blobs`]), and single blobs that were wrong ([`super::setbacks`]).

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What sends wrong bytes (a worn-out disk, a broken cache in between) is mended by people and not by itself: long enough
/// for the pulls of a rollout, and short enough that one bad transfer does not slow down cold pulls for a day.
pub const SUSPECTED: Duration = Duration::from_secs(3600);

/// All of them.
#[derive(Debug)]
pub struct Suspects {
    lasts: Duration,
    /// When each of them was last wrong.
    wrong: Mutex<HashMap<String, Instant>>,
}

impl Suspects {
    pub fn new(lasts: Duration) -> Self {
        Self {
            lasts,
            wrong: Mutex::default(),
        }
    }

    /// It has sent wrong bytes. Whether nobody suspected it before.
    pub fn add(&self, upstream: &str) -> bool {
        self.add_at(upstream, Instant::now())
    }

    pub fn has(&self, upstream: &str) -> bool {
        self.has_at(upstream, Instant::now())
    }

    fn add_at(&self, upstream: &str, now: Instant) -> bool {
        let before = self.wrong().insert(upstream.to_owned(), now);
        before.is_none_or(|at| now.saturating_duration_since(at) >= self.lasts)
    }

    fn has_at(&self, upstream: &str, now: Instant) -> bool {
        let at = self.wrong().get(upstream).copied();
        at.is_some_and(|at| now.saturating_duration_since(at) < self.lasts)
    }

    fn wrong(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        // Only whole inserts happen under the lock.
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspicion_is_of_one_upstream_and_ends() {
        let suspects = Suspects::new(SUSPECTED);
        let (begun, secs) = (Instant::now(), Duration::from_secs);
        assert!(!suspects.has("a"));
        assert!(suspects.add_at("a", begun) && suspects.has("a") && !suspects.has("b"));
        let again = begun + SUSPECTED / 2;
        assert!(!suspects.add_at("a", again), "it is no news");
        assert!(suspects.has_at("a", begun + SUSPECTED), "the last time counts");
        assert!(suspects.has_at("a", again + SUSPECTED - secs(1)));
        let over = again + SUSPECTED;
        assert!(!suspects.has_at("a", over));
        assert!(
            suspects.add_at("a", over) && suspects.has_at("a", over),
            "it is suspected anew"
        );
    }
}
