//! Blobs, wherever they are: on disk, in flight, or to be fetched.
//!
//! In: a [`Source`], a digest, and what is wanted of it. Out: a [`Blob`], which streams, or is read by a thread.
//! Invariant: a digest has at most one fetch from an upstream at a time, whoever asks; a client that goes away stops
//! nothing. A blob that is here is given to a source only if the repository is known to have it, or its upstream says
//! so now; what that has just said it does not have is not asked for. Bytes that are not verified yet are given to clients
//! of the upstream that sent them, and to no others.
//! Not here: the list of fetches ([`fetches`]), whether a repository has a blob ([`membership`]), what waits for the verdict
//! ([`verdict`]), what was left of a fetch ([`left`]), the fetch itself ([`super::fetch`]), the hold-back ([`super::withheld`]),
//! and the streams ([`super::blob`]).

mod fetches;
mod left;
mod membership;
mod verdict;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use headstart_layer_format::BlobDigest;
use tokio::{sync::Semaphore, time::timeout};

pub use super::blob::{Blob, BlockingReader};
pub use super::error::ReadError;
use super::{
    blob::{Place, read_block},
    blocking::blocking,
    coalesce::Coalesce,
    errand::{Errand, Yard},
    negative::{Negative, What},
    opening::check_not_emptied,
    setbacks::Setbacks,
    turns::Asker,
    wants::Wants,
    withheld::Withheld,
};
use crate::{
    config::FetchConfig,
    metrics::Metrics,
    store::{
        Store,
        facts::Source,
        opened::Opened,
        originals::{Originals, Stored},
    },
    upstream::{BlobAnswer, BlobBody, Caller, Upstream, UpstreamError, Upstreams},
};
use fetches::{Key, Slot};
use membership::CONFIRMATIONS_MAX;
pub(super) use membership::Way;
pub(super) use verdict::Await;

/// An answer's head waits this long until a file that an earlier process left is compared with its digest: some hundred MiB. A
/// larger one is streamed meanwhile.
const RECHECK_WAIT: Duration = Duration::from_millis(500);

/// Times that a request looks again because what it joined failed for a reason that is not its own.
const JOINS_MAX: usize = 4;

/// All blobs; clones share one state.
#[derive(Clone, Debug)]
pub struct Blobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: Store,
    upstreams: Upstreams,
    yard: Arc<Yard>,
    fetches: Mutex<HashMap<Key, Slot>>,
    setbacks: Setbacks,
    negative: Negative,
    confirming: Coalesce<(Source, Caller, BlobDigest), Result<(), ReadError>>,
    confirmations: Arc<Semaphore>,
    /// Heads of answers that wait for a verdict.
    heads: Semaphore,
}

impl Blobs {
    /// `heads_max`: of so many answers the head may wait for the verdict over a blob that is held.
    pub fn new(
        originals: Originals,
        store: Store,
        upstreams: Upstreams,
        config: FetchConfig,
        negative: Negative,
        metrics: Metrics,
        heads_max: usize,
    ) -> Blobs {
        Blobs(Arc::new(Inner {
            store,
            upstreams,
            yard: Arc::new(Yard::new(originals, config, metrics)),
            fetches: Mutex::default(),
            setbacks: Setbacks::default(),
            negative,
            confirming: Coalesce::default(),
            confirmations: Arc::new(Semaphore::new(CONFIRMATIONS_MAX)),
            heads: Semaphore::new(heads_max.min(Semaphore::MAX_PERMITS)),
        }))
    }

    /// The blob from disk, or the fetch in progress, or a new fetch of the whole of it.
    pub async fn open(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<Blob, ReadError> {
        self.open_awaiting(source, caller, digest, &Wants::Whole, Await::TO_STREAM)
            .await
    }

    /// The same for a client, but of a blob that is not here only what is wanted is fetched. Any of the wanted ranges can be
    /// streamed; when this returns, the upstream has begun to send the first, or the verdict over a blob that is held has
    /// been waited for until the answer's head had to be out.
    pub async fn open_range(
        &self,
        source: &Source,
        caller: &Caller,
        digest: &BlobDigest,
        wants: &Wants,
        head_by: Instant,
    ) -> Result<Blob, ReadError> {
        self.open_awaiting(source, caller, digest, wants, Await::to_answer(head_by))
            .await
    }

    pub(super) async fn open_awaiting(
        &self,
        source: &Source,
        caller: &Caller,
        digest: &BlobDigest,
        wants: &Wants,
        verdict: Await,
    ) -> Result<Blob, ReadError> {
        let errand = self.errand(source, caller, digest)?;
        let asked = wants;
        let wants = if self.yard().config.cold_range {
            wants
        } else {
            &Wants::Whole
        };
        let mut failed = ReadError::Incomplete;
        for round in 0..JOINS_MAX {
            // The hop to a thread for the look is what a cold blob's first byte would wait for. Whoever comes round again
            // does look: somebody else may have put a file there.
            let skips = round == 0 && self.yard().originals.is_surely_absent(digest);
            let found = if skips { None } else { self.look(source, digest).await? };
            if let Some((place, member)) = found {
                if !member {
                    self.confirm(&errand, source).await?;
                }
                return Ok(Blob::new(place, errand));
            }
            if let Some(no) = self.0.negative.get(source, caller, &What::Blob(*digest)) {
                return self.or_from_disk(skips, errand, source, no.into()).await;
            }
            if self.yard().is_disk_bad() {
                return past_the_disk(errand, asked, verdict).await;
            }
            let (wants, verdict) = self.judged(&errand, source, wants, verdict);
            if let Some(error) = self.refusal(&errand, source)
                && !self.has_left_all_of(source, digest, wants).await?
            {
                return self.or_from_disk(skips, errand, source, error).await;
            }
            let slot = self.join(&errand, source, wants)?;
            let mine = slot.source == *source && slot.caller == *caller;
            let error = match slot.wait().await {
                Ok(fetch) => {
                    if let Some(seat) = fetch.board() {
                        if !mine && !self.is_member(source, digest).await? {
                            self.confirm(&errand, source).await?;
                        }
                        let party = (source.clone(), errand.caller.clone());
                        match self.settle(seat, party, wants, verdict).await {
                            Ok(place) => return Ok(Blob::new(place, errand)),
                            Err(error) => error,
                        }
                    } else if let Some(Err(error)) = fetch.flight.outcome() {
                        // It failed before this task came to it.
                        error
                    } else {
                        continue;
                    }
                }
                // Only what found the original already here, or made it one, ends like this: look again.
                Err(ReadError::Incomplete) => continue,
                Err(error) => error,
            };
            match error {
                ReadError::Disk(_) => return past_the_disk(errand, asked, verdict).await,
                // These are not of the fetch that was joined: trying again would only add up the waits.
                error if mine || matches!(error, ReadError::Busy | ReadError::Stopping) => {
                    return self.or_from_disk(skips, errand, source, error).await;
                }
                error => failed = error,
            }
        }
        Err(failed)
    }

    /// The error; but whoever has not looked at the disk does so first: an original that somebody else put there, or
    /// whose name was not recorded, is all there is while the upstream is away.
    async fn or_from_disk(
        &self,
        has_not_looked: bool,
        errand: Errand,
        source: &Source,
        error: ReadError,
    ) -> Result<Blob, ReadError> {
        if has_not_looked && let Ok(Some((place, true))) = self.look(source, &errand.digest).await {
            return Ok(Blob::new(place, errand));
        }
        Err(error)
    }

    /// The size of a blob, for HEAD: asks the upstream for no more than that when the blob is not here. One that does not say
    /// it, not even with the first byte, is asked for all of it.
    pub async fn size(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<u64, ReadError> {
        let found = self.look_for_size(source, digest).await?;
        let errand = self.errand(source, caller, digest)?;
        if let Some((size, member)) = found {
            if !member {
                self.confirm(&errand, source).await?;
            }
            return Ok(size);
        }
        match self.ask(&errand, source, Way::Size).await? {
            Some(size) => check_not_emptied(digest, size).map(|()| size),
            None => Ok(self.open(source, caller, digest).await?.size()),
        }
    }

    /// Why the last fetch of the blob failed, if that was a moment ago.
    pub fn setback(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Option<ReadError> {
        self.0.setbacks.last(source, caller, digest)
    }

    #[cfg(test)]
    pub(super) fn refused(&self, source: &Source, caller: &Caller, digest: &BlobDigest, error: &ReadError) {
        self.0.setbacks.refused(source, caller, digest, error);
    }

    /// Whether nothing went wrong lately, of any blob or manifest.
    pub fn has_no_setbacks(&self) -> bool {
        self.0.setbacks.is_quiet()
    }

    /// A manifest is not served, because of a blob that it names; and why it was not, if that was a moment ago.
    pub fn withhold(&self, source: &Source, caller: &Caller, manifest: &BlobDigest, error: &ReadError) {
        self.0.setbacks.withhold(source, caller, manifest, error);
    }

    pub fn withheld(&self, source: &Source, caller: &Caller, manifest: &BlobDigest) -> Option<ReadError> {
        self.0.setbacks.withheld(source, caller, manifest)
    }

    /// The whole of a small blob, verified; for configs.
    pub async fn read_small(
        &self,
        source: &Source,
        caller: &Caller,
        digest: &BlobDigest,
        size_max: u64,
    ) -> Result<Bytes, ReadError> {
        let blob = self.open(source, caller, digest).await?;
        let size = blob.size();
        if size > size_max {
            return Err(ReadError::TooLarge { size, size_max });
        }
        if let Place::Flight { seat, .. } = &blob.place {
            let fetch = seat.fetch();
            // An empty range is readable only when the outcome is known.
            fetch.readable(&(size..size), Withheld::End).await?;
            return read_block(fetch.flight.file().clone(), 0..size).await;
        }
        if let Place::Upstream { .. } = &blob.place {
            let pieces: Vec<Bytes> = blob.stream(0..size).try_collect().await?;
            return Ok(pieces.concat().into());
        }
        let (yard, wanted) = (self.yard().clone(), *digest);
        let stored = blocking(move || Ok(yard.originals.read_verified(&wanted, size_max)?)).await?;
        match stored {
            Stored::Found(bytes) => Ok(bytes.into()),
            Stored::TooLarge(size) => Err(ReadError::TooLarge { size, size_max }),
            Stored::Damaged => {
                self.yard().metrics.corruption("original");
                tracing::warn!(%digest, "original on disk is damaged; it is forgotten");
                Err(ReadError::DigestMismatch)
            }
            Stored::Miss => Err(ReadError::Unknown),
        }
    }

    /// Forgets an original that a reader found to be damaged; the next request fetches it again.
    pub async fn forget_damaged(&self, digest: &BlobDigest) -> Result<(), ReadError> {
        self.yard().metrics.corruption("original");
        tracing::warn!(%digest, "original on disk is damaged; it is forgotten");
        let (yard, digest) = (self.yard().clone(), *digest);
        blocking(move || Ok(yard.originals.remove(&digest)?)).await
    }

    /// Ends every fetch; what came so far stays and is resumed by the next process.
    pub async fn shutdown(&self) {
        self.yard().stop.cancel();
        self.yard().tasks.close();
        self.yard().tasks.wait().await;
    }

    /// On disk? And known to be in the repository? What turns out to be damaged at once is not there.
    async fn look(&self, source: &Source, digest: &BlobDigest) -> Result<Option<(Place, bool)>, ReadError> {
        match self.find(source, digest).await? {
            Some((opened, member)) => {
                let place = self.compare(digest, opened).await?;
                Ok(place.map(|place| (place, member)))
            }
            None => Ok(None),
        }
    }

    /// How large it is, if it is on disk, and whether it is known to be in the repository. A file that is as long as a manifest
    /// says need not be read for that: it is compared beside the answer.
    async fn look_for_size(&self, source: &Source, digest: &BlobDigest) -> Result<Option<(u64, bool)>, ReadError> {
        let Some((opened, member)) = self.find(source, digest).await? else {
            return Ok(None);
        };
        let size = opened.size();
        if self.yard().originals.is_intact(digest, &opened) {
            return Ok(Some((size, member)));
        }
        if self.0.store.size_at_hand(digest) == Some(size) {
            self.yard().rechecks.begin(self.yard(), digest, &opened);
            return Ok(Some((size, member)));
        }
        let place = self.compare(digest, opened).await?;
        Ok(place.map(|_| (size, member)))
    }

    /// The file, and whether it is known to be in the repository.
    async fn find(&self, source: &Source, digest: &BlobDigest) -> Result<Option<(Arc<Opened>, bool)>, ReadError> {
        if self.0.store.member_at_hand(source, digest)
            && let Some(opened) = self.yard().originals.file_at_hand(digest)
        {
            return Ok(Some((opened, true)));
        }
        let (inner, source, wanted) = (self.0.clone(), source.clone(), *digest);
        let found = blocking(move || {
            let Some(opened) = inner.yard.originals.open_file(&wanted)? else {
                return Ok(None);
            };
            Ok(Some((opened, inner.store.is_member(&source, &wanted)?)))
        });
        found.await
    }

    /// Whether it still is what its digest names; `None`: it is not, and is gone.
    async fn compare(&self, digest: &BlobDigest, opened: Arc<Opened>) -> Result<Option<Place>, ReadError> {
        if self.yard().originals.is_intact(digest, &opened) {
            return Ok(Some(Place::Disk(opened)));
        }
        let verdict = self.yard().rechecks.of(self.yard(), digest, &opened);
        match timeout(RECHECK_WAIT, verdict.clone().right()).await {
            Ok(Ok(())) => {
                // Once more, to be kept open.
                let (yard, wanted) = (self.yard().clone(), *digest);
                let again = blocking(move || Ok(yard.originals.open_file(&wanted)?)).await?;
                let again = again.filter(|again| self.yard().originals.is_intact(digest, again));
                Ok(Some(Place::Disk(again.unwrap_or(opened))))
            }
            Ok(Err(ReadError::DigestMismatch)) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Ok(Some(Place::Doubted { opened, verdict })),
        }
    }

    /// Whether the blob is on disk, whosever it is. Blocks briefly.
    pub(super) fn is_on_disk(&self, digest: &BlobDigest) -> bool {
        self.yard().originals.path(digest).exists()
    }

    /// Whether blobs may be begun before somebody asks for them.
    pub(super) fn begins_early(&self) -> bool {
        self.yard().begins_early()
    }

    fn upstream(&self, source: &Source) -> Result<Arc<Upstream>, ReadError> {
        // A source may come from the index, of a time when the configuration had more upstreams.
        let upstream = self.0.upstreams.get(&source.upstream).cloned();
        upstream.ok_or(ReadError::Upstream(UpstreamError::NotFound { name_unknown: true }))
    }

    fn errand(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<Errand, ReadError> {
        Ok(Errand {
            yard: self.yard().clone(),
            upstream: self.upstream(source)?,
            repository: source.repository.clone(),
            caller: caller.clone(),
            digest: *digest,
            asker: Asker::current(),
        })
    }

    pub(super) fn yard(&self) -> &Arc<Yard> {
        &self.0.yard
    }
}

/// Nothing can be written: the upstream's bytes pass through. A part of what is held does not: nobody could verify it.
async fn past_the_disk(errand: Errand, wants: &Wants, verdict: Await) -> Result<Blob, ReadError> {
    let size = match errand.size_or_all().await? {
        Some(size) => size,
        None => match errand.from(0).await? {
            BlobAnswer::Body(BlobBody { size: Some(size), .. }) | BlobAnswer::Complete { size } => size,
            BlobAnswer::Body(_) => return Err(ReadError::Disk("a blob of unknown size cannot be kept".into())),
        },
    };
    check_not_emptied(&errand.digest, size)?;
    if verdict.is_for_client() && errand.is_held() && wants.is_part(size) {
        return Err(ReadError::cannot_verify());
    }
    // Before the head goes out: who waits in vain is told by a status.
    let permit = Arc::new(errand.yard.passage(errand.asker).await?);
    Ok(Blob::new(Place::Upstream { size, permit }, errand))
}
