//! Why a manifest or blob could not be read.
//!
//! In: errors of `upstream` and of the disk. Out: [`ReadError`], cheap to clone, because one failed fetch fails every
//! reader that followed it.
//! Invariant: variants are named for what the caller does next.
//! Not here: HTTP statuses (`http/error.rs`).

use std::{io, sync::Arc};

use crate::{store::StoreError, upstream::UpstreamError};

/// Why a read failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    /// The repository does not have it.
    #[error("the repository does not have it")]
    Unknown,
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// Nothing was kept; a new request starts anew.
    #[error("the upstream's bytes do not match the digest")]
    DigestMismatch,
    /// The upstream broke off too often; what came is kept, and a request after a while (`read/setbacks.rs`) resumes.
    #[error("the upstream broke off in the middle of the blob")]
    Incomplete,
    #[error("it has {size} bytes, over the limit of {size_max}")]
    TooLarge { size: u64, size_max: u64 },
    #[error("the upstream's manifest is refused: {0}")]
    BadManifest(&'static str),
    #[error("local storage: {0}")]
    Disk(Arc<str>),
    /// Too much is under way; later there may be a turn.
    #[error("too much is being fetched")]
    Busy,
    #[error("the server is stopping")]
    Stopping,
}

impl ReadError {
    /// Of a blob that is held a part is asked for, and the disk takes nothing: it cannot be compared with the digest.
    pub fn cannot_verify() -> Self {
        Self::Disk("it takes nothing, and a part of a blob of this upstream cannot be verified without it".into())
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Disk(error.to_string().into())
    }
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Disk(error.to_string().into())
    }
}

impl From<ReadError> for io::Error {
    fn from(error: ReadError) -> Self {
        io::Error::other(error)
    }
}
