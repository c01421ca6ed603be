//! Why a client may not read something.
//!
//! In: a decision. Out: [`AccessError`].
//! Invariant: a variant says what to tell the client; no text holds a name, password or token.
//! Not here: the answer itself (`http/error.rs`).

use crate::{store::StoreError, upstream::UpstreamError};

/// Why a client may not read something. Each text completes "failed to ...".
#[derive(Clone, Debug, thiserror::Error)]
pub enum AccessError {
    /// It has not said who it is, or wrongly, and doing so may help: challenge it.
    #[error("read it: credentials are missing or wrong")]
    Unauthorized,
    /// Whatever it says would not help, or it is known and may not.
    #[error("read it: this client may not")]
    Denied,
    /// It may not, and is not to learn whether it is there.
    #[error("find it in a repository that this client may read")]
    Hidden,
    /// The upstream says that it is not there, or cannot be asked.
    #[error("ask the upstream whether this client may read it: {0}")]
    Upstream(#[from] UpstreamError),
    /// Too many passwords are being checked.
    #[error("check the credentials: too many are being checked")]
    Busy,
    #[error("look up what this client may read: {0}")]
    Store(String),
}

impl From<StoreError> for AccessError {
    fn from(error: StoreError) -> Self {
        Self::Store(error.to_string())
    }
}

/// Why the server does not start with these rules or files.
#[derive(Debug, thiserror::Error)]
#[error("use [access]: {0}")]
pub struct AccessSetupError(pub String);
