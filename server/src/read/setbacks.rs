//! Blobs whose fetch went wrong a moment ago.
//!
//! In: how fetches ended. Out: whether to refuse at the head what would only be cut again.
//! Invariant: one failure may be chance: the next request fetches anew. A second in a row, or a fetch all of whose tries
//! brought nothing more, or one that cut an answer that was held longer than its head could wait, refuses requests for the
//! blob with a status, which sends containerd to its next host in the middle of a layer, where a body that breaks off would
//! not. Any failure lets manifests that name the blob be refused, and indexes
//! above them, because podman changes mirrors at the first manifest or never. Both for [`REMEMBERED`] only
//! ([`WRONG_REMEMBERED`] after wrong bytes), and only towards who would have been served by the same upstream in the same
//! role. Manifests that were withheld for it are kept apart: a manifest that somebody asks for as a blob is not there, which
//! says nothing about the manifest.
//! Not here: upstreams that are down (`upstream/breaker.rs`), and "not found" as an answer ([`super::negative`]).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use headstart_layer_format::BlobDigest;

use super::{errand::may_pass, error::ReadError};
use crate::{
    store::facts::Source,
    upstream::{Caller, UpstreamError},
};

/// Longer than a client's own repetitions, shorter than a person's.
const REMEMBERED: Duration = Duration::from_secs(10);

/// Wrong bytes are no passing trouble: longer than a kubelet waits before it tries again, so that it then gets the image
/// from its next host, and not the same bytes from here once more.
const WRONG_REMEMBERED: Duration = Duration::from_secs(60);

/// Blobs remembered. More of them going wrong at once is an outage.
const ENTRIES_MAX: u64 = 4096;

/// Failures in a row from which on requests are refused.
const REFUSED_FROM: u32 = 2;

type Key = (Source, Caller, BlobDigest);

#[derive(Clone, Debug)]
struct Setback {
    error: ReadError,
    until: Instant,
    /// Times in a row that it broke off after its head; more of them for one that is sure to do so again.
    broke_off: u32,
}

/// All of them; clones share them.
#[derive(Clone, Debug)]
pub struct Setbacks {
    blobs: moka::sync::Cache<Key, Setback>,
    withheld: moka::sync::Cache<Key, ReadError>,
    last_until: Arc<LastUntil>,
}

/// Until when there may be anything at all: mostly there is nothing, and every warm manifest asks for each of its blobs.
#[derive(Debug)]
struct LastUntil {
    since: Instant,
    /// Milliseconds after `since`, rounded up.
    until_ms: AtomicU64,
}

impl LastUntil {
    fn extend(&self, until: Instant) {
        let after = until.saturating_duration_since(self.since).as_millis();
        let after = u64::try_from(after).unwrap_or(u64::MAX).saturating_add(1);
        self.until_ms.fetch_max(after, Ordering::Release);
    }

    fn is_over(&self) -> bool {
        let until_ms = self.until_ms.load(Ordering::Acquire);
        until_ms == 0 || self.since.elapsed().as_millis() > u128::from(until_ms)
    }
}

impl Default for Setbacks {
    fn default() -> Self {
        Self {
            blobs: moka::sync::Cache::builder()
                .max_capacity(ENTRIES_MAX)
                .time_to_live(WRONG_REMEMBERED)
                .build(),
            withheld: moka::sync::Cache::builder()
                .max_capacity(ENTRIES_MAX)
                .time_to_live(REMEMBERED)
                .build(),
            last_until: Arc::new(LastUntil {
                since: Instant::now(),
                until_ms: AtomicU64::new(0),
            }),
        }
    }
}

impl Setbacks {
    /// Whether nothing is remembered, of any blob or manifest.
    pub fn is_quiet(&self) -> bool {
        self.last_until.is_over()
    }

    /// A fetch has ended that had begun to bring bytes. `is_slow`: it took longer than the head of an answer could wait for its
    /// verdict.
    pub fn ended(
        &self,
        source: &Source,
        caller: &Caller,
        digest: &BlobDigest,
        outcome: Result<(), &ReadError>,
        is_slow: bool,
    ) {
        match outcome {
            Ok(()) => self.blobs.invalidate(&key(source, caller, digest)),
            // The fetch has tried on until nothing more came: another would break off there, too. And who was cut without a
            // byte would be again.
            Err(error) if is_slow || was_tried_again(error) => {
                self.add(key(source, caller, digest), error, REFUSED_FROM)
            }
            Err(error) => self.add(key(source, caller, digest), error, 1),
        }
    }

    /// A fetch did not begin: whoever asked for it was told so by a status.
    pub fn refused(&self, source: &Source, caller: &Caller, digest: &BlobDigest, error: &ReadError) {
        self.add(key(source, caller, digest), error, 0);
    }

    /// The last failure, if any.
    pub fn last(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Option<ReadError> {
        if self.is_quiet() {
            return None;
        }
        self.get(&key(source, caller, digest)).map(|setback| setback.error)
    }

    /// Why a request for the blob is refused before its head: what came of it broke off in the middle, and would again.
    pub fn refusal(&self, source: &Source, caller: &Caller, digest: &BlobDigest) -> Option<ReadError> {
        if self.is_quiet() {
            return None;
        }
        let setback = self.get(&key(source, caller, digest))?;
        (setback.broke_off >= REFUSED_FROM).then_some(setback.error)
    }

    /// A manifest was not served, because of a blob that it names.
    pub fn withhold(&self, source: &Source, caller: &Caller, manifest: &BlobDigest, error: &ReadError) {
        self.last_until.extend(Instant::now() + REMEMBERED);
        self.withheld.insert(key(source, caller, manifest), error.clone());
    }

    /// Why it was not.
    pub fn withheld(&self, source: &Source, caller: &Caller, manifest: &BlobDigest) -> Option<ReadError> {
        if self.is_quiet() {
            return None;
        }
        self.withheld.get(&key(source, caller, manifest))
    }

    fn get(&self, key: &Key) -> Option<Setback> {
        self.blobs.get(key).filter(|setback| Instant::now() < setback.until)
    }

    fn add(&self, key: Key, error: &ReadError, broke_off: u32) {
        if !is_upstreams_fault(error) {
            return;
        }
        let before = self.get(&key).map_or(0, |setback| setback.broke_off);
        let until = Instant::now() + remembered(error);
        // First, so that whoever could find it looks for it.
        self.last_until.extend(until);
        let setback = Setback {
            error: error.clone(),
            until,
            broke_off: before.saturating_add(broke_off),
        };
        self.blobs.insert(key, setback);
    }
}

fn key(source: &Source, caller: &Caller, digest: &BlobDigest) -> Key {
    (source.clone(), caller.clone(), *digest)
}

fn remembered(error: &ReadError) -> Duration {
    match error {
        ReadError::DigestMismatch => WRONG_REMEMBERED,
        _ => REMEMBERED,
    }
}

/// Whether a fetch ends with it only after all its tries.
fn was_tried_again(error: &ReadError) -> bool {
    // Nobody was asked: the breaker was opened by others.
    may_pass(error) && !matches!(error, ReadError::Upstream(UpstreamError::CircuitOpen { .. }))
}

/// Not our disk's, our limits' or our shutdown's.
pub(super) fn is_upstreams_fault(error: &ReadError) -> bool {
    match error {
        // Our own budget for the upstream.
        ReadError::Upstream(UpstreamError::Busy) => false,
        ReadError::Unknown | ReadError::DigestMismatch | ReadError::Incomplete | ReadError::Upstream(_) => true,
        ReadError::TooLarge { .. } | ReadError::BadManifest(_) => false,
        ReadError::Disk(_) | ReadError::Busy | ReadError::Stopping => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(repository: &str) -> Source {
        Source {
            upstream: "u".into(),
            repository: repository.into(),
        }
    }

    #[test]
    fn the_second_failure_in_a_row_refuses_and_a_success_forgives() {
        let (setbacks, digest) = (Setbacks::default(), BlobDigest::of(b"a layer"));
        let (source, caller) = (at("r"), Caller::Server);
        let fails = || setbacks.ended(&source, &caller, &digest, Err(&ReadError::DigestMismatch), false);
        setbacks.refused(&source, &caller, &digest, &ReadError::Unknown);
        fails();
        assert!(setbacks.last(&source, &caller, &digest).is_some());
        assert!(setbacks.refusal(&source, &caller, &digest).is_none());
        fails();
        assert!(setbacks.refusal(&source, &caller, &digest).is_some());
        assert!(setbacks.refusal(&at("other"), &caller, &digest).is_none());
        assert!(setbacks.refusal(&source, &Caller::Anybody, &digest).is_none());
        setbacks.ended(&source, &caller, &digest, Ok(()), false);
        assert!(setbacks.last(&source, &caller, &digest).is_none());
    }

    #[test]
    fn a_fetch_whose_tries_are_over_refuses_at_once() {
        let open = UpstreamError::CircuitOpen { retry_after_secs: 1 };
        for (error, refuses) in [
            (ReadError::Incomplete, true),
            (UpstreamError::Timeout.into(), true),
            // Nothing was tried again.
            (open.into(), false),
            (UpstreamError::Denied { status: 403 }.into(), false),
            (ReadError::DigestMismatch, false),
        ] {
            let (setbacks, digest) = (Setbacks::default(), BlobDigest::of(b"a layer"));
            let (source, caller) = (at("r"), Caller::Server);
            setbacks.ended(&source, &caller, &digest, Err(&error), false);
            assert_eq!(
                setbacks.refusal(&source, &caller, &digest).is_some(),
                refuses,
                "{error}"
            );
        }
    }

    #[test]
    fn a_failure_that_is_over_withholds_nothing() {
        let (setbacks, digest) = (Setbacks::default(), BlobDigest::of(b"a layer"));
        let (source, caller) = (at("r"), Caller::Server);
        let setback = Setback {
            error: ReadError::Unknown,
            until: Instant::now(),
            broke_off: REFUSED_FROM,
        };
        setbacks.last_until.extend(Instant::now() + REMEMBERED);
        setbacks.blobs.insert(key(&source, &caller, &digest), setback);
        assert!(setbacks.last(&source, &caller, &digest).is_none());
        assert!(setbacks.refusal(&source, &caller, &digest).is_none());
    }

    /// Nobody who could find something is told that there is nothing.
    #[test]
    fn it_is_quiet_until_something_goes_wrong() {
        let (setbacks, digest) = (Setbacks::default(), BlobDigest::of(b"a layer"));
        let (source, caller) = (at("r"), Caller::Server);
        setbacks.ended(&source, &caller, &digest, Ok(()), false);
        assert!(setbacks.is_quiet() && setbacks.withheld(&source, &caller, &digest).is_none());
        setbacks.withhold(&source, &caller, &digest, &ReadError::Unknown);
        assert!(!setbacks.is_quiet() && setbacks.withheld(&source, &caller, &digest).is_some());
        let others = Setbacks::default();
        others.refused(&source, &caller, &digest, &ReadError::Unknown);
        assert!(!others.is_quiet() && !others.clone().is_quiet());
    }

    #[test]
    fn it_is_quiet_again_when_the_last_is_over() {
        let (since, part) = (Instant::now(), Duration::from_millis(30));
        let last = LastUntil {
            since,
            until_ms: AtomicU64::new(0),
        };
        last.extend(since + 2 * part);
        last.extend(since + part);
        let is_over = last.is_over();
        assert!(!is_over || since.elapsed() >= 2 * part, "the latest counts");
        std::thread::sleep(3 * part);
        assert!(last.is_over());
    }

    #[test]
    fn what_was_cut_without_a_byte_is_refused_at_once() {
        for is_slow in [true, false] {
            let (setbacks, digest) = (Setbacks::default(), BlobDigest::of(b"a layer"));
            let (source, caller) = (at("r"), Caller::Server);
            let wrong = Err(&ReadError::DigestMismatch);
            setbacks.ended(&source, &caller, &digest, wrong, is_slow);
            assert_eq!(setbacks.refusal(&source, &caller, &digest).is_some(), is_slow);
        }
    }

    #[test]
    fn our_own_troubles_are_not_held_against_a_blob() {
        let (setbacks, digest) = (Setbacks::default(), BlobDigest::of(b"a layer"));
        let budget = ReadError::Upstream(UpstreamError::Busy);
        for error in [
            ReadError::Busy,
            ReadError::Stopping,
            ReadError::Disk("full".into()),
            budget,
        ] {
            setbacks.ended(&at("r"), &Caller::Server, &digest, Err(&error), false);
        }
        assert!(setbacks.last(&at("r"), &Caller::Server, &digest).is_none());
    }
}
