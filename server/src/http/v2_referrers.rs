//! `/v2/<name>/referrers/<digest>`
//!
//! In: a repository and a digest. Out: what refers to it.
//! Not here: manifests.

use axum::response::Response;
use headstart_layer_format::{BlobDigest, DigestError};
use http::StatusCode;

use super::{
    error::{ApiError, OciCode},
    v2::{Asking, Probe},
};

impl Asking<'_> {
    pub(super) async fn referrers(&self, name: &str, digest: &str) -> Result<Response, ApiError> {
        let _: BlobDigest = digest
            .parse()
            .map_err(|e: DigestError| ApiError::new(OciCode::DigestInvalid, e.to_string()))?;
        self.enter(name, Probe::Repository).await?;
        let error = ApiError::new(OciCode::Unsupported, "this mirror does not list referrers");
        Err(error.with_status(StatusCode::NOT_FOUND))
    }
}
