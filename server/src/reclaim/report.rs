//! What a round of reclaiming did, or would do.
//!
//! In: victims. Out: JSON for the operator. Invariant: the lists are bounded, the sums count everything.
//! Not here: metrics.

use headstart_layer_format::BlobDigest;
use serde::{Deserialize, Serialize};

use crate::store::plan::Reason;

/// Objects listed by name; the sums go on.
const LISTED_MAX: usize = 10_000;

/// One thing that went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    pub digest: BlobDigest,
    pub bytes: u64,
    pub reason: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Nothing was changed.
    pub dry_run: bool,
    pub originals: Vec<Gone>,
    pub originals_count: u64,
    pub originals_bytes: u64,
    /// Layers that are no longer converted.
    pub layers: Vec<Gone>,
    pub layers_count: u64,
    /// Packs deleted, and what that freed beyond what was moved.
    pub packs_count: u64,
    pub packs_bytes: u64,
    /// Held afterwards.
    pub originals_held_bytes: u64,
    pub packs_held_bytes: u64,
}

impl Report {
    pub fn original(&mut self, digest: BlobDigest, bytes: u64, reason: Reason) {
        self.originals_count += 1;
        self.originals_bytes += bytes;
        list(&mut self.originals, digest, bytes, reason);
    }

    pub fn layer(&mut self, digest: BlobDigest, bytes: u64, reason: Reason) {
        self.layers_count += 1;
        list(&mut self.layers, digest, bytes, reason);
    }
}

fn list(to: &mut Vec<Gone>, digest: BlobDigest, bytes: u64, reason: Reason) {
    if to.len() < LISTED_MAX {
        let reason = reason.name().to_owned();
        to.push(Gone { digest, bytes, reason });
    }
}
