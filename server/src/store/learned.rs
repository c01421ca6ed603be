//! What served manifests taught: tags, memberships, images, chain IDs.
//!
//! In: the facts of [`super::facts`]. Out: the same, by key. Invariant: a fact is appended before its rows are written,
//! and replaying facts in order gives the same rows. A repeated fact is not appended again. Whoever serves gets a miss where
//! the index fails, and what is learnt meanwhile is not recorded: whoever decides what goes (`sure_`) gets the error.
//! Not here: layers and chunks ([`super::layers`]).

use std::sync::{Arc, atomic::Ordering};

use headstart_layer_format::limits::CHAIN_IMAGES_MAX;
use headstart_layer_format::{BlobDigest, ChainId, DiffId};
use serde::{Deserialize, Serialize};

use super::facts::{ChainFact, ConfigFact, ManifestFact, Membership, Source, TagFact};
use super::index::{ChainRow, Index, TagRow};
use super::layers::LayerRecord;
use super::pack::Location;
use super::pins::PinTarget;
use super::record::RecordKind;
use super::{Store, StoreError, at_hand, keys};

/// Sources kept for one blob: enough to fail over, and a base layer may be in thousands of repositories.
pub(super) const SOURCES_MAX: usize = 16;
/// Layers that different images may claim for one chain ID; only one claim can be true.
const CHAIN_CLAIMS_MAX: usize = 4;
/// A tag's confirmation alone is written to a pack at most this often; losing it costs one revalidation.
const TAG_PACKED_SECS: u64 = 3600;

/// What a fact record holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Fact {
    Manifest(ManifestFact),
    Config {
        manifest: BlobDigest,
        layers: Vec<BlobDigest>,
        diff_ids: Vec<DiffId>,
    },
    Tag {
        source: Source,
        tag: String,
        fact: TagFact,
    },
    /// It is forgotten: what was written of it before means nothing.
    Untagged {
        source: Source,
        tag: String,
        /// What was written before is in this pack, or an earlier one.
        behind: u32,
    },
    Member {
        source: Source,
        digest: BlobDigest,
    },
    /// What is left of a manifest fact that a later one, from another repository, superseded: what it named.
    Members {
        source: Source,
        digests: Vec<BlobDigest>,
    },
    Pin {
        target: PinTarget,
        pinned: bool,
    },
}

/// Writes the rows of a fact; also how a replay writes them.
pub(super) fn index_fact(index: &Index, fact: &Fact, at: Location) -> Result<(), StoreError> {
    match fact {
        Fact::Manifest(m) => {
            for digest in &m.members {
                index.add_member(&m.source, digest, Membership::Named, SOURCES_MAX)?;
            }
            index.add_member(&m.source, &m.digest, Membership::Served, SOURCES_MAX)?;
            index.set_manifest(&m.digest, &at)?;
        }
        Fact::Config {
            manifest,
            layers,
            diff_ids,
        } => {
            let chains = ChainId::chain(diff_ids);
            for ((layer, diff_id), chain) in layers.iter().zip(diff_ids).zip(&chains) {
                claim_chain(index, chain, layer, diff_id, manifest)?;
            }
            index.set_diff_ids(manifest, &at)?;
        }
        Fact::Tag { source, tag, fact } => index.set_tag(
            source,
            tag,
            &TagRow {
                fact: fact.clone(),
                packed_unix_secs: fact.confirmed_unix_secs,
            },
        )?,
        Fact::Untagged { source, tag, .. } => {
            index.forget_tag(source, tag)?;
            // Records before this one have no rows.
            index.note_forgetting()?;
        }
        Fact::Member { source, digest } => index.add_member(source, digest, Membership::Served, SOURCES_MAX)?,
        // As it was in the manifest: a claim.
        Fact::Members { source, digests } => {
            for digest in digests {
                index.add_member(source, digest, Membership::Named, SOURCES_MAX)?;
            }
        }
        Fact::Pin { target, pinned } => index.set_pin(&target.key(), *pinned, &at)?,
    }
    Ok(())
}

/// The rows that say where a fact is, once it was written again: unless they say that a later one counts.
pub(super) fn follow_fact(index: &Index, fact: &Fact, from: Location, to: Location) -> Result<(), StoreError> {
    match fact {
        Fact::Manifest(m) if index.manifest(&m.digest)? == Some(from) => index.set_manifest(&m.digest, &to)?,
        Fact::Config { manifest, .. } if index.diff_ids(manifest)? == Some(from) => {
            index.set_diff_ids(manifest, &to)?
        }
        Fact::Pin { target, pinned } if index.pin(&target.key())?.is_some_and(|(_, at)| at == from) => {
            index.set_pin(&target.key(), *pinned, &to)?;
        }
        Fact::Manifest(_) | Fact::Config { .. } | Fact::Pin { .. } => {}
        // Their rows say nothing of where they are.
        Fact::Tag { .. } | Fact::Untagged { .. } | Fact::Member { .. } | Fact::Members { .. } => {}
    }
    Ok(())
}

fn claim_chain(
    index: &Index,
    chain: &ChainId,
    layer: &BlobDigest,
    diff_id: &DiffId,
    manifest: &BlobDigest,
) -> Result<(), StoreError> {
    let mut rows = index.chain(chain)?;
    let known = rows.iter().position(|r| r.layer == *layer && r.diff_id == *diff_id);
    let mut row = match known {
        Some(at) => rows.remove(at),
        None => ChainRow {
            layer: *layer,
            diff_id: *diff_id,
            manifests: Vec::new(),
        },
    };
    row.manifests.retain(|m| m != manifest);
    row.manifests.insert(0, *manifest);
    row.manifests.truncate(CHAIN_IMAGES_MAX);
    rows.insert(0, row);
    rows.truncate(CHAIN_CLAIMS_MAX);
    Ok(index.set_chain(chain, &rows)?)
}

impl Store {
    pub(super) fn append_fact(&self, fact: &Fact) -> Result<(), StoreError> {
        let payload = serde_json::to_vec(fact).map_err(|_| StoreError::Encode)?;
        let inner = &self.inner;
        let appended = inner
            .packs
            .append_fact(&payload, |at| index_fact(&inner.index, fact, at));
        match fact {
            Fact::Manifest(m) => inner.at_hand.manifests.forget(&m.digest),
            Fact::Tag { source, tag, .. } => inner.at_hand.tags.forget(keys::tag(source, tag).as_slice()),
            _ => {}
        }
        appended
    }

    fn read_fact(&self, locate: impl Fn() -> Result<Option<Location>, StoreError>) -> Result<Option<Fact>, StoreError> {
        let payload = match self.inner.packs.read_located(RecordKind::Fact, &[], locate)? {
            None => return Ok(None),
            Some(payload) => payload,
        };
        let fact = payload.ok().and_then(|p| serde_json::from_slice(&p).ok());
        if fact.is_none() {
            // A miss: the manifest or config is read again and recorded anew.
            self.inner.count_corruption("fact");
            tracing::error!("a stored fact is damaged");
        }
        Ok(fact)
    }

    /// Every manifest that was served, and is not forgotten.
    pub fn manifests(&self) -> Result<Vec<BlobDigest>, StoreError> {
        Ok(self.inner.index.manifests()?)
    }

    /// Every tag, and what it points at.
    pub fn all_tags(&self) -> Result<Vec<(Source, String, BlobDigest)>, StoreError> {
        let rows = self.inner.index.tags()?.into_iter();
        Ok(rows.map(|(source, tag, row)| (source, tag, row.fact.digest)).collect())
    }

    /// Records a manifest that was verified and served, and its members. Nothing is appended when the manifest and its
    /// members of this source are known: a manifest in two repositories would otherwise grow the packs at every request.
    pub fn record_manifest(&self, f: &ManifestFact) -> Result<(), StoreError> {
        self.inner.asked.note(f.members.iter().chain([&f.digest]));
        self.record(|| self.record_new_manifest(f))
    }

    /// Records nothing while the index is not believed: it could not tell what is known already, and the packs would grow.
    fn record(&self, record: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
        match self.inner.index.believed() {
            Ok(()) => self.or_miss(record()),
            Err(_) => Ok(()),
        }
    }

    fn record_new_manifest(&self, f: &ManifestFact) -> Result<(), StoreError> {
        let same = |known: ManifestFact| {
            ManifestFact {
                source: f.source.clone(),
                ..known
            } == *f
        };
        if self.sure_manifest(&f.digest)?.is_some_and(same) && self.are_members(f)? {
            return Ok(());
        }
        self.append_fact(&Fact::Manifest(f.clone()))
    }

    /// Whether the rows that the fact would write are there; then they are confirmed.
    fn are_members(&self, f: &ManifestFact) -> Result<bool, StoreError> {
        let index = &self.inner.index;
        for digest in &f.members {
            if index.confirm_member(&f.source, digest)?.is_none() {
                return Ok(false);
            }
        }
        Ok(index.confirm_member(&f.source, &f.digest)? == Some(Membership::Served))
    }

    /// The latest fact for a manifest.
    pub fn manifest(&self, d: &BlobDigest) -> Result<Option<ManifestFact>, StoreError> {
        self.or_miss(self.sure_manifest(d))
    }

    /// The same; an error where the index fails.
    pub fn sure_manifest(&self, d: &BlobDigest) -> Result<Option<ManifestFact>, StoreError> {
        let manifests = &self.inner.at_hand.manifests;
        let ticket = manifests.ticket();
        match self.read_fact(|| Ok(self.inner.index.manifest(d)?))? {
            Some(Fact::Manifest(m)) if m.digest == *d => {
                manifests.keep(ticket, *d, Arc::new(m.clone()), at_hand::weight(&m));
                self.inner.at_hand.keep_sizes(&m);
                Ok(Some(m))
            }
            _ => Ok(None),
        }
    }

    /// Records an image's DiffIDs, which also makes its chain IDs known. A config whose length does not fit the
    /// manifest's layers says nothing and is dropped.
    pub fn record_config(&self, f: &ConfigFact) -> Result<(), StoreError> {
        self.inner.asked.note([&f.manifest]);
        self.record(|| self.record_new_config(f))
    }

    fn record_new_config(&self, f: &ConfigFact) -> Result<(), StoreError> {
        let Some(image) = self.sure_manifest(&f.manifest)?.and_then(|m| m.image) else {
            return Ok(());
        };
        if image.layers.len() != f.diff_ids.len() || self.sure_diff_ids(&f.manifest)?.as_ref() == Some(&f.diff_ids) {
            return Ok(());
        }
        self.append_fact(&Fact::Config {
            manifest: f.manifest,
            layers: image.layers.iter().map(|l| l.digest).collect(),
            diff_ids: f.diff_ids.clone(),
        })
    }

    /// DiffIDs of an image's layers, bottom first, once its config has been read.
    pub fn diff_ids(&self, manifest: &BlobDigest) -> Result<Option<Vec<DiffId>>, StoreError> {
        self.or_miss(self.sure_diff_ids(manifest))
    }

    fn sure_diff_ids(&self, manifest: &BlobDigest) -> Result<Option<Vec<DiffId>>, StoreError> {
        match self.read_fact(|| Ok(self.inner.index.diff_ids(manifest)?))? {
            Some(Fact::Config {
                manifest: m, diff_ids, ..
            }) if m == *manifest => Ok(Some(diff_ids)),
            _ => Ok(None),
        }
    }

    pub fn tag(&self, s: &Source, tag: &str) -> Result<Option<TagFact>, StoreError> {
        self.or_miss(self.sure_tag(s, tag))
    }

    pub(super) fn sure_tag(&self, s: &Source, tag: &str) -> Result<Option<TagFact>, StoreError> {
        let tags = &self.inner.at_hand.tags;
        let ticket = tags.ticket();
        let Some(row) = self.inner.index.tag(s, tag)? else {
            return Ok(None);
        };
        tags.keep(ticket, keys::tag(s, tag), row.fact.clone(), 1);
        Ok(Some(row.fact))
    }

    /// Tags of a source that were ever confirmed, at most `max`.
    pub fn tags(&self, s: &Source, max: usize) -> Result<Vec<String>, StoreError> {
        self.or_miss(self.inner.index.tags_of(s, max).map_err(StoreError::from))
    }

    /// Records where a tag points, or that it still points there.
    pub fn confirm_tag(&self, s: &Source, tag: &str, t: &TagFact) -> Result<(), StoreError> {
        self.inner.asked.note([&t.digest]);
        self.record(|| self.record_tag(s, tag, t))
    }

    fn record_tag(&self, s: &Source, tag: &str, t: &TagFact) -> Result<(), StoreError> {
        if let Some(mut row) = self.inner.index.tag(s, tag)? {
            let same = (row.fact.digest, &row.fact.media_type, row.fact.size) == (t.digest, &t.media_type, t.size);
            if same && t.confirmed_unix_secs.abs_diff(row.packed_unix_secs) < TAG_PACKED_SECS {
                row.fact = t.clone();
                let set = self.inner.index.set_tag(s, tag, &row);
                self.inner.at_hand.tags.forget(keys::tag(s, tag).as_slice());
                return Ok(set?);
            }
        }
        self.append_fact(&Fact::Tag {
            source: s.clone(),
            tag: tag.to_owned(),
            fact: t.clone(),
        })
    }

    /// From now on a manifest's word does not make a digest a member: for servers where not everybody may read
    /// everything.
    pub fn doubt_manifests(&self) {
        self.inner.doubts_manifests.store(true, Ordering::Relaxed);
    }

    /// Whether a manifest's word is not enough.
    pub fn doubts_manifests(&self) -> bool {
        self.inner.doubts_manifests.load(Ordering::Relaxed)
    }

    /// Whether a repository is known to hold a blob or manifest.
    pub fn is_member(&self, s: &Source, d: &BlobDigest) -> Result<bool, StoreError> {
        let members = &self.inner.at_hand.members;
        let ticket = members.ticket();
        let known = self.or_miss(self.inner.index.member(s, d).map_err(StoreError::from))?;
        let Some(known) = known else {
            return Ok(false);
        };
        members.keep(ticket, keys::member(s, d), known, 1);
        Ok(known >= self.membership_enough())
    }

    /// Records that the upstream has the digest in this repository.
    pub fn add_member(&self, s: &Source, d: &BlobDigest) -> Result<(), StoreError> {
        self.inner.asked.note([d]);
        self.record(|| {
            if self.inner.index.confirm_member(s, d)? == Some(Membership::Served) {
                return Ok(());
            }
            self.append_fact(&Fact::Member {
                source: s.clone(),
                digest: *d,
            })
        })
    }

    /// Records that a manifest of the repository names these: a claim.
    pub fn claim_members(&self, s: &Source, digests: Vec<BlobDigest>) -> Result<(), StoreError> {
        self.inner.asked.note(&digests);
        self.record(|| {
            self.append_fact(&Fact::Members {
                source: s.clone(),
                digests,
            })
        })
    }

    /// Where a blob may be fetched from; at most 16 sources.
    pub fn sources(&self, d: &BlobDigest) -> Result<Vec<Source>, StoreError> {
        self.or_miss(self.inner.index.sources(d, SOURCES_MAX).map_err(StoreError::from))
    }

    /// The layer at the top of a chain. Configs only claim DiffIDs; a claim that a conversion has disproved is skipped.
    pub fn chain(&self, c: &ChainId) -> Result<Option<ChainFact>, StoreError> {
        for row in self.or_miss(self.inner.index.chain(c).map_err(StoreError::from))? {
            if let Some(LayerRecord::Ready { diff_id, .. }) = self.layer(&row.layer)?
                && diff_id != row.diff_id
            {
                continue;
            }
            return Ok(Some(ChainFact {
                chain_id: *c,
                layer: row.layer,
                diff_id: row.diff_id,
                manifests: row.manifests,
            }));
        }
        Ok(None)
    }
}
