//! What a manifest needs and that is not here.
//!
//! In: a manifest. Out: the blobs of it, or the child of an index, that would have to be had from the upstream.
//! Invariant: of an index, one image that is here as a whole is enough. What has members of another repository only by a
//! manifest's word counts as here only where such a word is enough.
//! Not here: asking the upstream for it ([`super::probe`]).

use headstart_layer_format::BlobDigest;

use super::{Inner, Obtainable};
use crate::{
    read::{
        blobs::Way,
        blocking::blocking,
        document::{is_foreign, is_index},
        error::ReadError,
    },
    store::facts::{ManifestFact, Source},
    upstream::Caller,
};

/// Indexes inside indexes that are looked into. One is in use; a manifest cannot contain itself.
const DEPTH_MAX: u32 = 3;

/// Children of an index that are looked at. Real ones have some dozens.
const CHILDREN_MAX: usize = 256;

/// What is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Missing {
    Blob(BlobDigest),
    /// A blob that is here, but for the upstream's word that it is the repository's, too.
    Word(BlobDigest),
    /// A child of an index of which no child is here as a whole.
    Child(BlobDigest),
}

impl Missing {
    pub(super) fn digest(&self) -> &BlobDigest {
        match self {
            Self::Blob(digest) | Self::Word(digest) | Self::Child(digest) => digest,
        }
    }

    /// How it is asked for where blobs are asked for so: what is here, and a manifest, by HEAD.
    pub(super) fn way(&self, of_blobs: Way) -> Way {
        match self {
            Self::Blob(_) => of_blobs,
            Self::Word(_) | Self::Child(_) => Way::Head,
        }
    }
}

impl Obtainable {
    /// Something that the manifest needs and that is not here. What `arrives` counts as here, unless the upstream that it
    /// comes from is known to be in trouble.
    pub(super) async fn missing(&self, fact: &ManifestFact, arrives: bool) -> Result<Option<Missing>, ReadError> {
        let (inner, fact) = (self.inner.clone(), fact.clone());
        blocking(move || inner.missing(&fact, arrives, 0)).await
    }
}

impl Inner {
    fn missing(&self, fact: &ManifestFact, arrives: bool, depth: u32) -> Result<Option<Missing>, ReadError> {
        if !is_index(&fact.media_type) {
            return self.missing_blob(fact, arrives);
        }
        for child in fact.members.iter().take(CHILDREN_MAX) {
            let Some(child) = self.store.manifest(child)? else {
                continue;
            };
            // Whoever brought it: it is asked for in this repository.
            let child = ManifestFact {
                source: fact.source.clone(),
                ..child
            };
            let here = self.is_here(&child.source, &child.digest)?;
            // An attestation that is here does not make the image be here.
            let counts = child.image.is_some() || is_index(&child.media_type) || fact.members.len() == 1;
            if here && counts && depth < DEPTH_MAX && self.missing(&child, arrives, depth + 1)?.is_none() {
                return Ok(None);
            }
        }
        Ok(fact.members.first().copied().map(Missing::Child))
    }

    fn missing_blob(&self, fact: &ManifestFact, arrives: bool) -> Result<Option<Missing>, ReadError> {
        let missing = self.missing_blobs(fact, arrives, 1)?;
        Ok(missing.first().copied())
    }

    /// At most `count` of them.
    pub(super) fn missing_blobs(
        &self,
        fact: &ManifestFact,
        arrives: bool,
        count: usize,
    ) -> Result<Vec<Missing>, ReadError> {
        let (mut missing, mut unclaimed) = (Vec::new(), Vec::new());
        for digest in fact.members.iter().filter(|digest| !is_foreign(fact, digest)) {
            let is_on_disk = self.blobs.is_on_disk(digest);
            let comes = is_on_disk || (arrives && self.blobs.is_arriving(digest));
            let is_member = comes && self.store.is_member(&fact.source, digest)?;
            if !comes || (!is_member && self.store.doubts_manifests()) {
                missing.push(match is_on_disk {
                    true => Missing::Word(*digest),
                    false => Missing::Blob(*digest),
                });
                if missing.len() >= count {
                    return Ok(missing);
                }
            } else if !is_member {
                unclaimed.push(*digest);
            }
        }
        // The manifest was recorded for another repository, and is in this one because an index of it says so. What it
        // names is claimed for this one, too: where a manifest's word is enough, its blobs are given on this one.
        if missing.is_empty() && !unclaimed.is_empty() {
            self.store.claim_members(&fact.source, unclaimed)?;
        }
        Ok(missing)
    }

    /// Of an index, a blob of one of its images that is not here, and could not be had a moment ago: who was given the image
    /// before that comes again with the index first.
    pub(super) fn below(
        &self,
        fact: &ManifestFact,
        caller: &Caller,
    ) -> Result<Option<(BlobDigest, ReadError)>, ReadError> {
        for child in fact.members.iter().take(CHILDREN_MAX) {
            let Some(child) = self.store.manifest(child)?.filter(|child| child.image.is_some()) else {
                continue;
            };
            for digest in child.members.iter().filter(|digest| !is_foreign(&child, digest)) {
                if let Some(error) = self.blobs.setback(&fact.source, caller, digest)
                    && !self.is_here(&fact.source, digest)?
                {
                    return Ok(Some((*digest, error)));
                }
            }
        }
        Ok(None)
    }

    /// Here, and known to be the repository's.
    pub(super) fn is_here(&self, source: &Source, digest: &BlobDigest) -> Result<bool, ReadError> {
        Ok(self.blobs.is_on_disk(digest) && self.store.is_member(source, digest)?)
    }
}
