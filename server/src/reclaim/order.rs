//! What the operator wants, and what becomes of it.
//!
//! In: orders. Out: reports. Invariant: they are carried out between rounds, by the same thread. An order is not a
//! reason for a round.
//! Not here: who gives them ([`crate::admin`]), rounds ([`super::round`]).

use std::collections::HashSet;

use headstart_layer_format::BlobDigest;

use super::report::Report;
use super::{Inner, Memory, ReclaimError};
use crate::store::PackId;
use crate::store::plan::{Reason, Wanted};

/// What the operator wants.
#[derive(Clone, Debug)]
pub enum Order {
    /// A full round: budgets, ages, and every pack that is worth it.
    Collect { dry_run: bool },
    /// These originals and layers go, pinned or not.
    Remove(HashSet<BlobDigest>),
    /// What can be read of these packs moves to the end of the log; they go.
    Rewrite(Vec<PackId>),
}

impl Inner {
    pub(super) fn carry_out_orders(&self, memory: &mut Memory) {
        while let Some((order, reply)) = self.orders.next() {
            let done = match order {
                Order::Collect { dry_run } => self.collect(dry_run, memory),
                Order::Remove(digests) => self.remove(digests, memory),
                Order::Rewrite(packs) => self.rewrite(&packs),
            };
            // Whoever asked may have gone.
            let _ = reply.send(done.map_err(|error| error.to_string()));
        }
    }

    fn collect(&self, dry_run: bool, memory: &mut Memory) -> Result<Report, ReclaimError> {
        let mut report = Report {
            dry_run,
            ..Report::default()
        };
        self.originals_round(self.bytes_short()?, dry_run, &mut report)?;
        let forgotten = !dry_run && self.forget_facts(memory)?;
        let wanted = self.wanted(memory)?;
        if forgotten {
            memory.facts.clear();
        }
        self.packs_round(wanted, 0, false, dry_run, memory, &mut report)?;
        Ok(self.ended(report))
    }

    fn remove(&self, digests: HashSet<BlobDigest>, memory: &mut Memory) -> Result<Report, ReclaimError> {
        let mut report = Report::default();
        for digest in &digests {
            if let Some(kept) = self.originals.kept(digest) {
                self.originals.remove(digest)?;
                self.count_original(digest, kept.bytes, Reason::Removed, &mut report);
            }
            self.store.forget_refusal(digest)?;
        }
        let wanted = Wanted {
            removed: digests,
            ..self.wanted(memory)?
        };
        self.packs_round(wanted, 0, false, false, memory, &mut report)?;
        Ok(self.ended(report))
    }

    fn rewrite(&self, packs: &[PackId]) -> Result<Report, ReclaimError> {
        let report = Report {
            packs_count: self.store.rewrite_packs(packs, &|| !self.bell.is_stopping())?,
            ..Report::default()
        };
        Ok(self.ended(report))
    }

    fn ended(&self, mut report: Report) -> Report {
        report.originals_held_bytes = self.originals.usage().bytes();
        report.packs_held_bytes = self.store.pack_bytes();
        report
    }
}
