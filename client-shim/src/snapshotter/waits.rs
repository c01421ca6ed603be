//! Pulls that stand still until a server has converted their image, for people.
//!
//! In: what a server says of the image meanwhile. Out: [`Waiting`], JSON both ways, and a log line with each. Invariant: an entry
//! lives as long as its wait; it is shown, and never decided by.
//! Not here: how long is waited ([`super::outlook`]), and for what ([`super::decide`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use headstart_layer_format::BlobDigest;
use headstart_layer_format::api::{ImageStatus, LayerState, LayerStatus};
use serde::{Deserialize, Serialize};

/// An image that a pull waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    pub manifest: BlobDigest,
    pub waited_secs: u64,
    pub layers: u32,
    /// Those that are ready.
    pub layers_ready: u32,
    /// Compressed bytes of all layers whose size the server knows.
    pub bytes: u64,
    /// Those of them that are converted.
    pub bytes_converted: u64,
}

/// Clones share what they hold.
#[derive(Clone, Debug, Default)]
pub struct Waits(Arc<Mutex<HashMap<BlobDigest, (Instant, Waiting)>>>);

/// One wait; it is over when this is dropped.
#[derive(Debug)]
pub(super) struct Wait {
    waits: Waits,
    manifest: BlobDigest,
    begun: Instant,
}

impl Waits {
    /// Of one image there is one wait at a time ([`super::decide`]).
    pub(super) fn begin(&self, manifest: &BlobDigest, begun: Instant) -> Wait {
        Wait {
            waits: self.clone(),
            manifest: *manifest,
            begun,
        }
    }

    /// The longest first.
    pub fn now(&self) -> Vec<Waiting> {
        let mut all: Vec<_> = self.lock().values().cloned().collect();
        all.sort_by_key(|(begun, _)| *begun);
        let told = all.into_iter().map(|(begun, waiting)| Waiting {
            waited_secs: begun.elapsed().as_secs(),
            ..waiting
        });
        told.collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BlobDigest, (Instant, Waiting)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait {
    pub(super) fn told(&self, image: &ImageStatus) -> Waiting {
        let ready = |state| state == LayerState::Ready;
        let done = |l: &LayerStatus| match ready(l.state) {
            true => l.size,
            false => l.converted.map(|n| n.min(l.size.unwrap_or(n))),
        };
        let sum = |of: &dyn Fn(&LayerStatus) -> Option<u64>| {
            let bytes = image.layers.iter().filter_map(of);
            bytes.fold(0, u64::saturating_add)
        };
        let waiting = Waiting {
            manifest: self.manifest,
            waited_secs: self.begun.elapsed().as_secs(),
            layers: image.layers.len() as u32,
            layers_ready: image.layers.iter().filter(|l| ready(l.state)).count() as u32,
            bytes: sum(&|l| l.size),
            bytes_converted: sum(&done),
        };
        tracing::info!(
            image = %waiting.manifest, waited_secs = waiting.waited_secs, layers = waiting.layers,
            layers_ready = waiting.layers_ready, bytes = waiting.bytes, bytes_converted = waiting.bytes_converted,
            "pull-waits-for-conversion"
        );
        self.waits.lock().insert(self.manifest, (self.begun, waiting.clone()));
        waiting
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        self.waits.lock().remove(&self.manifest);
    }
}
