//! Why a layer is not presented.
//!
//! In: what went wrong, or what a server said of it. Out: an error that the snapshotter decides by. Invariant: each text
//! completes "failed to ...".
//! Not here: what follows from it (`snapshotter`).

use headstart_layer_format::api::{LayerState, LayerStatus};

use crate::cache::CacheError;
use crate::fetch::FetchError;
use crate::presentation::PresentationError;

/// Named for the snapshotter's decision.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// No server knows it: an ordinary pull.
    #[error("find the layer on any server")]
    Unknown,
    /// It will never have a TOC: an ordinary pull.
    #[error("present the layer: the server refused to convert it ({0})")]
    Refused(String),
    /// Not in time: an ordinary pull, lazily perhaps the next time.
    #[error("get the layer's TOC in time (it is {0})")]
    NotReady(&'static str),
    /// This node is full.
    #[error("present another layer: this node has {0} already")]
    Full(usize),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error(transparent)]
    Presentation(#[from] PresentationError),
    /// It was here whole, and is not what its image names.
    #[error("present the layer: it is quarantined")]
    Quarantined,
    #[error("finish work on the layer")]
    Interrupted,
}

impl LayersError {
    /// A server knows the layer, and has no TOC of it now.
    pub(super) fn not_ready(status: LayerStatus) -> LayersError {
        match status.state {
            LayerState::Refused => LayersError::Refused(status.reason.unwrap_or_else(|| "no reason given".into())),
            LayerState::Unknown => LayersError::Unknown,
            LayerState::Queued => LayersError::NotReady("queued"),
            LayerState::Converting => LayersError::NotReady("converting"),
            LayerState::Failed => LayersError::NotReady("failing to convert"),
            LayerState::Ready => LayersError::NotReady("ready, but withheld"),
        }
    }
}
