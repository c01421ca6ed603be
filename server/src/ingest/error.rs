//! Why a conversion ended without a TOC, sorted by what to do next.
//!
//! Invariant: [`Refusal`] is a property of the layer's (verified) bytes, and is recorded with what else it is due to: a
//! limit, or time (`store/refusal.rs`); [`Failure`] says nothing about the layer, and a later request tries again. On their way through decoders both travel inside an [`io::Error`].
//! Not here: states of layers (`read/layers.rs`).

use std::io;

use headstart_layer_format::{BlobDigest, TocError};

pub use crate::store::refusal::Limit;

use crate::store::{
    Store, StoreError,
    refusal::{Allowance, Terms},
    usage::now_ms,
};

#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Failed(Failure),
}

/// The layer stays an ordinary blob.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("the layer does not decompress: {0}")]
    Decompress(String),
    #[error("the tar is malformed: {0}")]
    Tar(&'static str),
    #[error("the tar ends early")]
    TarTruncated,
    #[error("an entry of type {0:?} cannot be represented")]
    EntryType(char),
    #[error("a path in the tar cannot be unpacked: {0}")]
    Path(&'static str),
    #[error("the layer has more than {max} {what}")]
    OverBudget { limit: Limit, what: &'static str, max: u64 },
    /// Whoever converts says so, of a [`Failure::TimedOut`] that was not an upstream's doing.
    #[error(
        "the conversion takes more than {time_max_ms} ms (ingest.time_max_ms); it is tried again with more, or after a day"
    )]
    OverTime { time_max_ms: u64 },
    #[error(transparent)]
    Toc(#[from] TocError),
}

/// Not the layer's fault, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("read the original: {0}")]
    Read(io::Error),
    #[error("read the original: its digest is wrong")]
    DigestMismatch,
    #[error("write to the store: {0}")]
    Store(#[from] StoreError),
    #[error("convert: the server is stopping")]
    Cancelled,
    #[error("convert within the time limit")]
    TimedOut,
    #[error("convert: other conversions have all the memory (ingest.memory_bytes_max)")]
    NoMemory,
    #[error("compress a chunk: {0}")]
    Compress(io::Error),
    #[error("start a conversion thread: {0}")]
    Threads(io::Error),
    #[error("convert: a worker thread ended")]
    WorkerGone,
}

impl Refusal {
    /// Records it of the layer, which was given so much; the reason as it is told.
    pub fn record(&self, store: &Store, layer: &BlobDigest, allowance: &Allowance) -> Result<String, StoreError> {
        let reason = self.to_string();
        let terms = match self {
            Self::OverTime { .. } => Terms::over_time(allowance, now_ms()),
            Self::OverBudget { limit, .. } => Terms::over_bound(allowance, *limit),
            _ => Terms::default(),
        };
        store.refuse_layer_on(layer, &reason, terms)?;
        Ok(reason)
    }

    /// For metrics: a bound, time, the stream, the tar, a path in it, or what the format cannot say.
    pub fn label(&self) -> &'static str {
        match self {
            Self::OverBudget {
                limit: Limit::Memory, ..
            } => "memory",
            Self::OverBudget { .. } => "bound",
            Self::OverTime { .. } => "time",
            Self::Decompress(_) => "stream",
            Self::Tar(_) | Self::TarTruncated => "tar",
            Self::Path(_) => "path",
            Self::EntryType(_) | Self::Toc(_) => "format",
        }
    }
}

impl ConvertError {
    /// For a `Read` that must hand it through a decoder.
    pub fn into_io(self) -> io::Error {
        io::Error::other(self)
    }

    /// The other way: what did not come from [`ConvertError::into_io`] is the decoder's own complaint.
    pub fn from_io(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => ours,
            Err(theirs) => Refusal::Decompress(theirs.to_string()).into(),
        }
    }
}

impl From<Failure> for ConvertError {
    fn from(failure: Failure) -> Self {
        match failure {
            // It would drive every other layer out, at every try.
            Failure::Store(StoreError::LayerOverBudget { bytes_max }) => Self::Refused(Refusal::OverBudget {
                limit: Limit::ChunksBytes,
                what: "bytes of chunks, half of cache.chunks_bytes_max",
                max: bytes_max,
            }),
            failure => Self::Failed(failure),
        }
    }
}

impl From<TocError> for ConvertError {
    fn from(error: TocError) -> Self {
        Self::Refused(Refusal::Toc(error))
    }
}

impl From<StoreError> for ConvertError {
    fn from(error: StoreError) -> Self {
        match error {
            // Over a limit of the format: a property of the layer.
            StoreError::Toc(toc) => toc.into(),
            other => Failure::Store(other).into(),
        }
    }
}

/// Shorthand of the scanner.
pub(super) fn malformed(what: &'static str) -> ConvertError {
    Refusal::Tar(what).into()
}
