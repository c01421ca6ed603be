//! Blobs, wherever they are: on disk, in flight, or to be fetched.
//!
//! In: a [`Source`], a digest, and what is wanted of it. Out: a [`Blob`], which streams, or is read by a thread.
//! Invariant: a digest has at most one fetch from an upstream at a time, whoever asks; a client that goes away stops
//! nothing. A blob that is here is given to a source only if the repository is known to have it, or its upstream says
//! so now; what that has just said it does not have is not asked for. Bytes that are not verified yet are given to clients
//! of the upstream that sent them, and to no others.
//! Not here: the fetch ([`super::fetch`]), the hold-back ([`super::flight`]), and the streams ([`super::blob`]).

use std::{
    collections::HashMap,
    fs::File,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use headstart_layer_format::BlobDigest;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tracing::{Instrument as _, Span, field::Empty};

pub use super::blob::{Blob, BlockingReader};
pub use super::error::ReadError;
use super::{
    blob::{Place, read_block},
    blocking::blocking,
    coalesce::Coalesce,
    errand::{Errand, Yard},
    fetch::{Boarded, Fetch},
    flight::HOLD_BACK,
    negative::{Negative, What},
    opening::{Opened, check_not_emptied},
    setbacks::Setbacks,
    turns::Asker,
    wants::Wants,
};
use crate::{
    config::FetchConfig,
    metrics::{Metrics, names::Level},
    store::{
        Store,
        facts::Source,
        leftovers::Remove,
        originals::{Originals, Stored},
    },
    telemetry::{self, Cause},
    upstream::{BlobAnswer, BlobBody, Caller, Upstream, UpstreamError, Upstreams},
};

/// Small blobs wait this long for their verdict before the head of the answer goes out.
const VERDICT_WAIT: Duration = Duration::from_secs(10);

/// Times that a request looks again because what it joined failed for a reason that is not its own.
const JOINS_MAX: usize = 4;

/// Manifests whose blobs are being confirmed in the background; of further ones they are when somebody asks.
const CONFIRMATIONS_MAX: usize = 64;

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
}

/// What an upstream, by its canonical name, says a digest is.
type Key = (BlobDigest, String);

type Started = Option<Result<Arc<Fetch>, ReadError>>;

/// A fetch that is being started or is under way.
#[derive(Clone, Debug)]
struct Slot {
    /// Who it was started for: an upstream's "no" is an answer to them alone.
    source: Source,
    caller: Caller,
    ready: watch::Receiver<Started>,
    /// The fetch's span, for the spans of those who join it.
    cause: Cause,
}

impl Blobs {
    pub fn new(
        originals: Originals,
        store: Store,
        upstreams: Upstreams,
        config: FetchConfig,
        negative: Negative,
        metrics: Metrics,
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
        }))
    }

    /// The blob from disk, or the fetch in progress, or a new fetch of the whole of it.
    pub async fn open(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<Blob, ReadError> {
        self.open_range(source, caller, digest, &Wants::Whole).await
    }

    /// The same, but of a blob that is not here only what is wanted is fetched. Any of the wanted ranges can be
    /// streamed; when this returns, the upstream has begun to send the first.
    pub async fn open_range(
        &self,
        source: &Source,
        caller: &Caller,
        digest: &BlobDigest,
        wants: &Wants,
    ) -> Result<Blob, ReadError> {
        let errand = self.errand(source, caller, digest)?;
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
            if let Some((file, size, member)) = found {
                if !member {
                    self.confirm(&errand, source).await?;
                }
                let place = Place::Disk { file, size };
                return Ok(Blob { place, errand });
            }
            if let Some(no) = self.0.negative.get(source, caller, &What::Blob(*digest)) {
                return self.or_from_disk(skips, errand, source, no.into()).await;
            }
            if self.yard().is_disk_bad() {
                return past_the_disk(errand).await;
            }
            if let Some(error) = self.0.setbacks.refusal(source, caller, digest) {
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
                        match self.settle(seat, wants).await {
                            Ok(place) => return Ok(Blob { place, errand }),
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
                ReadError::Disk(_) => return past_the_disk(errand).await,
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
        if has_not_looked && let Ok(Some((file, size, true))) = self.look(source, &errand.digest).await {
            let place = Place::Disk { file, size };
            return Ok(Blob { place, errand });
        }
        Err(error)
    }

    /// Sees to it that what is wanted comes. An answer that can only break off is an error instead.
    async fn settle(&self, seat: Boarded, wants: &Wants) -> Result<Place, ReadError> {
        let fetch = seat.fetch();
        let size = fetch.flight.size();
        let withheld = wants.covers(size);
        if withheld && !fetch.flight.is_whole() {
            let permit = self.yard().whole(Asker::current()).await?;
            fetch.promote(None, permit);
        }
        // Nothing of it would go out before the verdict: a status says more than an answer that breaks off. A longer wait
        // would cost the client's patience, though.
        if withheld && size <= HOLD_BACK {
            let end = size..size;
            if let Ok(verdict) = timeout(VERDICT_WAIT, fetch.readable(&end, true)).await {
                verdict?;
            }
        }
        // Until the first byte is here, the upstream's "no" can still become a status.
        if let (false, Some(first)) = (withheld, wants.first(size)) {
            fetch.readable(&first, false).await?;
        }
        Ok(Place::Flight { seat, withheld })
    }

    /// The size of a blob, for HEAD: asks the upstream for no more than that when the blob is not here.
    pub async fn size(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<u64, ReadError> {
        let found = self.look(source, digest).await?;
        if let Some((_, size, true)) = found {
            return Ok(size);
        }
        let errand = self.errand(source, caller, digest)?;
        if let Some((_, size, _)) = found {
            return self.confirm(&errand, source).await.map(|()| size);
        }
        match self.ask(&errand, source).await? {
            Some(size) => check_not_emptied(digest, size).map(|()| size),
            None => Ok(self.open(source, caller, digest).await?.size()),
        }
    }

    /// Whether a fetch of the blob is under way and brings bytes.
    pub fn is_arriving(&self, digest: &BlobDigest) -> bool {
        let arrives = |slot: &Slot| matches!(&*slot.ready.borrow(), Some(Ok(fetch)) if !fetch.flight.has_failed());
        let fetches = self.fetches();
        fetches.iter().any(|((of, _), slot)| of == digest && arrives(slot))
    }

    /// Why the last fetch of the blob failed, if that was a moment ago.
    pub fn setback(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Option<ReadError> {
        self.0.setbacks.last(source, caller, digest)
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
            fetch.readable(&(size..size), true).await?;
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

    /// On disk? And known to be in the repository?
    async fn look(&self, source: &Source, digest: &BlobDigest) -> Result<Option<(Arc<File>, u64, bool)>, ReadError> {
        if self.0.store.member_at_hand(source, digest)
            && let Some((file, size)) = self.yard().originals.file_at_hand(digest)
        {
            return Ok(Some((file, size, true)));
        }
        let (inner, source, digest) = (self.0.clone(), source.clone(), *digest);
        blocking(move || {
            let Some((file, size)) = inner.yard.originals.open_file(&digest)? else {
                return Ok(None);
            };
            Ok(Some((file, size, inner.store.is_member(&source, &digest)?)))
        })
        .await
    }

    async fn is_member(&self, source: &Source, digest: &BlobDigest) -> Result<bool, ReadError> {
        let (inner, source, digest) = (self.0.clone(), source.clone(), *digest);
        blocking(move || Ok(inner.store.is_member(&source, &digest)?)).await
    }

    /// Asks the upstream whether the repository has the blob, and remembers the answer. Its size, if the upstream says so.
    async fn ask(&self, errand: &Errand, source: &Source) -> Result<Option<u64>, ReadError> {
        let what = What::Blob(errand.digest);
        if let Some(no) = self.0.negative.get(source, &errand.caller, &what) {
            return Err(no.into());
        }
        let size = errand.size().await;
        self.0.negative.learn(source, &errand.caller, what, size.as_ref());
        let size = size?;
        self.remember(source, &errand.digest).await;
        Ok(size)
    }

    /// Whether the repository has the blob, as its upstream says now or has just said.
    pub(super) async fn head(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<(), ReadError> {
        self.ask(&self.errand(source, caller, digest)?, source).await.map(drop)
    }

    /// Of a blob that is here or on its way: whether it is the repository's, too. Once for everybody who asks, and not at
    /// all if that is known. A manifest that names what is not is not served for a while.
    async fn confirm(&self, errand: &Errand, source: &Source) -> Result<(), ReadError> {
        let key = (source.clone(), errand.caller.clone(), errand.digest);
        let confirmed = self.0.confirming.run(key, || {
            let (blobs, errand, source) = (self.clone(), errand.clone(), source.clone());
            async move {
                if blobs.is_member(&source, &errand.digest).await? {
                    return Ok(());
                }
                let asked = blobs.ask(&errand, &source).await.map(drop);
                if let Err(error) = &asked {
                    let Errand { caller, digest, .. } = &errand;
                    blobs.0.setbacks.refused(&source, caller, digest, error);
                }
                asked
            }
        });
        confirmed.await.unwrap_or(Err(ReadError::Stopping))
    }

    /// A manifest of `source` names these, and its upstream is up: of those that are here because of another repository
    /// it is found out now whether they can be had from this one, too, for the time when there is nobody to ask. Does not
    /// block.
    pub(super) fn confirm_soon(&self, source: &Source, caller: &Caller, digests: Vec<BlobDigest>) {
        let Ok(permit) = self.0.confirmations.clone().try_acquire_owned() else {
            return;
        };
        let (blobs, source, caller) = (self.clone(), source.clone(), caller.clone());
        let confirm = async move {
            let _permit = permit;
            for digest in digests {
                // One after the other: clients come first.
                let Ok(Some((_, _, false))) = blobs.look(&source, &digest).await else {
                    continue;
                };
                let Ok(errand) = blobs.errand(&source, &caller, &digest) else {
                    return;
                };
                match blobs.confirm(&errand, &source).await {
                    Ok(()) | Err(ReadError::Upstream(UpstreamError::NotFound { .. })) => {}
                    Err(error) => {
                        tracing::debug!(%digest, %error, "blobs that are here are not confirmed");
                        return;
                    }
                }
            }
        };
        let stop = self.yard().stop.clone();
        let span = Span::current();
        self.yard()
            .tasks
            .spawn(stop.run_until_cancelled_owned(confirm).instrument(span));
    }

    /// Whether the blob is on disk, whosever it is. Blocks briefly.
    pub(super) fn is_on_disk(&self, digest: &BlobDigest) -> bool {
        self.yard().originals.path(digest).exists()
    }

    /// That it is not remembered costs a question, not the answer.
    async fn remember(&self, source: &Source, digest: &BlobDigest) {
        let (inner, source, digest) = (self.0.clone(), source.clone(), *digest);
        let added = blocking(move || Ok(inner.store.add_member(&source, &digest)?));
        if let Err(error) = added.await {
            tracing::warn!(%digest, %error, "membership is not recorded");
        }
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

    /// The slot of the fetch under way, or that of a new one.
    fn join(&self, errand: &Errand, source: &Source, wants: &Wants) -> Result<Slot, ReadError> {
        let key = (errand.digest, source.upstream.clone());
        let mut fetches = self.fetches();
        if let Some(slot) = fetches.get(&key).filter(|slot| !slot.has_failed()) {
            slot.cause.link();
            return Ok(slot.clone());
        }
        if self.yard().stop.is_cancelled() {
            return Err(ReadError::Stopping);
        }
        let (publish, ready) = watch::channel(None);
        // At the level of errors, so that every line that is shown has the request's name.
        let span = tracing::error_span!(parent: None, "fetch", request_id = Empty, digest = %errand.digest, upstream = %source.upstream);
        let span = Cause::here().of(span);
        let slot = Slot {
            source: source.clone(),
            caller: errand.caller.clone(),
            ready,
            cause: span.in_scope(Cause::here),
        };
        fetches.insert(key.clone(), slot.clone());
        // A task of its own: no client's leaving stops it.
        let begun = self
            .clone()
            .begin(key, errand.clone(), source.clone(), wants.clone(), publish);
        self.yard().tasks.spawn(begun.instrument(span));
        Ok(slot)
    }

    /// A fetch from its first request until its files are left for good.
    async fn begin(self, key: Key, errand: Errand, source: Source, wants: Wants, publish: watch::Sender<Started>) {
        let (digest, caller) = (errand.digest, errand.caller.clone());
        let (setbacks, negative) = (self.0.setbacks.clone(), self.0.negative.clone());
        let _held = self.yard().metrics.hold(Level::BlobFlights, &[]);
        let started = async {
            let permit = self.yard().whole(errand.asker).await?;
            let opened = tokio::select! {
                biased;
                () = self.yard().stop.cancelled() => return Err(ReadError::Stopping),
                opened = Opened::ask(&errand, &wants) => opened?,
            };
            Ok((Fetch::new(errand, opened), permit))
        };
        match started.await {
            Ok(((fetch, first), permit)) => {
                negative.learn(&source, &caller, What::Blob(digest), Ok(()));
                fetch.depart(first, permit);
                publish.send_replace(Some(Ok(fetch.clone())));
                tokio::join!(self.remember(&source, &digest), fetch.clone().fly());
                if let Some(outcome) = fetch.flight.outcome() {
                    if let Err(error) = &outcome {
                        telemetry::failed(&Span::current(), error);
                    }
                    setbacks.ended(&source, &caller, &digest, outcome.as_ref().copied());
                }
                self.leave(&key, &publish);
            }
            Err(error) => {
                // What was already here is no failure.
                if !matches!(error, ReadError::Incomplete) {
                    telemetry::failed(&Span::current(), &error);
                    setbacks.refused(&source, &caller, &digest, &error);
                }
                // Before it is off the list: who comes between the two would ask again.
                if let ReadError::Upstream(error) = &error {
                    negative.learn::<()>(&source, &caller, What::Blob(digest), Err(error));
                }
                self.leave(&key, &publish);
                publish.send_replace(Some(Err(error)));
            }
        }
    }

    /// Which blob and upstream the partial at this path is of, if the upstream is still configured.
    pub(super) fn owner(&self, partial: &Path) -> Option<(BlobDigest, String)> {
        let digest = self.yard().originals.digest_of(partial)?;
        let mut names = self.0.upstreams.names();
        let name = names.find(|name| self.yard().originals.partial_path(&digest, name) == partial)?;
        Some((digest, name.to_owned()))
    }

    /// Sees to it that no fetch of this begins, unless there is one.
    pub(super) fn occupy(&self, digest: &BlobDigest, upstream: &str) -> Option<Occupied> {
        let key = (*digest, upstream.to_owned());
        let mut fetches = self.fetches();
        if fetches.get(&key).is_some_and(|slot| !slot.has_failed()) {
            return None;
        }
        let (publish, ready) = watch::channel(None);
        // Nobody's: whoever waits for it finds out for himself.
        let source = Source {
            upstream: upstream.to_owned(),
            repository: String::new(),
        };
        let slot = Slot {
            source,
            caller: Caller::Server,
            ready,
            cause: Cause::here(),
        };
        fetches.insert(key.clone(), slot);
        Some(Occupied { key, publish })
    }

    /// Takes a fetch that has ended off the list, unless another has taken its place there: a flight that has failed
    /// is replaced at once, while its own fetch is still on its way out.
    fn leave(&self, key: &Key, ended: &watch::Sender<Started>) {
        let mut fetches = self.fetches();
        if fetches
            .get(key)
            .is_some_and(|slot| slot.ready.same_channel(&ended.subscribe()))
        {
            fetches.remove(key);
        }
    }

    /// Runs `remove` unless there is a fetch with this partial; none begins meanwhile.
    pub(crate) fn unless_in_use(&self, partial: &Path, remove: Remove<'_>) {
        let fetches = self.fetches();
        let originals = &self.yard().originals;
        let in_use = fetches
            .keys()
            .any(|(digest, upstream)| originals.partial_path(digest, upstream) == partial);
        if !in_use {
            remove();
        }
    }

    pub(super) fn yard(&self) -> &Arc<Yard> {
        &self.0.yard
    }

    fn fetches(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        // Only whole inserts and removes happen under the lock.
        self.0.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place on the list of fetches without a fetch. Dropped, it fails those who wait.
#[derive(Debug)]
pub(super) struct Occupied {
    key: Key,
    publish: watch::Sender<Started>,
}

impl Occupied {
    pub(super) fn end(self, blobs: &Blobs, told: ReadError) {
        blobs.leave(&self.key, &self.publish);
        self.publish.send_replace(Some(Err(told)));
    }
}

/// Nothing can be written: the upstream's bytes pass through.
async fn past_the_disk(errand: Errand) -> Result<Blob, ReadError> {
    let size = match errand.size().await? {
        Some(size) => size,
        None => match errand.from(0).await? {
            BlobAnswer::Body(BlobBody { size: Some(size), .. }) | BlobAnswer::Complete { size } => size,
            BlobAnswer::Body(_) => return Err(ReadError::Disk("a blob of unknown size cannot be kept".into())),
        },
    };
    check_not_emptied(&errand.digest, size)?;
    // Before the head goes out: who waits in vain is told by a status.
    let permit = Arc::new(errand.yard.passage(errand.asker).await?);
    Ok(Blob {
        place: Place::Upstream { size, permit },
        errand,
    })
}

impl Slot {
    fn has_failed(&self) -> bool {
        match &*self.ready.borrow() {
            Some(Ok(fetch)) => fetch.flight.has_failed(),
            Some(Err(_)) => true,
            None => self.ready.has_changed().is_err(),
        }
    }

    async fn wait(mut self) -> Result<Arc<Fetch>, ReadError> {
        match self.ready.wait_for(Option::is_some).await {
            Ok(ready) => ready.clone().unwrap_or(Err(ReadError::Incomplete)),
            Err(_) => Err(ReadError::Stopping),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, UpstreamConfig};

    fn source() -> Source {
        Source {
            upstream: "u".into(),
            repository: "r".into(),
        }
    }

    /// A flight with wrong bytes fails its readers before its fetch has left the list. A reader that comes at that
    /// moment starts a new fetch; the old one, on leaving, took the *new* one off the list, so a third reader started
    /// another beside it: two writers of one partial file, each hashing only what it wrote itself.
    #[tokio::test]
    async fn a_fetch_that_ends_does_not_take_its_successor_off_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            upstreams: vec![UpstreamConfig::new("u", "http://127.0.0.1:1")],
            default_upstream: None,
            ..Config::default()
        };
        let metrics = Metrics::new();
        let blobs = Blobs::new(
            Originals::open(dir.path()).unwrap(),
            Store::open(dir.path()).unwrap(),
            Upstreams::new(&config, &metrics).unwrap(),
            config.fetch.clone(),
            Negative::new(Duration::ZERO),
            metrics,
        );
        let key = (BlobDigest::of(b"x"), "u".to_owned());
        let add = || {
            let (publish, ready) = watch::channel(None);
            let slot = Slot {
                source: source(),
                caller: Caller::Server,
                ready,
                cause: Cause::here(),
            };
            blobs.fetches().insert(key.clone(), slot);
            publish
        };
        let old = add();
        let new = add();
        blobs.leave(&key, &old);
        assert!(blobs.fetches().contains_key(&key));
        blobs.leave(&key, &new);
        assert!(blobs.fetches().is_empty());
    }
}
