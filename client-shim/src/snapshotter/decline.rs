//! Why a layer is not mounted lazily: the log keys of this crate's decisions, in one place.
//!
//! In: a reason found anywhere on the way. Out: one log line with the key `lazy_declined`, and an ordinary pull.
//! Invariant: one line per declined `Prepare`; the values are stable, people grep for them.
//! Not here: errors, which fail a call ([`super::error`]).

use std::fmt;

use super::labels::LayerIdentity;

/// Value of the log field `lazy_declined`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeclineReason {
    /// Switched off in the configuration.
    Disabled,
    /// The node's FUSE mount could not be made.
    NoMount,
    /// No server answered.
    NoServer,
    /// The server has not served this image (or chain), so it does not come through it.
    UnknownImage,
    /// Still converting when the waiting time was over.
    NotReady,
    /// A layer cannot be converted; it stays an ordinary blob.
    Refused,
    /// The last conversion failed; a later one may not.
    Failed,
    /// What the server says does not fit what containerd asked for.
    Mismatch,
    /// The label with the chain ID is not a chain ID.
    Malformed,
    /// The layer is ready but could not be had, or stored, in time.
    PresentFailed,
    /// The layer writes below a directory it has no entry for, whose attributes only unpacking would keep.
    ImpliedDirectory,
    /// The snapshot could not be recorded.
    CommitFailed,
}

impl DeclineReason {
    pub const ALL: [DeclineReason; 12] = [
        Self::Disabled,
        Self::NoMount,
        Self::NoServer,
        Self::UnknownImage,
        Self::NotReady,
        Self::Refused,
        Self::Failed,
        Self::Mismatch,
        Self::Malformed,
        Self::PresentFailed,
        Self::ImpliedDirectory,
        Self::CommitFailed,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::NoMount => "no_mount",
            Self::NoServer => "no_server",
            Self::UnknownImage => "unknown_image",
            Self::NotReady => "not_ready",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Mismatch => "mismatch",
            Self::Malformed => "malformed",
            Self::PresentFailed => "present_failed",
            Self::ImpliedDirectory => "implied_directory",
            Self::CommitFailed => "commit_failed",
        }
    }
}

/// A decline, with a sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decline {
    pub reason: DeclineReason,
    pub detail: String,
}

impl Decline {
    pub fn new(reason: DeclineReason, detail: impl fmt::Display) -> Self {
        Self {
            reason,
            detail: detail.to_string(),
        }
    }

    /// Writes the one line.
    pub fn log(&self, chain: &str, identity: Option<&LayerIdentity>) {
        tracing::info!(
            lazy_declined = self.reason.as_str(),
            detail = self.detail,
            chain,
            image = identity.and_then(|i| i.image_ref.as_deref()).unwrap_or_default(),
            manifest = identity.and_then(|i| i.manifest).map(tracing::field::display),
            "layer will be pulled"
        );
    }
}
