//! Pins: what eviction leaves alone.
//!
//! In: a tag or a digest, and whether it is pinned. Out: the targets, and every digest they stand for.
//! Invariant: a pin is a fact in the packs and survives the index; it protects the whole image: manifests, configs, the
//! layers' originals and their chunks. A pinned tag protects what the tag points at *now*, so it follows the tag.
//! Not here: what pins protect from ([`crate::reclaim`], [`super::plan`]).

use std::collections::HashSet;

use headstart_layer_format::BlobDigest;
use serde::{Deserialize, Serialize};

use super::facts::Source;
use super::learned::Fact;
use super::{Store, StoreError};

/// Index -> image -> config and layers; one more for an index of indexes.
const DEPTH_MAX: u32 = 4;
/// Digests under one target; an index of a hundred platforms with a hundred layers each.
const DIGESTS_MAX: usize = 20_000;

/// What was pinned.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PinTarget {
    Digest(BlobDigest),
    Tag { source: Source, tag: String },
}

impl PinTarget {
    /// The key of its row.
    pub(super) fn key(&self) -> Vec<u8> {
        // Digests and strings always serialise.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

impl Store {
    /// Pins or unpins; whether that changed anything. Durable when it returns.
    pub fn set_pin(&self, target: &PinTarget, pinned: bool) -> Result<bool, StoreError> {
        let before = self.inner.index.pin(&target.key())?.is_some_and(|(pinned, _)| pinned);
        if before == pinned {
            return Ok(false);
        }
        self.append_fact(&Fact::Pin {
            target: target.clone(),
            pinned,
        })?;
        self.commit()?;
        Ok(true)
    }

    /// What is pinned.
    pub fn pins(&self) -> Result<Vec<PinTarget>, StoreError> {
        let rows = self.inner.index.pins()?;
        let pinned = rows.iter().filter(|(_, pinned, _)| *pinned);
        Ok(pinned
            .filter_map(|(key, ..)| serde_json::from_slice(key).ok())
            .collect())
    }

    /// Every digest that a pin protects.
    pub fn pinned(&self) -> Result<HashSet<BlobDigest>, StoreError> {
        let mut out = HashSet::new();
        for target in self.pins()? {
            if let Some(root) = self.target_digest(&target)? {
                out.extend(self.closure(&root)?);
            }
        }
        Ok(out)
    }

    /// The digest a target means now; `None` for a tag that is not known.
    pub fn target_digest(&self, target: &PinTarget) -> Result<Option<BlobDigest>, StoreError> {
        Ok(match target {
            PinTarget::Digest(digest) => Some(*digest),
            PinTarget::Tag { source, tag } => self.tag(source, tag)?.map(|fact| fact.digest),
        })
    }

    /// A digest and everything below it, as far as manifests were served here.
    pub fn closure(&self, root: &BlobDigest) -> Result<HashSet<BlobDigest>, StoreError> {
        let mut out = HashSet::from([*root]);
        let mut level = vec![*root];
        for _ in 0..DEPTH_MAX {
            let mut next = Vec::new();
            for digest in level {
                let Some(fact) = self.manifest(&digest)? else { continue };
                for member in fact.members {
                    if out.len() < DIGESTS_MAX && out.insert(member) {
                        next.push(member);
                    }
                }
            }
            level = next;
        }
        Ok(out)
    }
}
