//! Why a snapshot call fails, named for what the caller does next.
//!
//! In: the store's findings. Out: [`SnapshotError`], and its gRPC status. Invariant: the mapping to containerd's codes
//! is here and nowhere else, without a catch-all.
//! Not here: declines of lazy preparation, which are no errors ([`super::decline`]).

use tonic::Status;

/// A failed call.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("snapshot {0:?} does not exist")]
    NotFound(String),
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    #[error("snapshot {name:?} {why}")]
    Precondition { name: String, why: &'static str },
    #[error("{0}")]
    Invalid(String),
    /// A lazy layer below cannot be shown now; the call may succeed later.
    #[error("layer {layer} of snapshot {name:?} is not available: {why}")]
    LayerUnavailable { name: String, layer: String, why: String },
    /// A container in a user namespace, with the capability "remap-ids" in containerd's configuration.
    #[error(
        "{path} cannot be mounted with other owners on this kernel ({why}): \
         take \"remap-ids\" out of the capabilities of this snapshotter in containerd's configuration"
    )]
    NoIdMap { path: String, why: std::io::Error },
    #[error("{what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
    #[error("the snapshotter is stopping")]
    Stopping,
}

impl SnapshotError {
    /// For `map_err`: names the step that failed.
    pub fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

impl From<SnapshotError> for Status {
    fn from(error: SnapshotError) -> Status {
        let text = error.to_string();
        match error {
            SnapshotError::NotFound(_) => Status::not_found(text),
            SnapshotError::AlreadyExists(_) => Status::already_exists(text),
            SnapshotError::Precondition { .. } | SnapshotError::NoIdMap { .. } => Status::failed_precondition(text),
            SnapshotError::Invalid(_) => Status::invalid_argument(text),
            SnapshotError::LayerUnavailable { .. } | SnapshotError::Stopping => Status::unavailable(text),
            SnapshotError::Io { .. } => {
                tracing::error!(error = text, "snapshot state could not be read or written");
                Status::internal(text)
            }
        }
    }
}
