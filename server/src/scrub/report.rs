//! What a scrub found, and how far it is.
//!
//! In: findings. Out: a [`Report`] for the operator, JSON over the administration socket. Invariant: every damage is
//! counted; the list of them is bounded.
//! Not here: metrics ([`super`]), text for people (`cli/fsck.rs`).

use serde::{Deserialize, Serialize};

use crate::store::audit::{Finding, Subject};

/// Damages listed; further ones are only counted.
const LISTED_MAX: usize = 1_000;

/// What was looked at, and what was wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub repair: bool,
    pub originals_count: u64,
    pub originals_bytes: u64,
    pub packs_count: u64,
    pub packs_bytes: u64,
    pub records_count: u64,
    pub rows_count: u64,
    pub damaged_count: u64,
    pub repaired_count: u64,
    /// The first of them.
    pub damages: Vec<Damage>,
}

/// One thing that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// A value of the metrics' label `what`.
    pub what: String,
    /// Which one: a digest, or a place in a pack.
    pub name: String,
    pub why: String,
    pub repaired: bool,
}

impl Report {
    pub fn add(&mut self, damage: Damage) {
        self.damaged_count += 1;
        self.repaired_count += u64::from(damage.repaired);
        if self.damages.len() < LISTED_MAX {
            self.damages.push(damage);
        }
    }

    /// Whether everything is whole, or is again.
    pub fn is_clean(&self) -> bool {
        self.damaged_count == self.repaired_count
    }
}

impl Damage {
    pub fn of(finding: &Finding) -> Self {
        let (what, name) = match &finding.subject {
            Subject::Chunk(digest, at) => ("chunk", format!("{digest} (pack {}, at {})", at.pack.0, at.offset)),
            Subject::Toc(digest, at) => ("toc", format!("{digest} (pack {}, at {})", at.pack.0, at.offset)),
            Subject::State(layer, at) => ("state", format!("{layer} (pack {}, at {})", at.pack.0, at.offset)),
            Subject::Manifest(digest, _) | Subject::DiffIds(digest, _) => ("fact", digest.to_string()),
            Subject::Pin(..) => ("fact", "a pin".into()),
            Subject::Layer(layer) => ("layer", layer.to_string()),
            Subject::Stretch { pack, from, to } => ("record", format!("pack {}, from {from} to {to}", pack.0)),
            Subject::Pack(pack) => ("pack", format!("pack {}", pack.0)),
            Subject::Row(key) => ("index", format!("row {}", headstart_layer_format::digest::hex(key))),
        };
        Self {
            what: what.into(),
            name,
            why: finding.why.into(),
            repaired: false,
        }
    }
}

/// How far a scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub done_bytes: u64,
    pub total_bytes: u64,
}
