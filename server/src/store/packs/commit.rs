//! Committing: what was appended becomes durable, then it gets its rows.
//!
//! In: a pack with records that have none. Out: rows, in one batch with the pack's progress. Invariant: commits come
//! one after the other, so batches reach the index in log order; one that fails publishes nothing, and the next has all
//! of it again.
//! Not here: what a failed sync may have lost ([`super::salvage`]).

use std::sync::Arc;

use super::salvage::Suspect;
use super::{Packs, Row};
use crate::store::StoreError;
use crate::store::index::{Batch, Index};
use crate::store::pack::{Pack, PackId};

impl Packs {
    /// Syncs what was appended so far, then indexes it. Afterwards it survives anything.
    pub fn commit(&self, index: &Index) -> Result<(), StoreError> {
        let _order = self.committing();
        let (pack, synced, end, rows, rolled) = {
            let mut w = self.writer();
            while let Some(mut suspect) = w.suspects.first().cloned() {
                if let Err(error) = self.salvage(index, &mut w, &mut suspect) {
                    // The next attempt has to know what this one wrote.
                    if let Some(first) = w.suspects.first_mut() {
                        *first = suspect;
                    }
                    return Err(error);
                }
                // What failed twice of it was written once more with the first.
                w.suspects
                    .retain(|other| other.pack.id != suspect.pack.id || other.from < suspect.from);
            }
            if !w.dirty {
                return Ok(());
            }
            w.dirty = false;
            w.bytes = 0;
            let (rows, rolled) = (std::mem::take(&mut w.rows), std::mem::take(&mut w.rolled));
            (Arc::clone(&w.pack), w.synced, w.end, rows, rolled)
        };
        let is_synced = pack.sync().map_err(StoreError::io("sync a pack"));
        let failed = is_synced.is_err();
        let outcome = is_synced.and_then(|()| self.commit_rows(index, &pack, end, &rows, &rolled));
        let mut w = self.writer();
        if failed {
            let pack = Arc::clone(&pack);
            w.suspects.push(Suspect::new(pack, synced));
        } else if w.pack.id == pack.id {
            w.synced = end;
        }
        if outcome.is_ok() {
            let mut fresh = self.fresh_mut();
            for row in &rows {
                if let Row::Chunk(digest, at) = row
                    && fresh.chunks.get(digest) == Some(at)
                {
                    fresh.chunks.remove(digest);
                }
            }
        } else {
            // Nothing was published; the next commit tries all of it again.
            w.dirty = true;
            w.rows.splice(0..0, rows);
            w.rolled.splice(0..0, rolled);
        }
        outcome
    }

    /// Runs while nobody appends or commits, with where each pack ends, the one that is written being the last.
    pub fn at_rest<T>(&self, work: impl FnOnce(&[(PackId, u64)]) -> T) -> T {
        let _order = self.committing();
        let w = self.writer();
        let mut ends = self.sealed();
        ends.push((w.pack.id, w.end));
        work(&ends)
    }

    fn commit_rows(
        &self,
        index: &Index,
        pack: &Pack,
        end: u64,
        rows: &[Row],
        rolled: &[(PackId, u64)],
    ) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for row in rows {
            match row {
                Row::Chunk(digest, at) => batch.chunk(digest, at),
                Row::Toc(digest, at) => batch.toc(digest, at),
                Row::Layer(digest, record, at) => batch.layer(digest, record, at)?,
            }
        }
        for (pack, end) in rolled {
            batch.progress(*pack, *end);
        }
        batch.progress(pack.id, end);
        Ok(index.apply(batch)?)
    }
}
