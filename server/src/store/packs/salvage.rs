//! A pack that could not be synced: what it may have lost is written once more, into another.
//!
//! In: the pack, and from where nothing of it may be believed. Out: the same records elsewhere, and rows that follow
//! them.
//! Invariant: nothing is committed before that is done ([`super::Packs::commit`]). The log says what it said: facts and
//! states that came after these, in later packs, are written again behind them; a row that a later record made stays.
//! Not here: packs that cannot be read (`store/mend.rs`).

use std::collections::HashMap;
use std::ops::Range;
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
    /// What attempts that failed had written when they did. It says nothing new, so it is not written again behind
    /// what it is older than.
    copied: Vec<(PackId, Range<u64>)>,
}

impl Suspect {
    pub(super) fn new(pack: Arc<Pack>, from: u64) -> Self {
        let copied = Vec::new();
        Self { pack, from, copied }
    }
}

/// Where records were, and where they are now.
type Moved = HashMap<(PackId, u64), Location>;

impl Packs {
    /// Writes everything that a suspect pack may have lost once more, into another.
    pub(super) fn salvage(&self, index: &Index, w: &mut Writer, suspect: &mut Suspect) -> Result<(), StoreError> {
        let Suspect { pack, from, copied } = suspect;
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
        let mut later = Vec::new();
        for (id, end) in self.after(w, pack.id) {
            later.extend(self.pack(id)?.map(|pack| (pack, end)));
        }
        let (into, began) = (w.pack.id, w.end);
        let mut moved = Moved::new();
        let is_copy = |at: &Location| {
            copied
                .iter()
                .any(|(pack, of)| *pack == at.pack && of.contains(&at.offset))
        };
        let written = self.write_all_again(index, w, (pack, *from, end), &later, is_copy, &mut moved);
        if written.is_err() {
            let until = if into == w.pack.id { w.end } else { u64::MAX };
            copied.push((into, began..until));
            if into != w.pack.id {
                copied.push((w.pack.id, 0..w.end));
            }
        }
        let (scanned, count) = written?;
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

    /// Appends a stretch of a pack once more, and behind it what came later and must stay so, but for copies. How many
    /// records the stretch had.
    fn write_all_again(
        &self,
        index: &Index,
        w: &mut Writer,
        stretch: (&Pack, u64, u64),
        later: &[(Arc<Pack>, u64)],
        is_copy: impl Fn(&Location) -> bool,
        moved: &mut Moved,
    ) -> Result<(ScanEnd, usize), StoreError> {
        let scanned = self.write_again(index, w, stretch, |_, _| true, moved)?;
        let count = moved.len();
        for (pack, end) in later {
            // The rest says the same in whatever order it comes.
            let has_order =
                |kind, at: &Location| matches!(kind, RecordKind::Fact | RecordKind::LayerState) && !is_copy(at);
            self.write_again(index, w, (pack, PACK_HEADER_LEN, *end), has_order, moved)?;
        }
        Ok((scanned, count))
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
        counts: impl Fn(RecordKind, &Location) -> bool,
        moved: &mut Moved,
    ) -> Result<ScanEnd, StoreError> {
        scan(pack, from, end, true, |found| {
            let (header, at) = (found.header, found.location);
            if header.kind == RecordKind::Footer || !counts(header.kind, &at) {
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
