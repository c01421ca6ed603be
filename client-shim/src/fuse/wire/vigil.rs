//! Staying awake between one request and the next, where they follow each other closely.
//!
//! In: when requests come. Out: a look for the next one, for a moment, before this thread sleeps. Invariant: who asks seldom finds a
//! thread that sleeps; a look that was in vain is not taken again before requests have followed each other closely for a while;
//! others that want this processor have it. Not here: requests (`serve.rs`).
//!
//! A program that looks at one file after the other waits for each answer, and asks again some microseconds later. To wake a thread
//! on another processor that has gone to sleep meanwhile takes longer than the answer does.

use std::time::{Duration, Instant};

/// How long is looked: what a program takes between an answer and the next question, and not much more than a thread takes to wake.
const LOOK: Duration = Duration::from_micros(50);
/// A request that came so soon after the last answer, to a thread that had to be woken, would have been seen.
const CLOSE: Duration = Duration::from_micros(100);
/// So many requests in a row must have come closely.
const ROW: u32 = 16;

#[derive(Debug)]
pub(super) struct Vigil {
    /// One processor alone: who is to ask could not run meanwhile.
    possible: bool,
    /// Requests in a row that came closely.
    row: u32,
    /// Since when there was nothing to do.
    idle: Instant,
}

impl Vigil {
    pub(super) fn of_this_machine() -> Self {
        Self::on(std::thread::available_parallelism().map_or(1, usize::from))
    }

    fn on(processors: usize) -> Self {
        Self {
            possible: processors > 1,
            row: 0,
            idle: Instant::now(),
        }
    }

    /// The last request is answered. Returns when there is another, or it is time to sleep until there is.
    pub(super) fn until(&mut self, mut is_there: impl FnMut() -> bool) {
        self.idle = Instant::now();
        if !self.possible || self.row < ROW {
            return;
        }
        while !is_there() {
            if self.idle.elapsed() > LOOK {
                self.row = 0;
                return;
            }
            // Whoever is to ask may be waiting for this very processor.
            std::thread::yield_now();
        }
    }

    /// A request has come.
    pub(super) fn came(&mut self) {
        match self.idle.elapsed() <= CLOSE {
            true => self.row = self.row.saturating_add(1),
            false => self.row = 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks taken before the thread would sleep; `late`: the request comes after that.
    fn looks(vigil: &mut Vigil, late: bool) -> u32 {
        let mut looks = 0;
        vigil.until(|| {
            looks += 1;
            !late && looks == 3
        });
        if late {
            std::thread::sleep(2 * CLOSE);
        }
        vigil.came();
        looks
    }

    #[test]
    fn nobody_is_waited_for_who_asks_seldom() {
        let mut vigil = Vigil::on(2);
        for _ in 0..100 {
            assert_eq!(looks(&mut vigil, true), 0);
        }
    }

    #[test]
    fn who_asks_often_is_waited_for_until_that_was_in_vain() {
        let mut vigil = Vigil::on(2);
        // On a busy machine two calls of this test may be further apart than any two requests in a row.
        let closely = |vigil: &mut Vigil| (0..100_000).any(|_| looks(vigil, false) == 3);
        // Too late for who looked, and soon all the same.
        let vain = |vigil: &mut Vigil| {
            let mut looks = 0;
            vigil.until(|| {
                looks += 1;
                false
            });
            vigil.came();
            looks
        };
        assert!(closely(&mut vigil));
        while vain(&mut vigil) == 0 {
            assert!(closely(&mut vigil));
        }
        assert_eq!(looks(&mut vigil, false), 0, "in vain once");
        assert!(closely(&mut vigil));
    }

    #[test]
    fn on_one_processor_nobody_is_waited_for() {
        let mut vigil = Vigil::on(1);
        assert!((0..1000).all(|_| looks(&mut vigil, false) == 0));
    }
}
