//! Upstreams that have sent wrong bytes lately.
//!
//! In: an upstream, and a blob of it whose bytes were not what its digest names. Out: whether it is suspected of sending
//! more of them.
//! Invariant: an entry is an upstream of the configuration, so there are no more of them, whatever clients ask for; the blobs
//! of each that are remembered are bounded. A blob that is known to be wrong says nothing new of the others: one that is
//! asked for again and again makes its upstream suspect once a day, and no longer than any other.
//! Manifests do not count: they are compared as a whole before anything of one goes out, and the digest that comes with
//! some old ones is not that of their bytes.
//! Not here: what follows ([`super::blobs`]), and single blobs that were wrong ([`super::setbacks`]).

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use headstart_layer_format::BlobDigest;

/// What sends wrong bytes (a worn-out disk, a broken cache in between) is mended by people and not by itself: long enough
/// for the pulls of a rollout, and short enough that one bad transfer does not slow down cold pulls for a day.
pub const SUSPECTED: Duration = Duration::from_secs(3600);

/// So long it is no news that a blob is wrong: a pod that cannot start asks for its image every five minutes.
const KNOWN: Duration = Duration::from_secs(24 * 3600);

/// Blobs of one upstream of which it is known. Who sends more of them is suspected for that.
const KNOWN_MAX: usize = 16;

/// All of them.
#[derive(Debug)]
pub struct Suspects {
    lasts: Duration,
    wrong: Mutex<HashMap<String, Suspect>>,
}

#[derive(Debug)]
struct Suspect {
    /// When it last sent wrong bytes of a blob of which that was news.
    at: Instant,
    /// When somebody was last told.
    told: Instant,
    /// Which blobs were wrong, and since when that is known, the oldest first.
    known: VecDeque<(BlobDigest, Instant)>,
}

impl Suspects {
    pub fn new(lasts: Duration) -> Self {
        Self {
            lasts,
            wrong: Mutex::default(),
        }
    }

    /// It has sent wrong bytes of this blob. Whether somebody is to be told: once for as long as a suspicion lasts.
    pub fn add(&self, upstream: &str, digest: &BlobDigest) -> bool {
        self.add_at(upstream, digest, Instant::now())
    }

    pub fn has(&self, upstream: &str) -> bool {
        self.has_at(upstream, Instant::now())
    }

    fn add_at(&self, upstream: &str, digest: &BlobDigest, now: Instant) -> bool {
        let mut wrong = self.wrong();
        let Some(suspect) = wrong.get_mut(upstream) else {
            let suspect = Suspect {
                at: now,
                told: now,
                known: VecDeque::from([(*digest, now)]),
            };
            wrong.insert(upstream.to_owned(), suspect);
            return true;
        };
        let since = |at: Instant| now.saturating_duration_since(at);
        suspect.known.retain(|(_, at)| since(*at) < KNOWN);
        if suspect.known.iter().any(|(known, _)| known == digest) {
            return false;
        }
        if suspect.known.len() >= KNOWN_MAX {
            suspect.known.pop_front();
        }
        suspect.known.push_back((*digest, now));
        suspect.at = now;
        let is_news = since(suspect.told) >= self.lasts;
        if is_news {
            suspect.told = now;
        }
        is_news
    }

    fn has_at(&self, upstream: &str, now: Instant) -> bool {
        let at = self.wrong().get(upstream).map(|suspect| suspect.at);
        at.is_some_and(|at| now.saturating_duration_since(at) < self.lasts)
    }

    fn wrong(&self) -> MutexGuard<'_, HashMap<String, Suspect>> {
        // An entry is whole after each change; a panic under the lock could only lose a blob.
        self.wrong.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(n: usize) -> BlobDigest {
        BlobDigest::of(&n.to_le_bytes())
    }

    #[test]
    fn a_suspicion_is_of_one_upstream_and_ends() {
        let suspects = Suspects::new(SUSPECTED);
        let (begun, secs) = (Instant::now(), Duration::from_secs);
        assert!(!suspects.has("a"));
        assert!(suspects.add_at("a", &blob(1), begun) && suspects.has("a") && !suspects.has("b"));
        let again = begun + SUSPECTED / 2;
        assert!(!suspects.add_at("a", &blob(2), again), "it is no news");
        assert!(suspects.has_at("a", begun + SUSPECTED), "the last time counts");
        assert!(suspects.has_at("a", again + SUSPECTED - secs(1)));
        let over = again + SUSPECTED;
        assert!(!suspects.has_at("a", over));
        assert!(
            suspects.add_at("a", &blob(3), over) && suspects.has_at("a", over),
            "it is suspected anew"
        );
    }

    #[test]
    fn one_blob_that_stays_wrong_prolongs_nothing() {
        let suspects = Suspects::new(SUSPECTED);
        let (begun, pull) = (Instant::now(), Duration::from_secs(300));
        assert!(suspects.add_at("a", &blob(1), begun));
        let mut at = begun + pull;
        while at < begun + KNOWN {
            assert!(!suspects.add_at("a", &blob(1), at));
            let is_over = at >= begun + SUSPECTED;
            assert_eq!(suspects.has_at("a", at), !is_over, "{:?}", at - begun);
            at += pull;
        }
        assert!(
            suspects.add_at("a", &blob(1), at) && suspects.has_at("a", at),
            "a day later"
        );
        assert!(suspects.add_at("b", &blob(1), at), "of another it is news");
    }

    #[test]
    fn one_that_never_stops_is_told_of_every_hour_and_what_is_known_of_it_is_bounded() {
        let suspects = Suspects::new(SUSPECTED);
        let (begun, step) = (Instant::now(), SUSPECTED / 4);
        let told = (0..40).filter(|n| suspects.add_at("a", &blob(*n as usize), begun + step * *n));
        assert!(told.collect::<Vec<_>>() == (0..40).step_by(4).collect::<Vec<_>>());
        assert_eq!(suspects.wrong()["a"].known.len(), KNOWN_MAX);
    }
}
