//! How the prefetch and the trace of an image stand, for people.
//!
//! In: what [`super::starts`] and [`super::stream`] come to. Out: [`ImagePrefetch`], JSON both ways. Invariant: it is shown
//! and never decided by.
//! Not here: the sums of all images (`counters.rs`).

use std::sync::{Mutex, MutexGuard, PoisonError};

use headstart_layer_format::BlobDigest;
use headstart_layer_format::profile::Origin;
use serde::{Deserialize, Serialize};

/// How far a prefetch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// For layers, or in line behind other images.
    Waiting,
    Streaming,
    Done,
    /// The image's snapshots went, or the node stops.
    Stopped,
    /// The disk is full, or nearly.
    NoRoom,
    Failed,
    /// The servers know nothing of its starts.
    NoProfile,
    /// The profile counts in other TOCs than this node has.
    OtherTocs,
    Disabled,
}

/// How far the trace of a start is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Telling {
    #[default]
    None,
    Recording,
    Posted,
    /// Nothing was read, or not all reads could be seen.
    NothingToTell,
    Failed,
}

/// An image that was prepared lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePrefetch {
    pub manifest: BlobDigest,
    pub progress: Progress,
    pub origin: Option<Origin>,
    /// Starts that the profile is made of.
    pub starts: u32,
    /// Chunks of the profile.
    pub chunks: u64,
    /// Those that were asked for, and their compressed bytes.
    pub asked_chunks: u64,
    pub asked_bytes: u64,
    pub received_chunks: u64,
    pub received_bytes: u64,
    /// Of the received: demand had been quicker.
    pub late_bytes: u64,
    /// Taken from other layers of this node.
    pub near_chunks: u64,
    pub trace: Telling,
    /// When the first container whose start was recorded needed something first, in milliseconds since 1970.
    #[serde(default)]
    pub first_read_unix_ms: Option<u64>,
}

/// Shared by whoever changes it.
#[derive(Debug)]
pub struct State(Mutex<ImagePrefetch>);

impl State {
    pub(super) fn new(manifest: BlobDigest) -> Self {
        Self(Mutex::new(ImagePrefetch {
            manifest,
            progress: Progress::Waiting,
            origin: None,
            starts: 0,
            chunks: 0,
            asked_chunks: 0,
            asked_bytes: 0,
            received_chunks: 0,
            received_bytes: 0,
            late_bytes: 0,
            near_chunks: 0,
            trace: Telling::None,
            first_read_unix_ms: None,
        }))
    }

    pub(super) fn change(&self, how: impl FnOnce(&mut ImagePrefetch)) {
        how(&mut self.lock());
    }

    pub(super) fn now(&self) -> ImagePrefetch {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, ImagePrefetch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
