//! Why something could not be had from the servers, named for the caller's next decision.
//!
//! In: failures of requests. Out: [`FetchError`], cheap to hand to many readers.
//! Invariant: a variant says what to do next: try later, decline, or report damage.
//! Not here: the errno a reader sees (`fuse/kernel.rs`).

use super::verify::Corrupt;

/// Each text completes "failed to ...".
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The configuration is wrong: tell the operator.
    #[error("use the list of servers: {0}")]
    Config(String),
    /// No server could be reached, or those reached are in trouble: the same question may succeed later.
    #[error("reach a server: {0}")]
    Unreachable(String),
    /// Time is up: the same question may succeed later.
    #[error("get an answer in time")]
    Deadline,
    /// Servers answered, and have not got it: asking again at once is useless.
    #[error("get it from a server: it answered {status}")]
    Rejected { status: u16 },
    /// The server does not take this node for one that may read it. Credentials change on one side first, so it may soon.
    #[error("be let in by a server: it answered {status}")]
    Unauthorized { status: u16 },
    /// A server's answer is not what the contract says: decline, and report.
    #[error("make sense of a server's answer: {0}")]
    Malformed(&'static str),
    /// Bytes came that are not what their digest says: never use them.
    #[error("verify a chunk: {0}")]
    Corrupt(#[from] Corrupt),
    /// This node's disk did not take it.
    #[error("store a chunk: {0}")]
    Disk(String),
}

impl FetchError {
    /// Whether the same request may succeed soon without anything changing on this node.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Deadline | Self::Unauthorized { .. } => true,
            Self::Config(_) | Self::Rejected { .. } | Self::Malformed(_) | Self::Corrupt(_) | Self::Disk(_) => false,
        }
    }

    /// Whether whoever answered has no room for this just now, and may have it in a moment.
    pub fn is_for_want_of_room(&self) -> bool {
        matches!(self, Self::Rejected { status: 429 | 503 })
    }
}
