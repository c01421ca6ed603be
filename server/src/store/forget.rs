//! Forgetting: facts of images that nobody has asked for since nothing of them is here, when there are too many facts.
//!
//! In: how much is to go, what is here, what is pinned. Out: fewer rows; sweeps drop the records that have none.
//! Invariant: what goes is only rows, which a rebuild brings back while the packs have their records: they are true still,
//! and go again; of tags the latest alone ([`super::untag`]). Pinned images stay, and whatever is asked for meanwhile: it is noted ([`Asked`]) *before* its rows are looked at,
//! and rows go while nobody appends facts, after a look at the notes. Whoever asks later has it fetched, and recorded anew.
//! Not here: when, and how much ([`crate::reclaim`]).

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use headstart_layer_format::{BlobDigest, ChainId};

use super::facts::ManifestFact;
use super::index::Batch;
use super::layers::LayerRecord;
use super::learned::Fact;
use super::pack::Location;
use super::packs::Alone;
use super::{Store, StoreError, keys};

/// What a tag and its like take beside a manifest and a config.
const BESIDE_BYTES: u64 = 300;
/// What a membership takes.
const MEMBER_BYTES: u64 = 200;
/// Rows that are looked at, or images that go, while nobody appends a fact.
pub(super) const AT_ONCE: usize = 64;

/// What was asked for since a forgetting began; `None`: there is none.
#[derive(Debug, Default)]
pub(super) struct Asked(Mutex<Option<HashSet<BlobDigest>>>);

impl Asked {
    fn lock(&self) -> MutexGuard<'_, Option<HashSet<BlobDigest>>> {
        // A set: a panic leaves it usable.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be called before its rows are looked at.
    pub fn note<'d>(&self, digests: impl IntoIterator<Item = &'d BlobDigest>) {
        if let Some(asked) = &mut *self.lock() {
            asked.extend(digests);
        }
    }
}

/// While it lives, what is asked for is noted.
struct Noting<'a>(&'a Asked);

impl<'a> Noting<'a> {
    fn begin(asked: &'a Asked) -> Self {
        *asked.lock() = Some(HashSet::new());
        Self(asked)
    }
}

impl Drop for Noting<'_> {
    fn drop(&mut self) {
        *self.0.lock() = None;
    }
}

/// What is here, and must stay.
#[derive(Debug, Default)]
pub struct Here {
    /// Originals, and when they were used last.
    pub originals: HashMap<BlobDigest, u64>,
    pub pinned: HashSet<BlobDigest>,
}

/// How much of an image is here; those with less go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Nothing,
    Something,
    /// Every layer can be read lazily.
    Layers,
    /// Its manifest was asked for not long ago: of originals, manifests go last.
    Manifest,
}

#[derive(Debug)]
struct Image {
    left: Left,
    used_unix_ms: u64,
    at: Location,
    digest: BlobDigest,
    bytes: u64,
}

impl Store {
    /// Forgets facts of about so many bytes, if there are as many that may go; how many rows. `None`: told to stop.
    pub fn forget_facts(&self, bytes: u64, here: &Here, go_on: &dyn Fn() -> bool) -> Result<Option<u64>, StoreError> {
        let _noting = Noting::begin(&self.inner.asked);
        self.inner.index.note_forgetting()?;
        let Some(crowds) = self.forget_crowds(go_on)? else {
            return Ok(None);
        };
        let bytes = bytes.saturating_sub(crowds.saturating_mul(MEMBER_BYTES));
        let Some(mut images) = self.images_that_may_go(here, go_on)? else {
            return Ok(None);
        };
        let (mut sum, mut count) = (0, 0);
        for image in &images {
            if sum >= bytes {
                break;
            }
            sum += image.bytes;
            count += 1;
        }
        // With all of them gone it is the memberships of what is here that are too many.
        let too_few = sum < bytes;
        images.truncate(count);
        let going = images;
        let gone: HashSet<_> = going.iter().map(|image| image.digest).collect();
        let Some(mut needed) = self.needed(here, &gone, too_few, go_on)? else {
            return Ok(None);
        };
        let mut rows = crowds;
        for images in going.chunks(AT_ONCE) {
            rows += self.forget_images(images)?;
            if !go_on() {
                return Ok(None);
            }
        }
        self.add_kept(&going, &mut needed)?;
        let Some(members) = self.forget_members(&needed, go_on)? else {
            return Ok(None);
        };
        let tags = self.forget_tags(&needed, go_on)?;
        Ok(tags.map(|tags| rows + members + tags))
    }

    /// In the order in which they would go.
    fn images_that_may_go(&self, here: &Here, go_on: &dyn Fn() -> bool) -> Result<Option<Vec<Image>>, StoreError> {
        let index = &self.inner.index;
        let mut out = Vec::new();
        for digest in index.manifests()? {
            if !go_on() {
                return Ok(None);
            }
            let Some(at) = index.manifest(&digest)?.filter(|_| !here.pinned.contains(&digest)) else {
                continue;
            };
            let config = index.diff_ids(&digest)?.map_or(0, |at| u64::from(at.payload_len));
            let used = here.originals.get(&digest).copied();
            out.push(Image {
                left: match (used, self.fact_at(&at)?) {
                    (Some(_), _) => Left::Manifest,
                    (None, Some(Fact::Manifest(fact))) => self.what_is_left(&fact, here)?,
                    // Damaged.
                    (None, _) => Left::Nothing,
                },
                used_unix_ms: used.unwrap_or_default(),
                at,
                digest,
                bytes: u64::from(at.payload_len) + config + BESIDE_BYTES,
            });
        }
        // Of those that are alike, what was written first goes first.
        out.sort_unstable_by_key(|image| (image.left, image.used_unix_ms, image.at.pack, image.at.offset));
        Ok(Some(out))
    }

    fn what_is_left(&self, fact: &ManifestFact, here: &Here) -> Result<Left, StoreError> {
        if let Some(image) = &fact.image {
            let (mut all, mut any) = (!image.layers.is_empty(), false);
            for layer in &image.layers {
                let is_ready = matches!(self.sure_layer(&layer.digest)?, Some(LayerRecord::Ready { .. }));
                (all, any) = (all && is_ready, any || is_ready);
            }
            if all {
                return Ok(Left::Layers);
            }
            if any {
                return Ok(Left::Something);
            }
        }
        let is_here = fact.members.iter().any(|member| here.originals.contains_key(member));
        Ok(if is_here { Left::Something } else { Left::Nothing })
    }

    /// Digests whose memberships and tags stay: those of images that stay, and, unless only those shall, what is here.
    fn needed(
        &self,
        here: &Here,
        gone: &HashSet<BlobDigest>,
        only_images: bool,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<HashSet<BlobDigest>>, StoreError> {
        let index = &self.inner.index;
        let mut needed = here.pinned.clone();
        if !only_images {
            needed.extend(here.originals.keys());
            let layers = index.layers()?.into_iter();
            needed.extend(
                layers.filter_map(|(layer, record)| matches!(record, LayerRecord::Ready { .. }).then_some(layer)),
            );
            needed.retain(|digest| !gone.contains(digest));
        }
        for digest in index.manifests()?.into_iter().filter(|digest| !gone.contains(digest)) {
            if !go_on() {
                return Ok(None);
            }
            if let Some(at) = index.manifest(&digest)?
                && let Some(Fact::Manifest(fact)) = self.fact_at(&at)?
            {
                needed.extend(fact.members);
            }
            needed.insert(digest);
        }
        Ok(Some(needed))
    }

    /// Of images that were to go, those that were asked for meanwhile have their rows still: what they name stays with them.
    /// Whoever records one after this has its members noted.
    fn add_kept(&self, going: &[Image], needed: &mut HashSet<BlobDigest>) -> Result<(), StoreError> {
        for image in going {
            if let Some(at) = self.inner.index.manifest(&image.digest)? {
                needed.insert(image.digest);
                if let Some(Fact::Manifest(fact)) = self.fact_at(&at)? {
                    needed.extend(fact.members);
                }
            }
        }
        Ok(())
    }

    /// Runs while nobody else appends a fact; `asked` tells what must stay. Rows that went.
    pub(super) fn forgetting(
        &self,
        work: impl FnOnce(&HashSet<BlobDigest>, &mut Batch, &mut Alone<'_>) -> Result<(), StoreError>,
    ) -> Result<u64, StoreError> {
        self.inner.packs.alone(|log| {
            let asked = self.inner.asked.lock();
            let mut rows = Batch::default();
            if let Some(asked) = &*asked {
                work(asked, &mut rows, log)?;
            }
            let count = rows.len() as u64;
            self.inner.index.apply(rows)?;
            Ok(count)
        })
    }

    fn forget_images(&self, images: &[Image]) -> Result<u64, StoreError> {
        let index = &self.inner.index;
        // Before: whoever reads a pack may wait for who appends.
        let mut configs = HashMap::new();
        for image in images {
            if let Some(at) = index.diff_ids(&image.digest)?
                && let Some(Fact::Config { diff_ids, .. }) = self.fact_at(&at)?
            {
                configs.insert(image.digest, ChainId::chain(&diff_ids));
            }
        }
        let forgotten = self.forgetting(|asked, rows, _| {
            // More than one of them may have claimed one.
            let mut chains = HashMap::new();
            for image in images.iter().filter(|image| !asked.contains(&image.digest)) {
                let digest = &image.digest;
                // Since then it was recorded anew, or moved.
                if index.manifest(digest)? != Some(image.at) {
                    continue;
                }
                for chain in configs.remove(digest).unwrap_or_default() {
                    let mut claims = match chains.remove(&chain) {
                        Some(claims) => claims,
                        None => index.chain(&chain)?,
                    };
                    claims
                        .iter_mut()
                        .for_each(|claim| claim.manifests.retain(|m| m != digest));
                    claims.retain(|claim| !claim.manifests.is_empty());
                    chains.insert(chain, claims);
                }
                rows.forget(keys::manifest(digest));
                rows.forget(keys::diff_ids(digest));
            }
            for (chain, claims) in &chains {
                rows.chain(chain, claims)?;
            }
            Ok(())
        })?;
        for image in images {
            self.inner.at_hand.manifests.forget(&image.digest);
        }
        Ok(forgotten)
    }

    fn forget_members(
        &self,
        needed: &HashSet<BlobDigest>,
        go_on: &dyn Fn() -> bool,
    ) -> Result<Option<u64>, StoreError> {
        let (mut after, mut count) = (vec![keys::MEMBER], 0);
        loop {
            let page = self.inner.index.rows_after(&after, AT_ONCE)?;
            let Some((last, _)) = page.last() else {
                return Ok(Some(count));
            };
            after.clone_from(last);
            let members = page.iter().filter(|(key, _)| key.first() == Some(&keys::MEMBER));
            let members: Vec<_> = members
                .filter_map(|(key, _)| keys::member_from(key.get(1..)?))
                .collect();
            let ends = members.len() < page.len();
            let mut gone = Vec::new();
            count += self.forgetting(|asked, rows, _| {
                let goes = |digest: &BlobDigest| !needed.contains(digest) && !asked.contains(digest);
                for (source, digest) in members.iter().filter(|(_, digest)| goes(digest)) {
                    rows.forget(keys::member(source, digest));
                    rows.forget(keys::source(digest, source));
                    gone.push(keys::member(source, digest));
                }
                Ok(())
            })?;
            for key in &gone {
                self.inner.at_hand.members.forget(key.as_slice());
            }
            if ends || !go_on() {
                return Ok(ends.then_some(count));
            }
        }
    }
}
