//! One start of an image, as the kernel's reads tell it.
//!
//! In: reads of the image's layers. Out: [`Noted`]: what was needed first, in order, with its time, and when the first of all
//! was. Invariant: a chunk counts once for each body that needed it; at most [`NOTES_MAX`] notes are kept, the first ones.
//! Not here: names of files, and what the server is told (`profile/trace.rs`).

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use headstart_layer_format::LayerRange;
use headstart_layer_format::limits::TRACE_READS_MAX;
use headstart_layer_format::toc::ChunkTable;

/// Some 30 bytes each.
pub(super) const NOTES_MAX: usize = TRACE_READS_MAX;

/// A first need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Note {
    /// Of the layer in the image.
    pub position: u32,
    pub chunk: u32,
    /// Where the body begins that was read, in the data space.
    pub body: Option<u64>,
    pub ms: u32,
}

/// What was noted so far.
#[derive(Debug, Default)]
struct Noted {
    seen: HashSet<(u32, u32, Option<u64>)>,
    notes: Vec<Note>,
    last: Option<Instant>,
}

#[derive(Debug)]
pub struct Recording {
    began: Instant,
    /// The same moment, for people and other programs.
    began_at: SystemTime,
    noted: Mutex<Noted>,
}

impl Recording {
    /// Begins now.
    pub fn begin() -> Self {
        Self {
            began: Instant::now(),
            began_at: SystemTime::now(),
            noted: Mutex::default(),
        }
    }

    pub(super) fn note(&self, position: u32, table: &ChunkTable, bodies: &[LayerRange], ranges: &[LayerRange]) {
        let now = Instant::now();
        let ms = now.duration_since(self.began).as_millis();
        let ms = u32::try_from(ms).unwrap_or(u32::MAX);
        let mut noted = self.lock();
        for range in ranges {
            for chunk in table.covering(*range).filter_map(|i| table.chunk(i)) {
                let part = common(chunk.range, *range);
                let mut is_owned = false;
                for body in bodies.iter().filter(|body| common(**body, part).len > 0) {
                    is_owned = true;
                    noted.add(position, chunk.index, Some(body.start.0), ms, now);
                }
                if !is_owned {
                    noted.add(position, chunk.index, None, ms, now);
                }
            }
        }
    }

    /// How much longer nothing has to be needed before the start is over; `None`: it is.
    pub fn remains(&self, quiet: Duration, max: Duration) -> Option<Duration> {
        let last = self.lock().last.unwrap_or(self.began);
        let until = (last + quiet).min(self.began + max);
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// When the first need was, in milliseconds since 1970.
    pub fn first_unix_ms(&self) -> Option<u64> {
        let after = self.lock().notes.first()?.ms;
        let began = self.began_at.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_millis();
        Some(u64::try_from(began).ok()?.saturating_add(u64::from(after)))
    }

    /// In the order of first need.
    pub fn notes(&self) -> Vec<Note> {
        self.lock().notes.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Noted {
    fn add(&mut self, position: u32, chunk: u32, body: Option<u64>, ms: u32, now: Instant) {
        if self.notes.len() >= NOTES_MAX || !self.seen.insert((position, chunk, body)) {
            return;
        }
        // Reads are noted by one thread, but time may be looked at in another order than the lock is taken.
        let ms = self.notes.last().map_or(ms, |before| before.ms.max(ms));
        self.notes.push(Note {
            position,
            chunk,
            body,
            ms,
        });
        self.last = Some(now);
    }
}

fn common(a: LayerRange, b: LayerRange) -> LayerRange {
    let start = a.start.max(b.start);
    let end = a.end().0.min(b.end().0);
    LayerRange {
        start,
        len: end.saturating_sub(start.0),
    }
}

#[cfg(test)]
mod tests {
    use headstart_layer_format::toc::ChunkEntry;
    use headstart_layer_format::{ChunkDigest, LayerOffset};

    use super::*;

    fn range(start: u64, len: u64) -> LayerRange {
        LayerRange {
            start: LayerOffset(start),
            len,
        }
    }

    #[test]
    fn a_chunk_counts_once_for_each_body_that_needs_it() {
        let entry = |n: u8| ChunkEntry {
            digest: ChunkDigest::of(&[n]),
            raw_len: 8192,
            frame_len: 100,
        };
        let table = ChunkTable::new(vec![entry(0), entry(1)]).unwrap();
        let (before, recording) = (SystemTime::now(), Recording::begin());
        assert_eq!(recording.first_unix_ms(), None);
        let bodies = [range(0, 4096), range(4096, 12288)];
        // The second body, twice; then both at once.
        recording.note(3, &table, &bodies[1..], &[range(8192, 4096)]);
        recording.note(3, &table, &bodies[1..], &[range(12288, 4096)]);
        recording.note(3, &table, &bodies, &[range(0, 8192)]);
        let notes: Vec<_> = recording
            .notes()
            .iter()
            .map(|n| (n.position, n.chunk, n.body))
            .collect();
        assert_eq!(notes, [(3, 1, Some(4096)), (3, 0, Some(0)), (3, 0, Some(4096))]);
        assert!(recording.notes().is_sorted_by_key(|n| n.ms));
        let unix_ms = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64;
        let first = recording.first_unix_ms().unwrap();
        assert!(
            (unix_ms(before)..=unix_ms(SystemTime::now())).contains(&first),
            "{first}"
        );
        let hour = Duration::from_secs(3600);
        assert!(recording.remains(hour, hour).is_some());
        assert_eq!(recording.remains(hour, Duration::ZERO), None);
        assert_eq!(recording.remains(Duration::ZERO, hour), None);
    }

    #[test]
    fn notes_are_bounded() {
        let entries = (0..NOTES_MAX as u32 + 10).map(|n| ChunkEntry {
            digest: ChunkDigest::of(&n.to_le_bytes()),
            raw_len: 4096,
            frame_len: 100,
        });
        let table = ChunkTable::new(entries.collect()).unwrap();
        let recording = Recording::begin();
        recording.note(0, &table, &[], &[range(0, table.data_size())]);
        assert_eq!(recording.notes().len(), NOTES_MAX);
    }
}
