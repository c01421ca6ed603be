//! `/v2/<name>/tags/list`
//!
//! In: a repository. Out: its tags.
//! Not here: manifests.

use axum::response::Response;
use http::StatusCode;

use super::{
    error::{ApiError, OciCode},
    v2::{Asking, Probe},
};

impl Asking<'_> {
    pub(super) async fn tags(&self, name: &str) -> Result<Response, ApiError> {
        self.enter(name, Probe::Repository).await?;
        let error = ApiError::new(OciCode::Unsupported, "this mirror does not list tags");
        Err(error.with_status(StatusCode::NOT_FOUND))
    }
}
