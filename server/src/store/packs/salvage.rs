//! A pack that could not be synced: what it may have lost is written once more, into another.
//!
//! In: the pack, and from where nothing of it may be believed. Out: the same records elsewhere, and rows that follow them.
//! Invariant: nothing is committed before that is done ([`super::Packs::commit`]).
//! Not here: packs that cannot be read (`store/mend.rs`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Packs, Row, Writer};
use crate::store::StoreError;
use crate::store::index::Index;
use crate::store::learned::index_fact;
use crate::store::pack::{Location, Pack};
use crate::store::record::RecordKind;
use crate::store::recover::scan;

/// A pack of which a sync failed. The kernel forgets what it could not write, and the next sync succeeds: nothing of the
/// pack from `from` on may be believed to be on the disk, although it can be read for now.
#[derive(Clone, Debug)]
pub(super) struct Suspect {
    pub(super) pack: Arc<Pack>,
    pub(super) from: u64,
}

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
        let mut moved = HashMap::new();
        let scanned = scan(pack, *from, end, true, |found| {
            let (header, at) = (found.header, found.location);
            if header.kind == RecordKind::Footer {
                return Ok(());
            }
            let Some(payload) = pack.read(at, header.kind, &header.key)? else {
                return Ok(());
            };
            let to = self
                .append(w, header.kind, &header.key, header.raw_len, &payload)
                .map_err(failed("write a record once more"))?;
            if let (RecordKind::Fact, Ok(fact)) = (header.kind, serde_json::from_slice(&payload)) {
                index_fact(index, &fact, to)?;
            }
            moved.insert(at.offset, to);
            Ok::<_, StoreError>(())
        })?;
        tracing::error!(
            pack = pack.id.0,
            from,
            records = moved.len(),
            damaged = scanned.damaged,
            "a pack could not be synced; what it may have lost is written once more"
        );
        let moves = |at: &mut Location| match at.pack == pack.id && at.offset >= *from {
            true => moved.get(&at.offset).map(|to| *at = *to).is_some(),
            false => true,
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
        // Records that are there twice harm nobody.
        if let Err(error) = pack.truncate(*from) {
            tracing::warn!(pack = pack.id.0, %error, "a pack that could not be synced is not cut");
        }
        Ok(())
    }
}
