//! How the files of a layer are being read: in order, or here and there.
//!
//! In: each read of a large body. Out: how far ahead of it to fetch. Invariant: a read that goes on where another ended doubles
//! that reader's window, up to a bound; one that does not halves it, down to nothing; a bounded number of readers is remembered.
//! Not here: fetching (`cache/reader.rs`).

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

/// First window of a reader that goes on.
const WINDOW_MIN: u64 = 256 << 10;
/// The kernel's own read-ahead reads in several requests, which may come in another order.
const SLACK: u64 = 1 << 20;
/// Readers remembered in one layer. The least recently seen is forgotten, and has to go on once more to be known again.
const READERS_MAX: usize = 32;

#[derive(Debug)]
pub(super) struct Patterns {
    window_max: u64,
    readers: Mutex<VecDeque<Reader>>,
}

#[derive(Clone, Copy, Debug)]
struct Reader {
    body: u64,
    /// Where its last read ended.
    next: u64,
    window: u64,
}

impl Patterns {
    pub(super) fn new(window_max: u64) -> Self {
        Self {
            window_max,
            readers: Mutex::default(),
        }
    }

    /// A read of `from..to` in the body that starts at `body`. Returns how many bytes behind `to` to fetch.
    pub(super) fn note(&self, body: u64, from: u64, to: u64) -> u64 {
        let mut readers = self.lock();
        let goes_on = |r: &Reader| r.body == body && from <= r.next + SLACK && r.next <= from + SLACK;
        if let Some(at) = readers.iter().position(goes_on) {
            let mut reader = readers.remove(at).unwrap_or(Reader {
                body,
                next: to,
                window: 0,
            });
            // The same bytes again, or a part of them, is no progress.
            if to > reader.next {
                reader.window = (reader.window * 2).max(WINDOW_MIN).min(self.window_max);
                reader.next = to;
            }
            readers.push_front(reader);
            return reader.window;
        }
        // A jump. Of one reader, most likely, who reads on from there: half of what it had.
        let jumped = readers.iter().position(|r| r.body == body);
        let before = jumped.and_then(|at| readers.remove(at)).map_or(0, |r| r.window / 2);
        let window = if before < WINDOW_MIN { 0 } else { before };
        readers.push_front(Reader { body, next: to, window });
        readers.truncate(READERS_MAX);
        window
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Reader>> {
        self.readers.lock().unwrap_or_else(|p| p.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_window_grows_with_a_reader_in_order_and_shrinks_when_it_jumps() {
        let patterns = Patterns::new(4 * MIB);
        let windows: Vec<u64> = (0..8)
            .map(|i| patterns.note(0, i * MIB / 2, (i + 1) * MIB / 2))
            .collect();
        assert_eq!(windows[..4], [0, MIB / 4, MIB / 2, MIB]);
        assert_eq!(windows[7], 4 * MIB, "bounded");
        assert_eq!(
            patterns.note(0, 3 * MIB, 4 * MIB),
            4 * MIB,
            "the same again is no progress"
        );
        let jumps: Vec<u64> = (1..7)
            .map(|i| patterns.note(0, i * 100 * MIB, i * 100 * MIB + 4096))
            .collect();
        assert_eq!(jumps, [2 * MIB, MIB, MIB / 2, MIB / 4, 0, 0]);
    }

    #[test]
    fn random_readers_get_nothing_and_many_readers_are_forgotten() {
        let patterns = Patterns::new(4 * MIB);
        for i in 0..100 {
            assert_eq!(
                patterns.note(0, (i * 7919 % 1000) * 4 * MIB, (i * 7919 % 1000) * 4 * MIB + 4096),
                0
            );
        }
        for body in 0..1000 {
            patterns.note(body * 100 * MIB, body * 100 * MIB, body * 100 * MIB + 1);
        }
        assert_eq!(patterns.lock().len(), READERS_MAX);
    }
}
