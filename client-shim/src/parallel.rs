//! The same work for many things, on a few threads.
//!
//! In: things, and what is to be done to one. Out: what came of each, in their order. Invariant: no more at once than there are
//! cores, and never more than [`AT_ONCE_MAX`], so memory is bounded by what so many need; a panic of one is the caller's.
//! Not here: work that waits for a network.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// A layer's TOC takes tens of MB for the widest, while it is looked at.
const AT_ONCE_MAX: usize = 8;
/// One may wait for the disk meanwhile.
const AT_ONCE_MIN: usize = 2;

/// Blocks until all is done.
pub(crate) fn each<T: Sync, R: Send>(things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.clamp(AT_ONCE_MIN, AT_ONCE_MAX).min(things.len());
    let next = AtomicUsize::new(0);
    let turns = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            match things.get(at) {
                Some(thing) => done.push((at, work(thing))),
                None => return done,
            }
        }
    };
    // What no further thread could be had for is done by this one.
    let mut done: Vec<(usize, R)> = thread::scope(|scope| {
        let spawn = |_| thread::Builder::new().name("each".into()).spawn_scoped(scope, turns);
        let others: Vec<_> = (1..threads).filter_map(|n| spawn(n).ok()).collect();
        let mut done = turns();
        for other in others {
            match other.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_done_once_and_in_order_and_few_at_a_time() {
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let things: Vec<u64> = (0..500).collect();
        let doubled = each(&things, |n| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::yield_now();
            now.fetch_sub(1, Ordering::SeqCst);
            n * 2
        });
        assert_eq!(doubled, things.iter().map(|n| n * 2).collect::<Vec<_>>());
        assert!(most.into_inner() <= AT_ONCE_MAX);
        assert!(each(&[] as &[u64], |n| *n).is_empty());
        assert_eq!(each(&[7], |n| *n), [7]);
    }
}
