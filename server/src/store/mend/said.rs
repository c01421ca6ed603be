//! What whole records say of members and tags: beside it, what the index knows can be seen to be lost.
//!
//! In: facts, in their order. Out: whether they say something. Invariant: of a tag only what was said last counts.
//! Not here: reading them, and what is done about what is lost ([`super`]).

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher as _};

use headstart_layer_format::BlobDigest;

use crate::store::facts::{Membership, Source};
use crate::store::index::TagRow;
use crate::store::learned::Fact;

/// As hashes: 8 bytes a membership, 16 a tag.
#[derive(Default)]
pub(super) struct Said {
    members: HashSet<u64>,
    /// Where each tag pointed last.
    tags: HashMap<u64, u64>,
    /// Those of them that are forgotten, which no record says: as many at most as wait for the oldest pack's turn.
    pub(super) taken_back: HashMap<u64, (Source, String)>,
}

impl Said {
    /// `row`: what the index knows of a tag.
    pub(super) fn say<E>(
        &mut self,
        fact: Fact,
        row: impl FnOnce(&Source, &str) -> Result<Option<TagRow>, E>,
    ) -> Result<(), E> {
        let mut served = |source: &Source, digest: &BlobDigest| {
            self.members.insert(member_said(source, digest, Membership::Served));
            self.members.insert(member_said(source, digest, Membership::Named));
        };
        match fact {
            Fact::Manifest(m) => {
                served(&m.source, &m.digest);
                for digest in &m.members {
                    self.members.insert(member_said(&m.source, digest, Membership::Named));
                }
            }
            Fact::Member { source, digest } => served(&source, &digest),
            Fact::Members { source, digests } => {
                for digest in &digests {
                    self.members.insert(member_said(&source, digest, Membership::Named));
                }
            }
            Fact::Tag { source, tag, fact } => {
                let key = hash_of(&(&source, &tag));
                self.tags.insert(key, hash_of(&fact.digest));
                if row(&source, &tag)?.is_none() {
                    self.taken_back.insert(key, (source, tag));
                }
            }
            Fact::Untagged { source, tag, .. } => {
                let key = hash_of(&(&source, &tag));
                self.tags.remove(&key);
                self.taken_back.remove(&key);
            }
            // Rows say where these are: they are looked at one by one.
            Fact::Config { .. } | Fact::Pin { .. } => {}
        }
        Ok(())
    }

    pub(super) fn names(&self, source: &Source, digest: &BlobDigest, membership: Membership) -> bool {
        self.members.contains(&member_said(source, digest, membership))
    }

    /// Whether a tag points there.
    pub(super) fn points(&self, source: &Source, tag: &String, digest: &BlobDigest) -> bool {
        self.tags.get(&hash_of(&(source, tag))) == Some(&hash_of(digest))
    }
}

fn hash_of(what: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}

fn member_said(source: &Source, digest: &BlobDigest, membership: Membership) -> u64 {
    hash_of(&(source, digest, membership == Membership::Served))
}
