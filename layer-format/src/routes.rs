//! Paths, headers and media types of our own endpoints.
//!
//! In: digests. Out: paths relative to a server's base URL, and header names.
//! Invariant: everything of ours lives under [`PREFIX`], with the version in the path; `/v2/` is the registry's.
//! Not here: handlers, and the shapes of bodies ([`crate::api`], [`crate::chunk_stream`], [`crate::toc`]).

use crate::digest::{BlobDigest, ChainId};

/// Every route of ours starts with this.
pub const PREFIX: &str = "/headstart/v1";

/// Route templates in the syntax of axum 0.8.
pub const IMAGE_TEMPLATE: &str = "/headstart/v1/images/{manifest_digest}";
pub const LAYER_TOC_TEMPLATE: &str = "/headstart/v1/layers/{layer_digest}/toc";
pub const LAYER_DATA_TEMPLATE: &str = "/headstart/v1/layers/{layer_digest}/data";
pub const TRACE_TEMPLATE: &str = "/headstart/v1/images/{manifest_digest}/trace";
pub const CHUNKS: &str = "/headstart/v1/chunks";
pub const CHAIN_TEMPLATE: &str = "/headstart/v1/chains/{chain_id}";
pub const METRICS: &str = "/metrics";
pub const HEALTHZ: &str = "/healthz";
pub const READYZ: &str = "/readyz";

/// `GET`: state of every layer of an image ([`crate::api::ImageStatus`]).
pub fn image(manifest: &BlobDigest) -> String {
    format!("{PREFIX}/images/{manifest}")
}

/// `POST`: what a start of the image read ([`crate::profile::Trace`]).
pub fn trace(manifest: &BlobDigest) -> String {
    format!("{PREFIX}/images/{manifest}/trace")
}

/// `GET`: the TOC. Binary, or JSON by `Accept`; waits up to `?wait_ms=`.
pub fn layer_toc(layer: &BlobDigest) -> String {
    format!("{PREFIX}/layers/{layer}/toc")
}

/// `GET`, `HEAD`: the seekable blob, with `Range`.
pub fn layer_data(layer: &BlobDigest) -> String {
    format!("{PREFIX}/layers/{layer}/data")
}

/// `GET`: chain ID to layer ([`crate::api::ChainStatus`]).
pub fn chain(chain: &ChainId) -> String {
    format!("{PREFIX}/chains/{chain}")
}

/// Query parameter of `toc` and `images`: how long the server may wait, in milliseconds.
pub const WAIT_MS_QUERY: &str = "wait_ms";

/// Query parameter of `chains`, `true`: with the status of the latest image.
pub const IMAGE_QUERY: &str = "image";
/// Query parameter of `images`: what kind of start is meant ([`crate::profile::Class`]).
pub const CLASS_QUERY: &str = "class";
/// Query parameter of `images`: the digest of the profile that the client has.
pub const PROFILE_QUERY: &str = "profile";

/// Media type of the binary TOC.
pub const TOC_MEDIA_TYPE: &str = "application/vnd.headstart.toc.v1";
/// Media type of a run of chunk frames.
pub const SEEKABLE_BLOB_MEDIA_TYPE: &str = "application/vnd.headstart.seekable-blob.v1";
/// Media type of the body that `POST chunks` answers with.
pub const CHUNK_STREAM_MEDIA_TYPE: &str = "application/vnd.headstart.chunk-stream.v1";

/// Response header of `readyz`: the version of the server's program.
pub const VERSION_HEADER: &str = "headstart-version";
/// Response header of `toc` (binary) and `data`: digest of the encoded TOC that describes these bytes.
pub const TOC_DIGEST_HEADER: &str = "headstart-toc-digest";
