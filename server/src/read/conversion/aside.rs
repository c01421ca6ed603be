//! Layers that are set aside: their upstreams are slow, and others want the thread.
//!
//! In: jobs whose upstreams have not answered yet, or whose blobs are on their way. Out: the jobs, in the places that they
//! had, when there is an answer, or the blob is here.
//! Invariant: a job that is set aside has no thread and no memory of conversions; what was done of it is done again, from
//! the disk. When nothing comes, that is a failure like any other.
//! Not here: what is slow ([`crate::read::patience`]).

use std::sync::Arc;

use headstart_layer_format::BlobDigest;
use tokio::task::JoinHandle;

use super::{Job, Shared, State};
use crate::read::blob::Blob;

/// Each has a fetch under way, of those that the server may have: the rest of them are for layers that arrive quickly.
pub(super) const ASIDE_MAX: usize = 16;

/// What a job that is set aside waits for.
#[derive(Debug)]
pub(super) enum Awaited {
    /// An answer with the blob's size. `None`: the queue ended first.
    Head(JoinHandle<Option<Result<Blob, String>>>),
    /// All of the blob.
    Body(Box<Blob>),
}

impl Awaited {
    /// For whoever asks why the layer is not converted.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Head(_) => "its upstream has not answered yet; it is converted when it has",
            Self::Body(_) => "its blob arrives slowly; it is converted when all of it is here",
        }
    }

    async fn arrived(self) -> Result<Blob, String> {
        match self {
            Self::Head(opening) => match opening.await {
                Ok(Some(opened)) => opened,
                Ok(None) | Err(_) => Err("read the original: the server is stopping".into()),
            },
            Self::Body(blob) => match blob.arrived().await {
                Ok(()) => Ok(*blob),
                Err(error) => Err(format!("read the original: {error}")),
            },
        }
    }
}

impl Shared {
    pub(super) fn set_aside(self: &Arc<Self>, state: &mut State, job: Job, awaited: Awaited) {
        let layer = job.layer;
        if state.stopping {
            state.known.remove(&layer);
            return;
        }
        let Some(known) = state.known.get_mut(&layer) else {
            return;
        };
        known.running = None;
        known.reason = Some(awaited.reason().to_owned());
        state.aside.insert(layer, job);
        // Whoever waits for the blob keeps neither the queue nor the store open.
        let (shared, stop) = (Arc::downgrade(self), self.stop.clone());
        self.runtime.spawn(async move {
            let Some(arrived) = stop.run_until_cancelled(awaited.arrived()).await else {
                return;
            };
            if let Some(shared) = shared.upgrade() {
                shared.take_back(&layer, arrived);
            }
        });
    }

    fn take_back(&self, layer: &BlobDigest, arrived: Result<Blob, String>) {
        let mut state = self.state();
        let Some(job) = state.aside.remove(layer) else { return };
        match (arrived, state.known.get(layer).map(|known| known.place)) {
            (Ok(blob), Some(place)) => {
                // Asked for again, another source might come first, and be slow again.
                state.opened.insert(*layer, blob);
                state.waiting.insert(place, job);
            }
            (Ok(_), None) => {}
            (Err(reason), _) => {
                state.known.remove(layer);
                self.remember_failure(&mut state, *layer, reason);
            }
        }
        self.count_waiting(&state);
        drop(state);
        self.work.notify_one();
        self.changed.send_replace(());
    }
}
