//! How long a cycle that was not worth its writing is not repeated.
//!
//! In: when it ended, what it took, whether a conversion waits for room. Out: whether the next may begin. Invariant: where
//! nothing can go, cycles are a small share of the time; yet whoever waits sees another one before giving up.
//! Not here: what a cycle does ([`super::packs`]), how long a conversion waits ([`crate::store::conversion`]).

use std::time::{Duration, Instant};

use crate::store::conversion::ROOM_WAIT;

/// At least, however often the bell rings.
const LEAST: Duration = Duration::from_secs(5);
/// As many times what the cycle took.
const TIMES: u32 = 20;
/// While a conversion waits: what could not go a while ago may be let go of by now, and the cycle needs its time, too.
const WAITED_FOR_MAX: Duration = Duration::from_secs(ROOM_WAIT.as_secs() / 3);

#[derive(Clone, Copy, Debug)]
pub struct Rest {
    since: Instant,
    cycle_took: Duration,
}

impl Rest {
    /// After a cycle that began then, and has just ended.
    pub fn after(began: Instant) -> Self {
        let since = Instant::now();
        Self {
            since,
            cycle_took: since.duration_since(began),
        }
    }

    pub fn is_over(&self, now: Instant, waited_for: bool) -> bool {
        let rest = LEAST.max(self.cycle_took.saturating_mul(TIMES));
        let rest = if waited_for { rest.min(WAITED_FOR_MAX) } else { rest };
        now.saturating_duration_since(self.since) >= rest
    }
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::ChunkDigest;
    use headstart_loadtest::corpus::Rng;

    use super::super::{Budgets, Inner, Memory, Orders, Rung};
    use super::*;
    use crate::metrics::Metrics;
    use crate::store::Store;
    use crate::store::bell::Bell;
    use crate::store::originals::Originals;

    #[test]
    fn a_rest_is_long_after_a_long_cycle_unless_somebody_waits() {
        let since = Instant::now();
        let rest = |cycle_took| Rest { since, cycle_took };
        let (short, long) = (rest(Duration::ZERO), rest(Duration::from_secs(60)));
        let at = |secs| since + Duration::from_secs(secs);
        for waited_for in [false, true] {
            assert!(!short.is_over(at(4), waited_for) && short.is_over(at(5), waited_for));
        }
        assert!(!long.is_over(at(1199), false) && long.is_over(at(1200), false));
        assert!(!long.is_over(at(9), true) && long.is_over(at(10), true));
        assert!(!rest(Duration::MAX).is_over(at(100_000), false), "no overflow");
    }

    /// A cycle that took more than 1.5 s put the next one off for longer than a conversion waits: it failed for want of
    /// room, although by then there was enough to reclaim.
    #[test]
    fn a_conversion_that_waits_is_given_room_before_a_long_rest_is_over() {
        const BYTES_MAX: u64 = 64 << 10;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_with(dir.path(), 16 << 10).unwrap();
        let originals = Originals::open(dir.path()).unwrap();
        let bell = Bell::default();
        store.set_bytes_max(BYTES_MAX, bell.clone());
        let inner = Inner {
            data_dir: dir.path().to_owned(),
            originals,
            store: store.clone(),
            budgets: Budgets {
                originals_bytes_max: u64::MAX,
                chunks_bytes_max: BYTES_MAX,
                free_bytes_min: 0,
                originals_ttl_ms: None,
                manifests_ttl_ms: None,
                chunks_ttl_ms: None,
                refusals_max: 100,
                index_look_ms: 600_000,
                index_spare_bytes: u64::MAX,
            },
            metrics: Metrics::new(),
            orders: Orders::new("reclaim", 1, bell.clone()),
            bell,
            unless_in_use: Box::new(|_, _| {}),
        };
        // No layer has these: they can go.
        let mut rng = Rng::new(7);
        for _ in 0..16 {
            let frame = rng.bytes(6 << 10);
            store.append_chunk(&ChunkDigest::of(&frame), 6 << 10, &frame).unwrap();
        }
        store.commit().unwrap();
        let held = store.pack_bytes();
        assert!(held > BYTES_MAX);

        let since = Instant::now().checked_sub(WAITED_FOR_MAX).unwrap();
        let mut memory = Memory {
            rest: Some(Rest {
                since,
                cycle_took: Duration::from_secs(3600),
            }),
            ..Memory::default()
        };
        let rung = Rung {
            over_budget: true,
            ..Rung::default()
        };
        inner.round(rung, &mut memory).unwrap();
        assert_eq!(store.pack_bytes(), held, "nobody waits: it rests");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let frame = b"one more";
                let conversion = store.begin_conversion();
                conversion.append_chunk(&ChunkDigest::of(frame), frame.len() as u32, frame)
            });
            while !store.is_waited_for() {
                assert!(!waits.is_finished(), "it must wait");
                std::thread::yield_now();
            }
            inner.round(rung, &mut memory).unwrap();
            assert!(store.pack_bytes() <= BYTES_MAX, "a cycle");
            assert!(waits.join().unwrap().unwrap().1);
        });
        assert!(!store.is_waited_for());
    }
}
