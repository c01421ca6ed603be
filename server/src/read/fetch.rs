//! One blob being fetched from one upstream, whole or in parts, from the first request to the last reader.
//!
//! In: an errand, and what the first client wants. Out: a [`Fetch`] as soon as the blob's size is known, for any number
//! of readers to board.
//! Invariant: it is on the list of `blobs.rs` until nobody writes its files any more, so a partial has one writer. It
//! ends when the blob is whole, when it fails, or when nobody reads or fetches a part for a while; what came stays for
//! the next one, except after a mismatch or a failed write.
//! Not here: who may read, and which requests share a fetch (`blobs.rs`).

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    blocking::blocking,
    errand::Errand,
    error::ReadError,
    flight::Flight,
    opening::{First, Opened},
    turns::FetchTurn,
};
use crate::telemetry::Cause;

/// A flight without readers is kept this long, for the next range of the same client.
const LINGER: Duration = Duration::from_secs(1);

/// One blob being fetched.
#[derive(Debug)]
pub struct Fetch {
    pub errand: Errand,
    pub flight: Flight,
    /// Its span, for those of its parts, which readers of other requests may begin.
    pub(super) cause: Cause,
}

impl Fetch {
    /// To be called in the fetch's span.
    pub fn new(errand: Errand, mut opened: Opened) -> (Arc<Self>, First) {
        let stop = errand.yard.stop.child_token();
        let early = opened.early();
        let flight = Flight::new(opened.partial, opened.size, early, stop);
        (
            Arc::new(Self {
                errand,
                flight,
                cause: Cause::here(),
            }),
            opened.first,
        )
    }

    /// A seat for a reader, unless it is too late.
    pub fn board(self: &Arc<Self>) -> Option<Boarded> {
        self.flight.board().then(|| Boarded(self.clone()))
    }

    /// Begins with what the opening request brought. To be called before anybody boards, who would ask for it again.
    pub fn depart(self: &Arc<Self>, first: First, permit: FetchTurn) {
        match first {
            First::Whole(body) => self.promote(body, permit),
            First::Range(body) => self.land_range(body, permit),
            // It lacks nothing but the verdict.
            First::Nothing if self.flight.is_complete() => self.promote(None, permit),
            First::Nothing => drop(permit),
        }
    }

    /// Returns when the files are left for good.
    pub async fn fly(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.flight.left_behind() => return,
                () = self.flight.stop.cancelled() => break,
                () = tokio::time::sleep(LINGER) => {
                    if self.flight.close_if_idle() {
                        return;
                    }
                }
            }
        }
        if self.flight.is_whole() {
            self.flight.left_behind().await;
        } else {
            let error = self.flight.grounded().unwrap_or(ReadError::Stopping);
            self.give_up(error).await;
        }
    }

    /// Fails every reader, when nobody writes any more. Space and lies are given up, the rest is kept.
    pub(super) async fn give_up(self: &Arc<Self>, error: ReadError) {
        self.flight.ground(error.clone());
        self.flight.drained().await;
        if matches!(error, ReadError::Disk(_) | ReadError::DigestMismatch) {
            let fetch = self.clone();
            let discarded = blocking(move || Ok(fetch.flight.partial().discard()?)).await;
            if let Err(error) = discarded {
                tracing::warn!(digest = %self.errand.digest, %error, "unfinished blob cannot be removed");
            }
        }
        self.flight.finish(Err(error));
        self.flight.leave();
    }

    pub(super) fn stop(&self) -> &CancellationToken {
        &self.flight.stop
    }
}

/// A reader's seat; the flight is not closed while somebody has one.
#[derive(Debug)]
pub struct Boarded(Arc<Fetch>);

impl Boarded {
    pub fn fetch(&self) -> &Arc<Fetch> {
        &self.0
    }
}

impl Clone for Boarded {
    fn clone(&self) -> Self {
        // It cannot have been closed meanwhile: this seat was taken.
        self.0.flight.state().aboard += 1;
        Self(self.0.clone())
    }
}

impl Drop for Boarded {
    fn drop(&mut self) {
        self.0.flight.unboard();
    }
}
