//! A pull that is about to begin: whether all that its image needs can be had.
//!
//! In: an image's manifest, and to whom it is to be given. Out: it may be given, or why not.
//! Invariant: of the blobs that are not here, those that the conversion will fetch and of which nothing is left of an earlier
//! fetch are begun ([`beginnings`]): they are fetched in any case, and no byte comes twice. Of all others the first byte is
//! asked for: of layers that are converted or refused, of what an earlier fetch has left, where nothing is fetched unasked,
//! and of an index's image, whose reader may want another platform. One that cannot be had withholds the manifest.
//! Not here: which image stands for an index ([`crate::read::manifests`]).

use std::time::Instant;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use headstart_layer_format::BlobDigest;
use tokio::time::timeout;

use super::{BLOBS_GOOD_FOR, Obtainable, REMEMBERED, VOUCH_MAX};
use crate::{
    read::{
        beginnings::{self, AT_ONCE},
        blobs::Way,
        blocking::blocking,
        document::is_index,
        error::ReadError,
        layers::Layers,
        setbacks::is_upstreams_fault,
    },
    store::facts::{ManifestFact, Source},
    upstream::Caller,
};

/// Blobs of an image that are asked about. What runs has at most 127 layers.
const BLOBS_MAX: usize = 128;

/// A manifest that is to be given, to whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pull {
    source: Source,
    caller: Caller,
    manifest: BlobDigest,
    /// Blobs are begun, where they are wanted here. First bytes prove less.
    begins: bool,
}

impl Pull {
    fn of(caller: &Caller, fact: &ManifestFact, begins: bool) -> Self {
        Self {
            source: fact.source.clone(),
            caller: caller.clone(),
            manifest: fact.digest,
            begins,
        }
    }
}

impl Obtainable {
    /// Before a client is given the image's manifest: whether all of its blobs can be had. `layers`: those which are wanted here
    /// anyway are begun. Once for everybody who asks meanwhile, and not again for a while. "No": as far as can be told, they
    /// can.
    pub async fn begin(
        &self,
        caller: &Caller,
        fact: &ManifestFact,
        layers: Option<&Layers>,
    ) -> Result<bool, ReadError> {
        let pull = Pull::of(caller, fact, layers.is_some_and(Layers::converts));
        if self.is_known(&pull) {
            return Ok(true);
        }
        let begun = self.beginning.run(pull.clone(), || {
            let (all, caller, fact, layers) = (self.clone(), caller.clone(), fact.clone(), layers.cloned());
            async move {
                let begun = all.begin_missing(&caller, &fact, layers).await;
                match &begun {
                    Ok(is_proven) => all.know(pull, *is_proven),
                    // So that an index above it is withheld next time: its platform is chosen after the mirror.
                    Err(error) if is_upstreams_fault(error) => {
                        all.inner.blobs.withhold(&fact.source, &caller, &fact.digest, error);
                    }
                    Err(_) => {}
                }
                begun
            }
        });
        begun.await.unwrap_or_else(|why| Err(why.into()))
    }

    /// The same is known without asking. `begins`: blobs that are wanted here are begun.
    pub fn is_begun(&self, caller: &Caller, fact: &ManifestFact, begins: bool) -> bool {
        self.is_known(&Pull::of(caller, fact, begins))
    }

    /// Whether it is known, without looking at anything else, that all that the manifest needs is here, has begun to come, and
    /// did not go wrong a moment ago.
    pub fn is_known_whole(&self, caller: &Caller, fact: &ManifestFact, begins: bool) -> bool {
        let pull = Pull::of(caller, fact, begins);
        let blobs = &self.inner.blobs;
        // Of an index, setbacks may be of what its images name, which is not in memory.
        let is_right = || match is_index(&fact.media_type) {
            true => false,
            false => fact
                .members
                .iter()
                .all(|d| blobs.setback(&fact.source, caller, d).is_none()),
        };
        self.is_known(&pull)
            && (blobs.has_no_setbacks() || is_right())
            && self.inner.complete.contains_key(&(pull.source, pull.manifest))
    }

    /// Of this index, an image was asked about.
    pub fn settle(&self, caller: &Caller, index: &ManifestFact, is_proven: bool) {
        self.know(Pull::of(caller, index, false), is_proven);
    }

    fn is_known(&self, pull: &Pull) -> bool {
        self.inner.begun.get(pull).is_some_and(|until| Instant::now() < until)
    }

    fn know(&self, pull: Pull, is_proven: bool) {
        let good_for = if is_proven { BLOBS_GOOD_FOR } else { REMEMBERED };
        self.inner.begun.insert(pull, Instant::now() + good_for);
    }

    async fn begin_missing(
        &self,
        caller: &Caller,
        fact: &ManifestFact,
        layers: Option<Layers>,
    ) -> Result<bool, ReadError> {
        let (inner, of) = (self.inner.clone(), fact.clone());
        let (wanted, others) = blocking(move || {
            let layers = layers.filter(|_| inner.blobs.begins_early());
            let (mut wanted, mut others) = (Vec::new(), Vec::new());
            for missing in inner.missing_blobs(&of, true, BLOBS_MAX)? {
                let digest = missing.digest();
                match &layers {
                    // Of what an earlier fetch has left, more bytes would prove nothing.
                    Some(layers) if layers.fetches(&of, digest)? && !inner.blobs.has_left(&of.source, digest) => {
                        wanted.push(*digest);
                    }
                    _ => others.push(missing),
                }
            }
            Ok((wanted, others))
        })
        .await?;
        let proofs = stream::iter(others).map(|missing| self.ask_for(caller, fact, missing, Way::FirstByte));
        let proofs = proofs.buffer_unordered(AT_ONCE);
        let proofs = timeout(VOUCH_MAX, proofs.try_fold(true, async |all, one| Ok(all && one)));
        // Whatever takes long is taken for a yes.
        let proofs = async { proofs.await.unwrap_or(Ok(false)) };
        let (proven, begun) = tokio::try_join!(proofs, self.begin_all(caller, fact, wanted))?;
        Ok(proven && begun)
    }

    async fn begin_all(
        &self,
        caller: &Caller,
        fact: &ManifestFact,
        missing: Vec<BlobDigest>,
    ) -> Result<bool, ReadError> {
        let begun = beginnings::begin(&self.inner.blobs, &fact.source, caller, missing).await;
        begun.map_err(|(blob, error)| {
            tracing::info!(
                manifest = %fact.digest, %blob, upstream = fact.source.upstream, repository = fact.source.repository, %error,
                "manifest is withheld: one of its blobs cannot be had"
            );
            error
        })
    }
}
