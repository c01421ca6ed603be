//! When unfinished fetches that nobody finishes go away: at the start, and every hour.
//!
//! In: the age of `[fetch] partial_ttl_ms`. Out: partials older than that, and maps without one, are removed. Before the
//! first sweep, those that only lack their name get it ([`super::orphans`]).
//! Invariant: no file of a fetch that is on the list is touched, and none gets on the list meanwhile.
//! Not here: the files (`store/leftovers.rs`).

use std::time::Duration;

use super::{blobs::Blobs, blocking::blocking};

const PERIOD: Duration = Duration::from_secs(3600);

impl Blobs {
    /// Sweeps now and every hour, until the server stops.
    pub fn keep_swept(&self) {
        let blobs = self.clone();
        self.yard().tasks.spawn(async move {
            blobs.adopt_orphans().await;
            loop {
                blobs.sweep().await;
                tokio::select! {
                    () = blobs.yard().stop.cancelled() => return,
                    () = tokio::time::sleep(PERIOD) => {}
                }
            }
        });
    }

    /// Removes what is old, once.
    pub async fn sweep(&self) {
        let blobs = self.clone();
        let age = Duration::from_millis(self.yard().config.partial_ttl_ms);
        let swept = blocking(move || {
            let originals = &blobs.yard().originals;
            Ok(originals.sweep_leftovers(age, |path, remove| blobs.unless_in_use(path, remove))?)
        });
        match swept.await {
            Ok(0) => {}
            Ok(swept) => tracing::info!(swept, "unfinished fetches that nobody finished are gone"),
            Err(error) => tracing::warn!(%error, "unfinished fetches cannot be swept"),
        }
    }
}
