//! The list of fetches that are under way.
//!
//! In: an errand. Out: a place on the list, with the fetch once its upstream has answered. Invariant: a digest has at most
//! one fetch from an upstream at a time, and what ends takes only itself off the list.
//! Not here: what a fetch does ([`crate::read::fetch`]), who may join one ([`super`]).

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use headstart_layer_format::BlobDigest;
use tokio::{sync::watch, time::timeout};
use tracing::{Instrument as _, Span, field::Empty};

use super::{Blobs, ReadError};
use crate::{
    metrics::names::Level,
    read::{
        errand::Errand,
        fetch::Fetch,
        negative::What,
        opening::{First, Opened},
        setbacks::is_upstreams_fault,
        wants::Wants,
    },
    store::{facts::Source, leftovers::Remove},
    telemetry::{self, Cause},
    upstream::Caller,
};

/// What an upstream, by its canonical name, says a digest is.
pub(super) type Key = (BlobDigest, String);

/// What an upstream's answer says of its repository is recorded at the latest this long after it.
const REMEMBER_DELAY_MAX: Duration = Duration::from_millis(50);

type Started = Option<Result<Arc<Fetch>, ReadError>>;

/// A fetch that is being started or is under way.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    /// Who it was started for: an upstream's "no" is an answer to them alone.
    pub(super) source: Source,
    pub(super) caller: Caller,
    ready: watch::Receiver<Started>,
    /// The fetch's span, for the spans of those who join it.
    cause: Cause,
}

impl Blobs {
    /// Whether a fetch of the blob is under way and brings bytes.
    pub fn is_arriving(&self, digest: &BlobDigest) -> bool {
        let arrives = |slot: &Slot| matches!(&*slot.ready.borrow(), Some(Ok(fetch)) if !fetch.flight.has_failed());
        let fetches = self.fetches();
        fetches.iter().any(|((of, _), slot)| of == digest && arrives(slot))
    }

    /// The slot of the fetch under way, or that of a new one.
    pub(super) fn join(&self, errand: &Errand, source: &Source, wants: &Wants) -> Result<Slot, ReadError> {
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
            // Without anything left of an earlier fetch, the upstream is asked in any case.
            let is_new = self.yard().originals.is_surely_new(&digest, errand.upstream.name());
            let is_member = !is_new && self.is_member(&source, &digest).await?;
            let opened = tokio::select! {
                biased;
                () = self.yard().stop.cancelled() => return Err(ReadError::Stopping),
                opened = Opened::ask(&errand, &wants, is_member) => opened?,
            };
            // A manifest's claim is enough for a part that is here, and no more than a claim.
            let is_told = !(is_member && matches!(opened.first, First::Nothing));
            Ok((Fetch::new(errand, opened), permit, is_told))
        };
        match started.await {
            Ok(((fetch, first), permit, is_told)) => {
                if is_told {
                    negative.learn(&source, &caller, What::Blob(digest), Ok(()));
                }
                fetch.depart(first, permit);
                publish.send_replace(Some(Ok(fetch.clone())));
                let remembered = async {
                    // A client waits for the first bytes; nobody for this.
                    let _ = timeout(REMEMBER_DELAY_MAX, fetch.flight.begun()).await;
                    if is_told {
                        self.remember(&source, &digest).await;
                    }
                };
                tokio::join!(remembered, fetch.clone().fly());
                if let Some(outcome) = fetch.flight.outcome() {
                    if let Err(error) = &outcome {
                        telemetry::failed(&Span::current(), error);
                    }
                    let (outcome, waited) = (outcome.as_ref().copied(), fetch.flight.kept_waiting());
                    setbacks.ended(&source, &caller, &digest, outcome, !waited.is_empty());
                    // Those who joined it were cut by it, too.
                    for (of, by) in waited.iter().filter(|(of, by)| (of, by) != (&source, &caller)) {
                        setbacks.ended(of, by, &digest, outcome, true);
                    }
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

    /// Whether the upstream's bytes were not the blob's a moment ago. The fetch that found it out may be on its way out.
    pub(super) fn has_lied(&self, errand: &Errand, source: &Source) -> bool {
        let is_lie = |error: &ReadError| matches!(error, ReadError::DigestMismatch);
        let last = self.setback(source, &errand.caller, &errand.digest);
        last.as_ref().is_some_and(is_lie) || {
            let key = (errand.digest, source.upstream.clone());
            let fetches = self.fetches();
            let outcome = fetches.get(&key).and_then(Slot::outcome);
            outcome.is_some_and(|outcome| outcome.as_ref().is_err_and(is_lie))
        }
    }

    /// Why a request for the blob is refused before its head. Also of who was cut by a fetch that is on its way out.
    pub(super) fn refusal(&self, errand: &Errand, source: &Source) -> Option<ReadError> {
        let known = self.0.setbacks.refusal(source, &errand.caller, &errand.digest);
        known.or_else(|| {
            let key = (errand.digest, source.upstream.clone());
            let fetches = self.fetches();
            let slot = fetches.get(&key)?;
            slot.cut(source, &errand.caller).filter(is_upstreams_fault)
        })
    }

    /// Takes a fetch that has ended off the list, unless another has taken its place there: a flight that has failed
    /// is replaced at once, while its own fetch is still on its way out.
    pub(super) fn leave(&self, key: &Key, ended: &watch::Sender<Started>) {
        let mut fetches = self.fetches();
        if fetches
            .get(key)
            .is_some_and(|slot| slot.ready.same_channel(&ended.subscribe()))
        {
            fetches.remove(key);
        }
    }

    pub(super) fn fetches(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        // Only whole inserts and removes happen under the lock.
        self.0.fetches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which blob and upstream the partial at this path is of, if the upstream is still configured.
    pub(in crate::read) fn owner(&self, partial: &Path) -> Option<(BlobDigest, String)> {
        let digest = self.yard().originals.digest_of(partial)?;
        let mut names = self.0.upstreams.names();
        let name = names.find(|name| self.yard().originals.partial_path(&digest, name) == partial)?;
        Some((digest, name.to_owned()))
    }

    /// Sees to it that no fetch of this begins, unless there is one.
    pub(in crate::read) fn occupy(&self, digest: &BlobDigest, upstream: &str) -> Option<Occupied> {
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
}

/// A place on the list of fetches without a fetch. Dropped, it fails those who wait.
#[derive(Debug)]
pub(in crate::read) struct Occupied {
    key: Key,
    publish: watch::Sender<Started>,
}

impl Occupied {
    pub(in crate::read) fn end(self, blobs: &Blobs, told: ReadError) {
        blobs.leave(&self.key, &self.publish);
        self.publish.send_replace(Some(Err(told)));
    }
}

impl Slot {
    pub(super) fn has_failed(&self) -> bool {
        match &*self.ready.borrow() {
            Some(Ok(fetch)) => fetch.flight.has_failed(),
            Some(Err(_)) => true,
            None => self.ready.has_changed().is_err(),
        }
    }

    fn outcome(&self) -> Option<Result<(), ReadError>> {
        match &*self.ready.borrow() {
            Some(Ok(fetch)) => fetch.flight.outcome(),
            _ => None,
        }
    }

    /// What cut an answer of theirs whose head was out before the verdict. Who started the fetch knows of any.
    fn cut(&self, source: &Source, caller: &Caller) -> Option<ReadError> {
        let is_mine = self.source == *source && self.caller == *caller;
        match &*self.ready.borrow() {
            Some(Ok(fetch)) => fetch
                .flight
                .has_cut(|(of, by)| is_mine || (of == source && by == caller)),
            _ => None,
        }
    }

    pub(super) async fn wait(mut self) -> Result<Arc<Fetch>, ReadError> {
        match self.ready.wait_for(Option::is_some).await {
            Ok(ready) => ready.clone().unwrap_or(Err(ReadError::Incomplete)),
            Err(_) => Err(ReadError::Stopping),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Config, UpstreamConfig},
        metrics::Metrics,
        read::negative::Negative,
        store::{Store, originals::Originals},
        upstream::Upstreams,
    };

    fn source() -> Source {
        Source {
            upstream: "u".into(),
            repository: "r".into(),
        }
    }

    fn blobs(dir: &tempfile::TempDir) -> Blobs {
        let config = Config {
            upstreams: vec![UpstreamConfig::new("u", "http://127.0.0.1:1")],
            default_upstream: None,
            ..Config::default()
        };
        let metrics = Metrics::new();
        Blobs::new(
            Originals::open(dir.path()).unwrap(),
            Store::open(dir.path()).unwrap(),
            Upstreams::new(&config, &metrics).unwrap(),
            config.fetch.clone(),
            Negative::new(Duration::ZERO),
            metrics,
            1,
        )
    }

    /// Its clients are cut a moment before its end is on record, and ask again at once.
    #[tokio::test]
    async fn who_was_cut_by_a_fetch_that_is_on_its_way_out_is_refused() {
        let disk = || ReadError::Disk("full".into());
        for (keeps_waiting, error, refuses) in [
            (true, ReadError::DigestMismatch, true),
            (false, ReadError::DigestMismatch, false),
            (true, disk(), false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (blobs, digest) = (blobs(&dir), BlobDigest::of(b"x"));
            let errand = blobs.errand(&source(), &Caller::Server, &digest).unwrap();
            let mut partial = blobs.yard().originals.partial(&digest, "u").unwrap();
            partial.set_size(1).unwrap();
            let first = First::Nothing;
            let opened = Opened {
                partial,
                size: 1,
                first,
            };
            let (fetch, _) = Fetch::new(errand.clone(), opened);
            if keeps_waiting {
                fetch.flight.keep_waiting((source(), Caller::Server));
            }
            let (_publish, ready) = watch::channel(Some(Ok(fetch.clone())));
            let slot = Slot {
                source: source(),
                caller: Caller::Server,
                ready,
                cause: Cause::here(),
            };
            blobs.fetches().insert((digest, "u".to_owned()), slot);
            assert!(blobs.refusal(&errand, &source()).is_none(), "there is no verdict yet");
            fetch.flight.finish(Err(error));
            assert_eq!(blobs.refusal(&errand, &source()).is_some(), refuses);
            let elsewhere = Source {
                repository: "other".into(),
                ..source()
            };
            assert!(blobs.refusal(&errand, &elsewhere).is_none(), "nobody was cut there");
        }
    }

    /// A flight with wrong bytes fails its readers before its fetch has left the list. A reader that comes at that
    /// moment starts a new fetch; the old one, on leaving, took the *new* one off the list, so a third reader started
    /// another beside it: two writers of one partial file, each hashing only what it wrote itself.
    #[tokio::test]
    async fn a_fetch_that_ends_does_not_take_its_successor_off_the_list() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = blobs(&dir);
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
