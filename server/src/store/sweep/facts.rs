//! Facts of a pack that is swept: which of them still count, and what becomes of those that do not.
//!
//! In: a record. Out: the same at the end of the log, or nothing. Invariant: the log without the pack says what the index says. So
//! the latest record of a key moves, and none before it; what says that a tag is forgotten, or that something is not pinned, stays
//! while an older record that says otherwise may be in another pack.
//! Not here: what is forgotten ([`crate::store::forget`]), in which order a pack goes ([`super`]).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, PoisonError};

use headstart_layer_format::{BlobDigest, ChainId, DiffId};

use super::{GivenUp, Stop};
use crate::store::index::Batch;
use crate::store::learned::{Fact, follow_fact};
use crate::store::pack::{Location, PackId};
use crate::store::recover::Found;
use crate::store::{Store, StoreError, keys};

/// Tags and memberships that a cycle has moved, as hashes of their payloads, and where to: what was forgotten and is recorded
/// anew has more than one record, of which one is enough. The moved one is moved on when its pack is swept in the same cycle.
pub(super) type Said = Mutex<HashMap<u64, Location>>;

fn hash_of(payload: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    payload.hash(&mut hasher);
    hasher.finish()
}

impl Store {
    pub(super) fn carry_fact(&self, found: &Found, given_up: &mut GivenUp<'_>, said: &Said) -> Result<bool, Stop> {
        let inner = &self.inner;
        // One that we cannot read may be a later version's.
        let fact = serde_json::from_slice::<Fact>(&found.payload).ok();
        // Of the others, the row says which record is the one that counts.
        let by_payload = matches!(
            fact,
            Some(Fact::Tag { .. } | Fact::Member { .. } | Fact::Members { .. })
        );
        let hash = by_payload.then(|| hash_of(&found.payload));
        let said = || said.lock().unwrap_or_else(PoisonError::into_inner);
        let elsewhere = hash.and_then(|hash| said().get(&hash).copied());
        if elsewhere.is_some_and(|at| at != found.location) {
            return Ok(false);
        }
        match &fact {
            Some(Fact::Config { manifest, diff_ids, .. }) => {
                self.forget_orphan(manifest, diff_ids, &found.location)?;
            }
            // Its row goes with the pack.
            Some(Fact::Pin { target, pinned: false }) => given_up.pins.push(target.key()),
            _ => {}
        }
        let beside = given_up.beside;
        let mut to = None;
        let moved = inner.packs.move_fact(
            &found.payload,
            || match &fact {
                Some(fact) => self.fact_counts(fact, &found.location, beside),
                None => Ok(true),
            },
            |at| {
                to = Some(at);
                match &fact {
                    Some(fact) => follow_fact(&inner.index, fact, found.location, at),
                    None => Ok(()),
                }
            },
        )?;
        if let (Some(to), Some(hash)) = (to, hash) {
            said().insert(hash, to);
        }
        if let (false, Some(Fact::Manifest(old))) = (moved, &fact) {
            let latest = self.sure_manifest(&old.digest)?;
            // Of one that was forgotten, the memberships that stay have no other record.
            if latest.is_none_or(|latest| latest.source != old.source) {
                let mut digests = Vec::new();
                for digest in &old.members {
                    // Not what was forgotten.
                    if inner.index.member(&old.source, digest)?.is_some() {
                        digests.push(*digest);
                    }
                }
                let is_member = inner.index.member(&old.source, &old.digest)?.is_some();
                let is_any = is_member || !digests.is_empty();
                if !digests.is_empty() {
                    let source = old.source.clone();
                    self.append_fact(&Fact::Members { source, digests })?;
                }
                // The manifest itself was served from there; its members were only named.
                if is_member {
                    self.append_fact(&Fact::Member {
                        source: old.source.clone(),
                        digest: old.digest,
                    })?;
                }
                return Ok(is_any);
            }
        }
        Ok(moved)
    }

    /// A rebuild brings DiffIDs back of a manifest that was forgotten, if its record went before theirs: nobody asks for them,
    /// and nobody would forget them.
    fn forget_orphan(&self, manifest: &BlobDigest, diff_ids: &[DiffId], at: &Location) -> Result<(), StoreError> {
        let index = &self.inner.index;
        self.inner.packs.alone(|_| {
            if index.manifest(manifest)?.is_some() || index.diff_ids(manifest)? != Some(*at) {
                return Ok(());
            }
            let mut rows = Batch::default();
            for chain in ChainId::chain(diff_ids) {
                let mut claims = index.chain(&chain)?;
                claims
                    .iter_mut()
                    .for_each(|claim| claim.manifests.retain(|m| m != manifest));
                claims.retain(|claim| !claim.manifests.is_empty());
                rows.chain(&chain, &claims)?;
            }
            rows.forget(keys::diff_ids(manifest));
            Ok(index.apply(rows)?)
        })
    }

    /// Whether no later fact says the same or more, and it is not forgotten. `beside`: the oldest of the other packs.
    pub(super) fn fact_counts(&self, fact: &Fact, at: &Location, beside: PackId) -> Result<bool, StoreError> {
        let index = &self.inner.index;
        Ok(match fact {
            Fact::Manifest(m) => index.manifest(&m.digest)? == Some(*at),
            Fact::Config { manifest, .. } => {
                index.diff_ids(manifest)? == Some(*at) && index.manifest(manifest)?.is_some()
            }
            Fact::Tag { source, tag, fact } => match index.tag(source, tag)? {
                Some(row) => row.packed_unix_secs == fact.confirmed_unix_secs && row.fact.digest == fact.digest,
                // A later record says that it is forgotten.
                None => false,
            },
            // What it takes back, and nobody moves any more, was in these packs at the latest.
            Fact::Untagged { behind, .. } if *behind < beside.0 => false,
            // Recorded anew, it has a later record.
            Fact::Untagged { source, tag, .. } => index.tag(source, tag)?.is_none(),
            Fact::Member { source, digest } => index.member(source, digest)?.is_some(),
            Fact::Members { source, digests } => {
                let mut any = false;
                for digest in digests {
                    any = any || index.member(source, digest)?.is_some();
                }
                any
            }
            // In the oldest pack nothing is left that it takes back.
            Fact::Pin { pinned: false, .. } if at.pack < beside => false,
            Fact::Pin { target, .. } => index.pin(&target.key())?.is_some_and(|(_, pin)| pin == *at),
        })
    }
}
