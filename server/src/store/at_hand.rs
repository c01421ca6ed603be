//! Facts that are asked for over and over, without the index.
//!
//! In: facts as they were read. Out: the same, from memory alone: for callers that must not block, and that ask the store
//! itself when nothing is at hand.
//! Invariant: "not at hand" says nothing. A membership at hand is one that the index has (they are added, so an old answer is
//! at most too small); tags and manifests are forgotten when they are recorded anew, and all of them with their rows.
//! Not here: the rules of keeping and forgetting ([`super::hot`]).

use std::sync::Arc;

use headstart_layer_format::BlobDigest;

use super::{
    Store,
    facts::{ManifestFact, Membership, Source, TagFact},
    hot::Hot,
    keys,
};

/// Some hundred bytes each.
const MEMBERS_MAX: usize = 32 << 10;
const TAGS_MAX: usize = 8 << 10;
const SIZES_MAX: usize = 32 << 10;

/// By the number of digests, which is what makes some manifests' facts large; a digest costs some hundred bytes.
const MANIFEST_DIGESTS_MAX: usize = 128 << 10;

/// What [`Store`] keeps at hand.
#[derive(Debug)]
pub(super) struct AtHand {
    pub(super) members: Hot<Vec<u8>, Membership>,
    pub(super) tags: Hot<Vec<u8>, TagFact>,
    pub(super) manifests: Hot<BlobDigest, Arc<ManifestFact>>,
    /// Of layers, as manifests say.
    sizes: Hot<BlobDigest, u64>,
}

impl Default for AtHand {
    fn default() -> Self {
        Self {
            members: Hot::new(MEMBERS_MAX),
            tags: Hot::new(TAGS_MAX),
            manifests: Hot::new(MANIFEST_DIGESTS_MAX),
            sizes: Hot::new(SIZES_MAX),
        }
    }
}

impl AtHand {
    /// What a manifest says of its layers. A digest has one size: what was kept before is never out of date.
    pub(super) fn keep_sizes(&self, fact: &ManifestFact) {
        let ticket = self.sizes.ticket();
        for layer in fact.image.iter().flat_map(|image| &image.layers) {
            self.sizes.keep(ticket, layer.digest, layer.size, 1);
        }
    }
}

/// What a manifest's fact weighs.
pub(super) fn weight(fact: &ManifestFact) -> usize {
    1 + fact.members.len() + fact.foreign.len() + fact.image.as_ref().map_or(0, |image| image.layers.len())
}

impl Store {
    /// As [`Store::is_member`], if it is at hand that it is.
    pub fn member_at_hand(&self, s: &Source, d: &BlobDigest) -> bool {
        let known = self.inner.at_hand.members.get(keys::member(s, d).as_slice());
        known.is_some_and(|known| known >= self.membership_enough())
    }

    /// As [`Store::tag`].
    pub fn tag_at_hand(&self, s: &Source, tag: &str) -> Option<TagFact> {
        self.inner.at_hand.tags.get(keys::tag(s, tag).as_slice())
    }

    /// As [`Store::manifest`]; everybody's who has it.
    pub fn manifest_at_hand(&self, d: &BlobDigest) -> Option<Arc<ManifestFact>> {
        self.inner.at_hand.manifests.get(d)
    }

    /// How large a layer is, if a manifest that was read or recorded lately says so. Whoever wrote that may be wrong: believe it
    /// when something else says the same.
    pub fn size_at_hand(&self, d: &BlobDigest) -> Option<u64> {
        self.inner.at_hand.sizes.get(d)
    }

    /// What makes a digest a member.
    pub(super) fn membership_enough(&self) -> Membership {
        match self.doubts_manifests() {
            true => Membership::Served,
            false => Membership::Named,
        }
    }
}
