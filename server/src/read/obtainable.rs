//! Whether what a manifest names can be had, asked before a manifest is served from here.
//!
//! In: a manifest that is here, and what is known about its upstream. Out: yes, or why not.
//! Invariant: podman, skopeo and CRI-O choose their mirror by the manifest, and fail for good if a blob of it cannot be
//! had afterwards. So a manifest whose blobs are neither here nor to be had is refused, and the client goes to its next
//! mirror. An image that is here as a whole costs no upstream call; one that is not costs at most one, for everybody who
//! asks within [`REMEMBERED`], and none while the upstream was seen to answer within [`GOOD_FOR`]. That an upstream has
//! confirmed a manifest just now does not mean that its blobs can be had (they are often elsewhere, behind another name or a
//! firewall). For who asks for its head only, the head of one of them is asked for, once a repository and
//! [`BLOBS_GOOD_FOR`]; a head that takes long is taken for a yes. Who asks for the manifest itself will fetch its blobs, and so
//! will the conversion: they are begun before it is given ([`super::beginnings`]), all that are not here, and one that does
//! not begin withholds it. Where nothing is fetched unasked, and of an index, whose reader may want another platform, the heads
//! of all of them are asked for instead.
//! A blob is here only for repositories that are known to have it: where not everybody may read everything, one that came
//! with another repository is confirmed in the background while the upstream is up ([`Obtainable::confirm_soon`]).
//! Not here: which manifests are confirmed when ([`super::manifests`]).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use headstart_layer_format::BlobDigest;
use moka::sync::Cache;
use tokio::time::timeout;

use super::{
    beginnings::{self, AT_ONCE},
    blobs::Blobs,
    blocking::blocking,
    coalesce::Coalesce,
    document::{is_foreign, is_index},
    error::ReadError,
    layers::Layers,
    setbacks::is_upstreams_fault,
    turns::Asker,
};
use crate::{
    store::{
        Store,
        facts::{ManifestFact, Source},
    },
    upstream::{Caller, Health, Reference, Upstream, UpstreamError, Upstreams},
};

/// An upstream that answered this recently is taken to be up.
const GOOD_FOR: Duration = Duration::from_secs(5);

/// A repository one of whose blobs was to be had this recently is taken to have the others.
const BLOBS_GOOD_FOR: Duration = Duration::from_secs(60);

/// Nobody waits longer before a confirmed manifest is served: a slow upstream is not one that has nothing.
pub const VOUCH_MAX: Duration = Duration::from_secs(2);

/// How long an answer about one manifest is good. Blobs may be evicted, and upstreams recover.
const REMEMBERED: Duration = Duration::from_secs(5);

/// Manifests remembered: what a cluster pulls within a few seconds.
const ENTRIES_MAX: u64 = 8192;

/// Indexes inside indexes that are looked into. One is in use; a manifest cannot contain itself.
const DEPTH_MAX: u32 = 3;

/// Children of an index that are looked at. Real ones have some dozens.
const CHILDREN_MAX: usize = 256;

/// Blobs of an image that are asked about. What runs has at most 127 layers.
const BLOBS_MAX: usize = 128;

/// What is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Missing {
    Blob(BlobDigest),
    /// A child of an index of which no child is here as a whole.
    Child(BlobDigest),
}

/// A manifest that is to be given, to whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pull {
    source: Source,
    caller: Caller,
    manifest: BlobDigest,
    /// Blobs are begun, where they are wanted here. Heads prove less.
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

/// Clones share what is remembered.
#[derive(Clone, Debug)]
pub struct Obtainable {
    inner: Arc<Inner>,
    probes: Coalesce<(Source, Caller, Missing), Result<(), UpstreamError>>,
    beginning: Coalesce<Pull, Result<bool, ReadError>>,
}

#[derive(Debug)]
struct Inner {
    blobs: Blobs,
    store: Store,
    upstreams: Upstreams,
    complete: Cache<(Source, BlobDigest), ()>,
    /// Manifests whose blobs were looked at in the background.
    confirmed: Cache<(Source, BlobDigest), ()>,
    probed: Cache<(Source, Caller, Missing), Result<(), UpstreamError>>,
    /// Manifests of which everything is here, has begun to come, or was promised a moment ago; and until when that is good.
    begun: Cache<Pull, Instant>,
    /// An outage concerns everything of an upstream.
    down: Cache<String, UpstreamError>,
    /// Repositories that gave the head of a blob, or did not: of these, an upstream that answers is no proof.
    vouched: Cache<(Source, Caller), ()>,
    suspect: Cache<(Source, Caller), ()>,
}

impl Obtainable {
    pub fn new(blobs: Blobs, store: Store, upstreams: Upstreams) -> Self {
        Self {
            inner: Arc::new(Inner {
                blobs,
                store,
                upstreams,
                complete: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(REMEMBERED)
                    .build(),
                confirmed: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(REMEMBERED)
                    .build(),
                probed: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(REMEMBERED)
                    .build(),
                begun: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(BLOBS_GOOD_FOR)
                    .build(),
                down: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(REMEMBERED)
                    .build(),
                vouched: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(BLOBS_GOOD_FOR)
                    .build(),
                suspect: Cache::builder()
                    .max_capacity(ENTRIES_MAX)
                    .time_to_live(REMEMBERED)
                    .build(),
            }),
            probes: Coalesce::default(),
            beginning: Coalesce::default(),
        }
    }

    /// `trouble` is what the upstream has just said about the manifest itself, if it was asked.
    pub async fn check(
        &self,
        caller: &Caller,
        fact: &ManifestFact,
        trouble: Option<&UpstreamError>,
    ) -> Result<(), ReadError> {
        let inner = &self.inner;
        let source = &fact.source;
        let key = (source.clone(), fact.digest);
        if inner.complete.contains_key(&key) {
            return Ok(());
        }
        let upstream = inner.upstreams.get(&source.upstream).cloned();
        let upstream = upstream.ok_or(UpstreamError::NotFound { name_unknown: true })?;
        let suspect = inner.suspect.contains_key(&(source.clone(), caller.clone()));
        let is_good = || matches!(upstream.health(), Health::Good { since } if since.elapsed() < GOOD_FOR);
        if !suspect && trouble.is_none() && is_good() {
            return Ok(());
        }
        let Some(missing) = self.missing(fact, trouble.is_none()).await? else {
            inner.complete.insert(key, ());
            return Ok(());
        };
        // Registries count manifests and blobs apart, so a limit on the one says nothing about the other; nor does a
        // manifest that is gone.
        let decided = trouble.filter(|e| e.is_outage() && !matches!(e, UpstreamError::TooManyRequests { .. }));
        let answer = match decided {
            Some(error) => Err(error.clone()),
            None => self.probe(source, caller, upstream, missing).await,
        };
        Ok(answer.inspect_err(|error| {
            tracing::info!(
                manifest = %fact.digest, upstream = source.upstream, repository = source.repository, %error,
                "manifest is withheld: not all of its blobs are here or can be had"
            );
        })?)
    }

    /// Whether everything that an image needs is here; of an index, whether one of its images is.
    pub async fn is_whole(&self, fact: &ManifestFact) -> Result<bool, ReadError> {
        Ok(self.missing(fact, false).await?.is_none())
    }

    /// Whether nothing needs to be asked before a manifest that the upstream has just confirmed is served.
    pub fn is_vouched(&self, source: &Source, caller: &Caller) -> bool {
        self.inner.vouched.contains_key(&(source.clone(), caller.clone()))
    }

    /// The upstream has just given or confirmed this manifest, so it can be asked about blobs, too: those that are here
    /// because of another repository and whose place in this one only the manifest claims. Does not block.
    pub fn confirm_soon(&self, caller: &Caller, fact: &ManifestFact) {
        let inner = &self.inner;
        let key = (fact.source.clone(), fact.digest);
        if !inner.store.doubts_manifests() || is_index(&fact.media_type) || inner.confirmed.contains_key(&key) {
            return;
        }
        inner.confirmed.insert(key, ());
        let members = fact.members.iter().filter(|digest| !is_foreign(fact, digest));
        inner
            .blobs
            .confirm_soon(&fact.source, caller, members.copied().collect());
    }

    /// Of an image whose manifest the upstream has just confirmed: whether its repository gives blobs at all.
    pub async fn vouch(&self, caller: &Caller, fact: &ManifestFact) -> Result<(), ReadError> {
        let Some(Missing::Blob(digest)) = self.missing(fact, true).await? else {
            return Ok(());
        };
        if self.ask_for_head(caller, fact, digest).await? {
            self.inner.vouched.insert((fact.source.clone(), caller.clone()), ());
        }
        Ok(())
    }

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
        let asker = Asker::current();
        let begun = self.beginning.run(pull.clone(), || {
            let (all, caller, fact, layers) = (self.clone(), caller.clone(), fact.clone(), layers.cloned());
            asker.asks(async move {
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
            })
        });
        begun.await.unwrap_or(Err(ReadError::Stopping))
    }

    /// The same is known without asking. `begins`: blobs that are wanted here are begun.
    pub fn is_begun(&self, caller: &Caller, fact: &ManifestFact, begins: bool) -> bool {
        self.is_known(&Pull::of(caller, fact, begins))
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
            for digest in inner.missing_blobs(&of, true, BLOBS_MAX)? {
                match &layers {
                    // Of what an earlier fetch has left, more bytes would prove nothing.
                    Some(layers) if layers.fetches(&of, &digest)? && !inner.blobs.has_left(&of.source, &digest) => {
                        wanted.push(digest);
                    }
                    _ => others.push(digest),
                }
            }
            Ok((wanted, others))
        })
        .await?;
        let heads = stream::iter(others).map(|digest| self.ask_for_head(caller, fact, digest));
        let heads = heads.buffer_unordered(AT_ONCE);
        let heads = timeout(VOUCH_MAX, heads.try_fold(true, async |all, one| Ok(all && one)));
        // Whatever takes long is taken for a yes.
        let heads = async { heads.await.unwrap_or(Ok(false)) };
        let (promised, begun) = tokio::try_join!(heads, self.begin_all(caller, fact, wanted))?;
        Ok(promised && begun)
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

    /// "No": as far as can be told, it can be had.
    async fn ask_for_head(&self, caller: &Caller, fact: &ManifestFact, digest: BlobDigest) -> Result<bool, ReadError> {
        let (inner, source) = (&self.inner, &fact.source);
        let Some(upstream) = inner.upstreams.get(&source.upstream).cloned() else {
            return Ok(false);
        };
        match self.probe(source, caller, upstream, Missing::Blob(digest)).await {
            Ok(()) => Ok(true),
            // A limit passes.
            Err(UpstreamError::TooManyRequests { .. } | UpstreamError::Timeout | UpstreamError::Busy) => Ok(false),
            Err(error) => {
                tracing::info!(
                    manifest = %fact.digest, blob = %digest, upstream = source.upstream, repository = source.repository,
                    %error, "manifest is withheld: the upstream has it, but does not give its blobs"
                );
                // The repository has other images, too: they are asked about, and not condemned.
                inner.suspect.insert((source.clone(), caller.clone()), ());
                Err(error.into())
            }
        }
    }

    /// Whether something that the manifest names could not be had a moment ago. Costs no upstream call, so it is asked of
    /// manifests that the upstream has just confirmed, too.
    pub async fn no_setback(&self, caller: &Caller, fact: &ManifestFact) -> Result<(), ReadError> {
        let inner = &self.inner;
        let of_index = is_index(&fact.media_type);
        let setback = |digest: &BlobDigest| {
            let error = match of_index {
                true => inner.blobs.withheld(&fact.source, caller, digest),
                false => inner.blobs.setback(&fact.source, caller, digest),
            };
            Some((*digest, error?))
        };
        let needed = fact.members.iter().filter(|digest| !is_foreign(fact, digest));
        let mut setbacks: Vec<_> = needed.filter_map(setback).collect();
        if !of_index && !setbacks.is_empty() {
            let (inner, source) = (inner.clone(), fact.source.clone());
            setbacks = blocking(move || {
                let mut left = Vec::new();
                for setback in setbacks {
                    if !inner.is_here(&source, &setback.0)? {
                        left.push(setback);
                    }
                }
                Ok(left)
            })
            .await?;
        }
        let Some((_, error)) = setbacks.into_iter().next() else {
            return Ok(());
        };
        // One broken platform must not keep those from their image whose platform is here as a whole.
        if of_index && self.is_whole(fact).await? {
            return Ok(());
        }
        tracing::info!(
            manifest = %fact.digest, upstream = fact.source.upstream, repository = fact.source.repository, %error,
            "manifest is withheld: one of its blobs could not be had a moment ago"
        );
        if !of_index {
            // So that the index above it is withheld next time: its platform is chosen after the mirror.
            inner.blobs.withhold(&fact.source, caller, &fact.digest, &error);
        }
        Err(error)
    }

    /// Something that the manifest needs and that is not here. What `arrives` counts as here, unless the upstream that it
    /// comes from is known to be in trouble.
    async fn missing(&self, fact: &ManifestFact, arrives: bool) -> Result<Option<Missing>, ReadError> {
        let (inner, fact) = (self.inner.clone(), fact.clone());
        blocking(move || inner.missing(&fact, arrives, 0)).await
    }

    /// Asks the upstream for the head of what is missing: once for everybody, and not again for a while.
    async fn probe(
        &self,
        source: &Source,
        caller: &Caller,
        upstream: Arc<Upstream>,
        missing: Missing,
    ) -> Result<(), UpstreamError> {
        if let Some(error) = self.inner.down.get(&source.upstream) {
            return Err(error);
        }
        let key = (source.clone(), caller.clone(), missing);
        if let Some(known) = self.inner.probed.get(&key) {
            return known;
        }
        let asked = Instant::now();
        let probe = self.probes.run(key.clone(), || {
            let ((source, caller, _), blobs) = (key.clone(), self.inner.blobs.clone());
            async move { ask(&blobs, &upstream, &source, &caller, missing).await }
        });
        let answer = probe.await.unwrap_or(Err(UpstreamError::Timeout));
        match &answer {
            // Our own limit: it says nothing about the upstream.
            Err(UpstreamError::Busy) => {}
            // A status is about what was asked for, until the breaker has seen enough of them. A limit passes.
            Err(UpstreamError::Status(_) | UpstreamError::TooManyRequests { .. }) => {
                self.inner.probed.insert(key, answer.clone())
            }
            Err(error) if error.is_outage() => self.inner.down.insert(source.upstream.clone(), error.clone()),
            _ => self.inner.probed.insert(key, answer.clone()),
        }
        tracing::debug!(
            upstream = source.upstream,
            ?missing,
            took_ms = asked.elapsed().as_millis() as u64,
            up = answer.is_ok(),
            "asked the upstream for the head of what is missing"
        );
        answer
    }
}

async fn ask(
    blobs: &Blobs,
    upstream: &Upstream,
    source: &Source,
    caller: &Caller,
    missing: Missing,
) -> Result<(), UpstreamError> {
    let answer = match missing {
        Missing::Blob(digest) => match blobs.head(source, caller, &digest).await {
            Ok(()) => Ok(()),
            Err(ReadError::Upstream(error)) => Err(error),
            // Ours, and nothing that the upstream said.
            Err(_) => Err(UpstreamError::Busy),
        },
        Missing::Child(digest) => {
            let reference = Reference::Digest(digest);
            let head = upstream
                .manifest_head(&source.repository, caller, &reference, &[])
                .await;
            match head.map(drop) {
                // Some indexes name children that were never pushed; the others can be had.
                Err(UpstreamError::NotFound { .. }) => Ok(()),
                head => head,
            }
        }
    };
    match answer {
        // A registry without HEAD is there all the same.
        Err(UpstreamError::Status(400 | 405 | 501)) => Ok(()),
        answer => answer,
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
        Ok(missing.first().copied().map(Missing::Blob))
    }

    /// At most `count` of them.
    fn missing_blobs(&self, fact: &ManifestFact, arrives: bool, count: usize) -> Result<Vec<BlobDigest>, ReadError> {
        let (mut missing, mut unclaimed) = (Vec::new(), Vec::new());
        for digest in fact.members.iter().filter(|digest| !is_foreign(fact, digest)) {
            let comes = self.blobs.is_on_disk(digest) || (arrives && self.blobs.is_arriving(digest));
            let is_member = comes && self.store.is_member(&fact.source, digest)?;
            if !comes || (!is_member && self.store.doubts_manifests()) {
                missing.push(*digest);
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

    /// Here, and known to be the repository's.
    fn is_here(&self, source: &Source, digest: &BlobDigest) -> Result<bool, ReadError> {
        Ok(self.blobs.is_on_disk(digest) && self.store.is_member(source, digest)?)
    }
}
