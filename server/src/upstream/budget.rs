//! What we allow ourselves to ask of one upstream: requests at once, requests a second, bytes a second.
//!
//! In: the configuration. Out: leave, after a wait.
//! Invariant: a wait for leave to ask is bounded in time; bytes of a body that runs wait as long as it takes, which
//! slows the upstream down by back pressure. One budget an upstream, over all its URLs.
//! Not here: what the upstream allows ([`super::hold`]).

use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
    state::{InMemoryState, NotKeyed},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::UpstreamError;
use crate::{
    config::UpstreamConfig,
    metrics::{Metrics, names::Seconds},
};

/// Bytes are counted in units of this: a second must have room for their number at nanosecond precision.
const UNIT_SIZE: u64 = 1 << 10;

/// Most bytes a second that a budget can be set to; more is no budget on any network we know.
const BYTES_PER_SEC_MAX: u64 = 1 << 38;

type Limiter = RateLimiter<NotKeyed, InMemoryState, DefaultClock>;

/// Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstream: String,
    at_once: Option<Arc<Semaphore>>,
    requests: Option<Limiter>,
    bytes: Option<(Limiter, NonZeroU32)>,
    queue_timeout: Duration,
    metrics: Metrics,
}

/// A place among the requests at once; given back when dropped.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "held for its drop")] Option<OwnedSemaphorePermit>);

impl Budget {
    pub(super) fn new(config: &UpstreamConfig, upstream: &str, metrics: &Metrics) -> Result<Self, String> {
        let bytes = match config.bytes_per_sec_max {
            0 => None,
            bytes if !(UNIT_SIZE..=BYTES_PER_SEC_MAX).contains(&bytes) => {
                return Err("bytes_per_sec_max must be 0 or from 1 KiB to 256 GiB".into());
            }
            bytes => {
                let units = NonZeroU32::new((bytes / UNIT_SIZE) as u32).unwrap_or(NonZeroU32::MIN);
                // A quarter of a second at once: smooth enough for a line, coarse enough for our pieces.
                let burst = NonZeroU32::new(units.get() / 4).unwrap_or(NonZeroU32::MIN);
                Some((RateLimiter::direct(Quota::per_second(units).allow_burst(burst)), burst))
            }
        };
        let requests = NonZeroU32::new(config.requests_per_sec_max);
        let at_once = (config.requests_max > 0).then(|| config.requests_max.min(Semaphore::MAX_PERMITS));
        Ok(Self(Arc::new(Inner {
            upstream: upstream.to_owned(),
            at_once: at_once.map(|n| Arc::new(Semaphore::new(n))),
            requests: requests.map(|n| RateLimiter::direct(Quota::per_second(n))),
            bytes,
            queue_timeout: Duration::from_millis(config.queue_timeout_ms),
            metrics: metrics.clone(),
        })))
    }

    /// Waits for a place among the requests at once.
    pub(super) async fn place(&self) -> Result<Place, UpstreamError> {
        let Some(semaphore) = &self.0.at_once else {
            return Ok(Place(None));
        };
        if let Ok(permit) = semaphore.clone().try_acquire_owned() {
            return Ok(Place(Some(permit)));
        }
        let began = Instant::now();
        let permit = tokio::time::timeout(self.0.queue_timeout, semaphore.clone().acquire_owned()).await;
        self.waited(began);
        match permit {
            Ok(Ok(permit)) => Ok(Place(Some(permit))),
            _ => Err(UpstreamError::Busy),
        }
    }

    /// Waits until one more request may be sent.
    pub(super) async fn request(&self) -> Result<(), UpstreamError> {
        let Some(limiter) = &self.0.requests else { return Ok(()) };
        let began = Instant::now();
        while let Err(early) = limiter.check() {
            let wait = early.wait_time_from(DefaultClock::default().now());
            if began.elapsed() + wait > self.0.queue_timeout {
                self.waited(began);
                return Err(UpstreamError::Busy);
            }
            tokio::time::sleep(wait).await;
        }
        self.waited(began);
        Ok(())
    }

    /// Waits until so many more bytes may have come. `owed` carries what is less than a unit to the next call.
    pub(super) async fn bytes(&self, bytes: u64, owed: &mut u64) {
        let Some((limiter, burst)) = &self.0.bytes else { return };
        *owed += bytes;
        while *owed >= UNIT_SIZE {
            let units = (*owed / UNIT_SIZE).min(u64::from(burst.get()));
            let Some(cells) = u32::try_from(units).ok().and_then(NonZeroU32::new) else {
                return;
            };
            loop {
                match limiter.check_n(cells) {
                    Ok(Ok(())) => break,
                    Ok(Err(early)) => {
                        tokio::time::sleep(early.wait_time_from(DefaultClock::default().now())).await;
                    }
                    // More than the burst, which it is not.
                    Err(_) => break,
                }
            }
            *owed -= units * UNIT_SIZE;
        }
    }

    fn waited(&self, began: Instant) {
        let secs = began.elapsed().as_secs_f64();
        if secs > 0.000_1 {
            self.0
                .metrics
                .add_seconds(Seconds::UpstreamQueue, secs, &[&self.0.upstream]);
        }
    }
}
