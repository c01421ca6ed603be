//! A pack that could not be synced: what it may have lost is written once more, into another.
//!
//! In: the pack, and from where nothing of it may be believed. Out: the same records elsewhere, and rows that follow
//! them.
//! Invariant: nothing is committed before that is done ([`super::Packs::commit`]). The log says what it said: facts and
//! states that came after these, in later packs, are written again behind them; a row that a later record made stays.
//! Not here: packs that cannot be read (`store/mend.rs`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Packs, Row, Writer};
use crate::store::StoreError;
use crate::store::index::Index;
use crate::store::learned::follow_fact;
use crate::store::pack::{Location, PACK_HEADER_LEN, Pack, PackId};
use crate::store::record::RecordKind;
use crate::store::recover::{ScanEnd, scan};

/// A pack of which a sync failed. The kernel forgets what it could not write, and the next sync succeeds: nothing of
/// the pack from `from` on may be believed to be on the disk, although it can be read for now.
#[derive(Clone, Debug)]
pub(super) struct Suspect {
    pub(super) pack: Arc<Pack>,
    pub(super) from: u64,
}

/// Where records were, and where they are now.
type Moved = HashMap<(PackId, u64), Location>;

impl Packs {
    /// Writes everything that a suspect pack may have lost once more, into another.
    pub(super) fn salvage(&self, index: &Index, w: &mut Writer, suspect: &Suspect) -> Result<(), StoreError> {
        let Suspect { pack, from } = suspect;
        let failed = StoreError::io;
        let end = match w.pack.id == pack.id {
            true => {
                let end = w.end;
                self.begin_next(w, *from).map_err(failed("begin another pack"))?;
                end
            }
            false => pack.file_len()?,
        };
        // Who rolled the pack while its sync failed wrote into these; nothing of them is committed.
        let later = self.after(w, pack.id);
        let mut moved = Moved::new();
        let scanned = self.write_again(index, w, (pack, *from, end), |_| true, &mut moved)?;
        let count = moved.len();
        for (id, end) in later {
            let Some(later) = self.pack(id)? else { continue };
            // The rest says the same in whatever order it comes.
            let has_order = |kind| matches!(kind, RecordKind::Fact | RecordKind::LayerState);
            self.write_again(index, w, (&later, PACK_HEADER_LEN, end), has_order, &mut moved)?;
        }
        tracing::error!(
            pack = pack.id.0,
            from,
            records = count,
            behind_them = moved.len() - count,
            damaged = scanned.damaged,
            "a pack could not be synced; what it may have lost is written once more"
        );
        let moves = |at: &mut Location| match moved.get(&(at.pack, at.offset)) {
            Some(to) => {
                *at = *to;
                true
            }
            None => at.pack != pack.id || at.offset < *from,
        };
        w.rows.retain_mut(|row| match row {
            Row::Chunk(_, at) | Row::Toc(_, at) | Row::Layer(_, _, at) => moves(at),
        });
        self.fresh_mut().chunks.retain(|_, at| moves(at));
        w.rolled
            .iter_mut()
            .filter(|(id, _)| *id == pack.id)
            .for_each(|(_, end)| *end = *from);
        if let Some(before) = self.lengths().insert(pack.id, *from) {
            self.bytes.fetch_sub(before.saturating_sub(*from), Ordering::Relaxed);
        }
        // Records that are there twice harm nobody: an opening that finds them here reads everything, in order.
        if let Err(error) = pack.truncate(*from) {
            tracing::warn!(pack = pack.id.0, %error, "a pack that could not be synced is not cut");
        }
        Ok(())
    }

    /// Packs behind this one, and where they end by now.
    fn after(&self, w: &Writer, pack: PackId) -> Vec<(PackId, u64)> {
        let lengths = self.lengths();
        let sealed = lengths.iter().map(|(id, len)| (*id, *len));
        let all = sealed.chain([(w.pack.id, w.end)]);
        all.filter(|(id, _)| *id > pack).collect()
    }

    /// Appends the records of a stretch once more, in their order, but for those that `counts` passes over.
    fn write_again(
        &self,
        index: &Index,
        w: &mut Writer,
        (pack, from, end): (&Pack, u64, u64),
        counts: impl Fn(RecordKind) -> bool,
        moved: &mut Moved,
    ) -> Result<ScanEnd, StoreError> {
        scan(pack, from, end, true, |found| {
            let (header, at) = (found.header, found.location);
            if header.kind == RecordKind::Footer || !counts(header.kind) {
                return Ok(());
            }
            let Some(payload) = pack.read(at, header.kind, &header.key)? else {
                return Ok(());
            };
            let to = self
                .append(w, header.kind, &header.key, header.raw_len, &payload)
                .map_err(StoreError::io("write a record once more"))?;
            if let (RecordKind::Fact, Ok(fact)) = (header.kind, serde_json::from_slice(&payload)) {
                follow_fact(index, &fact, at, to)?;
            }
            moved.insert((at.pack, at.offset), to);
            Ok::<_, StoreError>(())
        })
    }
}

#[cfg(test)]
mod tests;
