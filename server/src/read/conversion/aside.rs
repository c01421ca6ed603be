//! Layers that are set aside: their blobs arrive slowly, and others want the thread.
//!
//! In: jobs with blobs that are on their way. Out: the jobs, in the places that they had, when the blobs are here.
//! Invariant: a job that is set aside has no thread and no memory of conversions; what was done of it is done again, from
//! the disk. When its blob does not come, that is a failure like any other.
//! Not here: what is slow ([`crate::read::patience`]).

use std::sync::Arc;

use headstart_layer_format::BlobDigest;

use super::{Job, Shared, State};
use crate::read::{ReadError, blob::Blob};

/// Each has a fetch under way, of those that the server may have: the rest of them are for layers that arrive quickly.
pub(super) const ASIDE_MAX: usize = 16;

/// For whoever asks why it is not converted.
pub(super) const REASON: &str = "its blob arrives slowly; it is converted when all of it is here";

impl Shared {
    pub(super) fn set_aside(self: &Arc<Self>, state: &mut State, job: Job, blob: Blob) {
        let layer = job.layer;
        if state.stopping {
            state.known.remove(&layer);
            return;
        }
        let Some(known) = state.known.get_mut(&layer) else {
            return;
        };
        known.running = None;
        known.reason = Some(REASON.to_owned());
        state.aside.insert(layer, job);
        // Whoever waits for the blob keeps neither the queue nor the store open.
        let (shared, stop) = (Arc::downgrade(self), self.stop.clone());
        self.runtime.spawn(async move {
            let Some(arrived) = stop.run_until_cancelled(blob.arrived()).await else {
                return;
            };
            drop(blob);
            if let Some(shared) = shared.upgrade() {
                shared.take_back(&layer, arrived);
            }
        });
    }

    fn take_back(&self, layer: &BlobDigest, arrived: Result<(), ReadError>) {
        let mut state = self.state();
        let Some(job) = state.aside.remove(layer) else { return };
        match (arrived, state.known.get(layer).map(|known| known.place)) {
            (Ok(()), Some(place)) => {
                state.waiting.insert(place, job);
            }
            (Ok(()), None) => {}
            (Err(error), _) => {
                state.known.remove(layer);
                self.remember_failure(&mut state, *layer, format!("read the original: {error}"));
            }
        }
        self.count_waiting(&state);
        drop(state);
        self.work.notify_one();
        self.changed.send_replace(());
    }
}
