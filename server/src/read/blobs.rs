//! Blobs, wherever they are: on disk, in flight, or to be fetched.
//!
//! In: a [`Source`] and a digest. Out: a [`Blob`], which streams, or is read by a thread.
//! Invariant: one digest has at most one fetch at a time, whoever asks; a client that goes away stops nothing. A blob
//! that is here is given to a source only if the repository is known to have it, or its upstream says so now.
//! Not here: the fetch ([`super::fetch`]) and the hold-back ([`super::flight`]). A range of a blob that is not here yet
//! follows the whole fetch; a ranged upstream request for it is a later step.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::{Stream, stream};
use headstart_layer_format::BlobDigest;
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use super::error::ReadError;
use super::{blocking::blocking, fetch::Fetch, flight::Flight};
use crate::{
    config::FetchConfig,
    metrics::Metrics,
    store::{
        Store,
        facts::Source,
        originals::{Originals, Stored},
    },
    upstream::{Caller, Upstream, UpstreamError, Upstreams},
};

/// Bytes handed to a client at once: large enough that the hop to a thread does not show, small enough for thousands
/// of clients.
const BLOCK: u64 = 256 << 10;

/// Times that a request looks again because what it joined failed for a reason that is not its own.
const JOINS_MAX: usize = 4;

/// All blobs; clones share one state.
#[derive(Clone, Debug)]
pub struct Blobs(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    originals: Originals,
    store: Store,
    upstreams: Upstreams,
    config: FetchConfig,
    metrics: Metrics,
    flights: Mutex<HashMap<BlobDigest, Slot>>,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A fetch that is being started or is under way.
#[derive(Clone, Debug)]
struct Slot {
    /// Who it was started for: an upstream's "no" is an answer to them alone.
    source: Source,
    ready: watch::Receiver<Option<Result<Arc<Flight>, ReadError>>>,
}

impl Blobs {
    pub fn new(
        originals: Originals,
        store: Store,
        upstreams: Upstreams,
        config: FetchConfig,
        metrics: Metrics,
    ) -> Blobs {
        Blobs(Arc::new(Inner {
            originals,
            store,
            upstreams,
            permits: Arc::new(Semaphore::new(config.blobs_max)),
            config,
            metrics,
            flights: Mutex::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// The blob from disk, or the flight in progress, or a new flight.
    pub async fn open(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<Blob, ReadError> {
        let mut failed = ReadError::Incomplete;
        for _ in 0..JOINS_MAX {
            if let Some((file, size, member)) = self.look(source, digest).await? {
                if !member {
                    self.ask(source, caller, digest).await?;
                }
                return Ok(Blob(Place::Disk { file, size }));
            }
            let slot = self.join(source, caller, digest)?;
            let mine = slot.source == *source;
            match slot.wait().await {
                Ok(flight) if !flight.has_failed() => {
                    if !mine && !self.is_member(source, digest).await? {
                        self.ask(source, caller, digest).await?;
                    }
                    return Ok(Blob(Place::Flight(flight)));
                }
                Ok(_) => {}
                // Only a fetch that found the original already here starts with this: look again.
                Err(ReadError::Incomplete) => {}
                Err(error) if mine => return Err(error),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// The size of a blob, for HEAD: asks the upstream for no more than that when the blob is not here.
    pub async fn size(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<u64, ReadError> {
        if let Some((_, size, true)) = self.look(source, digest).await? {
            return Ok(size);
        }
        match self.ask(source, caller, digest).await? {
            Some(size) => Ok(size),
            None => Ok(self.open(source, caller, digest).await?.size()),
        }
    }

    /// Whether a fetch of the blob is under way and brings bytes.
    pub fn is_arriving(&self, digest: &BlobDigest) -> bool {
        let arrives = |slot: &Slot| matches!(&*slot.ready.borrow(), Some(Ok(flight)) if !flight.has_failed());
        self.flights().get(digest).is_some_and(arrives)
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
        if let Place::Flight(flight) = &blob.0 {
            flight.verified().await?;
            return read_block(flight.file().clone(), 0..size).await;
        }
        let (inner, wanted) = (self.0.clone(), *digest);
        let stored = blocking(move || Ok(inner.originals.read_verified(&wanted, size_max)?)).await?;
        match stored {
            Stored::Found(bytes) => Ok(bytes.into()),
            Stored::TooLarge(size) => Err(ReadError::TooLarge { size, size_max }),
            Stored::Damaged => {
                self.0.metrics.corruption("original");
                tracing::warn!(%digest, "original on disk is damaged; it is forgotten");
                Err(ReadError::DigestMismatch)
            }
            Stored::Miss => Err(ReadError::Unknown),
        }
    }

    /// Forgets an original that a reader found to be damaged; the next request fetches it again.
    pub async fn forget_damaged(&self, digest: &BlobDigest) -> Result<(), ReadError> {
        self.0.metrics.corruption("original");
        tracing::warn!(%digest, "original on disk is damaged; it is forgotten");
        let (inner, digest) = (self.0.clone(), *digest);
        blocking(move || Ok(inner.originals.remove(&digest)?)).await
    }

    /// Ends every fetch; what came so far stays and is resumed by the next process.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// On disk? And known to be in the repository?
    async fn look(&self, source: &Source, digest: &BlobDigest) -> Result<Option<(Arc<File>, u64, bool)>, ReadError> {
        if self.0.store.member_at_hand(source, digest)
            && let Some((file, size)) = self.0.originals.file_at_hand(digest)
        {
            return Ok(Some((file, size, true)));
        }
        let (inner, source, digest) = (self.0.clone(), source.clone(), *digest);
        blocking(move || {
            let Some((file, size)) = inner.originals.open_file(&digest)? else {
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

    /// Asks the upstream whether the repository has the blob, and remembers a yes. Its size, if the upstream says so.
    async fn ask(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<Option<u64>, ReadError> {
        let size = self
            .upstream(source)?
            .blob_head(&source.repository, caller, digest)
            .await?;
        let (inner, source, digest) = (self.0.clone(), source.clone(), *digest);
        blocking(move || Ok(inner.store.add_member(&source, &digest)?)).await?;
        Ok(size)
    }

    fn upstream(&self, source: &Source) -> Result<Arc<Upstream>, ReadError> {
        // A source may come from the index, of a time when the configuration had more upstreams.
        let upstream = self.0.upstreams.get(&source.upstream).cloned();
        upstream.ok_or(ReadError::Upstream(UpstreamError::NotFound { name_unknown: true }))
    }

    /// The slot of the fetch under way, or that of a new one.
    fn join(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Result<Slot, ReadError> {
        let upstream = self.upstream(source)?;
        let mut flights = self.flights();
        if let Some(slot) = flights.get(digest).filter(|slot| !slot.has_failed()) {
            return Ok(slot.clone());
        }
        if self.0.stop.is_cancelled() {
            return Err(ReadError::Stopping);
        }
        let (publish, ready) = watch::channel(None);
        let slot = Slot {
            source: source.clone(),
            ready,
        };
        flights.insert(*digest, slot.clone());
        let fetch = Fetch {
            upstream,
            repository: source.repository.clone(),
            caller: caller.clone(),
            digest: *digest,
            originals: self.0.originals.clone(),
            config: self.0.config.clone(),
            metrics: self.0.metrics.clone(),
            stop: self.0.stop.clone(),
        };
        // A task of its own: no client's leaving stops it.
        self.0.tasks.spawn(self.clone().fly(fetch, source.clone(), publish));
        Ok(slot)
    }

    async fn fly(self, fetch: Fetch, source: Source, publish: watch::Sender<Option<Result<Arc<Flight>, ReadError>>>) {
        let digest = fetch.digest;
        let inner = self.0.clone();
        // The semaphore is never closed.
        let _permit = inner.permits.clone().acquire_owned().await;
        let here = {
            let inner = inner.clone();
            blocking(move || Ok(inner.originals.path(&digest).exists()))
        };
        let started = match here.await {
            // A fetch that ended between the caller's look and this one has left an original; looking again finds it.
            Ok(true) => Err(ReadError::Incomplete),
            Ok(false) => tokio::select! {
                biased;
                () = inner.stop.cancelled() => Err(ReadError::Stopping),
                started = fetch.start() => started,
            },
            Err(error) => Err(error),
        };
        match started {
            Ok((flight, run)) => {
                publish.send_replace(Some(Ok(flight)));
                let recorded = {
                    let inner = inner.clone();
                    blocking(move || Ok(inner.store.add_member(&source, &digest)?))
                };
                let (recorded, ()) = tokio::join!(recorded, run);
                if let Err(error) = recorded {
                    tracing::warn!(%digest, %error, "membership is not recorded");
                }
                self.leave(&digest, &publish);
            }
            Err(error) => {
                self.leave(&digest, &publish);
                publish.send_replace(Some(Err(error)));
            }
        }
    }

    /// Takes a fetch that has ended off the list, unless another has taken its place there: a flight that has failed
    /// is replaced at once, while its own fetch is still on its way out.
    fn leave(&self, digest: &BlobDigest, ended: &watch::Sender<Option<Result<Arc<Flight>, ReadError>>>) {
        let mut flights = self.flights();
        if flights
            .get(digest)
            .is_some_and(|slot| slot.ready.same_channel(&ended.subscribe()))
        {
            flights.remove(digest);
        }
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<BlobDigest, Slot>> {
        // Only whole inserts and removes happen under the lock.
        self.0.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn has_failed(&self) -> bool {
        match &*self.ready.borrow() {
            Some(Ok(flight)) => flight.has_failed(),
            Some(Err(_)) => true,
            None => self.ready.has_changed().is_err(),
        }
    }

    async fn wait(mut self) -> Result<Arc<Flight>, ReadError> {
        match self.ready.wait_for(Option::is_some).await {
            Ok(ready) => ready.clone().unwrap_or(Err(ReadError::Incomplete)),
            Err(_) => Err(ReadError::Stopping),
        }
    }
}

/// A blob that can be read from its first byte on, though its last may not be here yet. Clones share the file.
#[derive(Clone, Debug)]
pub struct Blob(Place);

#[derive(Clone, Debug)]
enum Place {
    Disk { file: Arc<File>, size: u64 },
    Flight(Arc<Flight>),
}

impl Place {
    fn file(&self) -> &Arc<File> {
        match self {
            Self::Disk { file, .. } => file,
            Self::Flight(flight) => flight.file(),
        }
    }
}

impl Blob {
    pub fn size(&self) -> u64 {
        match &self.0 {
            Place::Disk { size, .. } => *size,
            Place::Flight(flight) => flight.size(),
        }
    }

    /// The file and its size, when it is complete and verified.
    pub fn on_disk(&self) -> Option<(&Arc<File>, u64)> {
        match &self.0 {
            Place::Disk { file, size } => Some((file, *size)),
            Place::Flight(_) => None,
        }
    }

    /// The bytes of `range`, which must be inside the size, at the pace they arrive and the reader takes them.
    pub fn stream(&self, range: Range<u64>) -> impl Stream<Item = Result<Bytes, ReadError>> + Send + use<> {
        stream::try_unfold((self.0.clone(), range), |(place, mut range)| async move {
            if range.start >= range.end {
                return Ok(None);
            }
            let readable = match &place {
                Place::Disk { .. } => range.end,
                Place::Flight(flight) => flight.readable(&range).await?,
            };
            let end = readable.min(range.start.saturating_add(BLOCK));
            let bytes = read_block(place.file().clone(), range.start..end).await?;
            range.start = end;
            Ok(Some((bytes, (place, range))))
        })
    }

    /// For a thread (the conversion): follows the flight, and says "end" only after the digest was verified.
    pub fn blocking_reader(&self) -> BlockingReader {
        BlockingReader {
            range: 0..self.size(),
            place: self.0.clone(),
        }
    }
}

async fn read_block(file: Arc<File>, range: Range<u64>) -> Result<Bytes, ReadError> {
    let len = usize::try_from(range.end - range.start).map_err(|_| ReadError::Disk("a block is too large".into()))?;
    blocking(move || {
        let mut block = vec![0; len];
        file.read_exact_at(&mut block, range.start)?;
        Ok(block.into())
    })
    .await
}

/// Reads a blob on a thread. Errors carry a [`ReadError`].
#[derive(Debug)]
pub struct BlockingReader {
    place: Place,
    range: Range<u64>,
}

impl Read for BlockingReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let readable = match &self.place {
            Place::Disk { .. } => self.range.end,
            // At the end of the range this waits for the verdict.
            Place::Flight(flight) => flight.readable_blocking(&self.range)?,
        };
        let len = usize::try_from(readable - self.range.start)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if len == 0 {
            return Ok(0);
        }
        let n = self.place.file().read_at(&mut buffer[..len], self.range.start)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.range.start += n as u64;
        Ok(n)
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
            metrics,
        );
        let digest = BlobDigest::of(b"x");
        let add = || {
            let (publish, ready) = watch::channel(None);
            let source = source();
            blobs.flights().insert(digest, Slot { source, ready });
            publish
        };
        let old = add();
        let new = add();
        blobs.leave(&digest, &old);
        assert!(blobs.flights().contains_key(&digest));
        blobs.leave(&digest, &new);
        assert!(blobs.flights().is_empty());
    }
}
