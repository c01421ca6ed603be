//! Whether somebody may read a repository.
//!
//! In: a repository, on whose behalf, and something in it. Out: yes, or the upstream's error.
//! Invariant: no body is read, and nothing but the status counts: a yes says that the caller may read the repository and
//! that what was asked for is there.
//! Not here: remembering the answer (`access/proofs.rs`).

use http::{HeaderMap, Method};

use super::{Caller, Upstream, UpstreamError, answer::accept_headers, site::Ask};
use crate::access::Probe;

impl Upstream {
    pub async fn probe(&self, repository: &str, caller: &Caller, probe: &Probe) -> Result<(), UpstreamError> {
        let (method, path, headers) = match probe {
            Probe::Manifest(reference) => (
                Method::HEAD,
                format!("{repository}/manifests/{reference}"),
                accept_headers(&[]),
            ),
            Probe::Blob(digest) => (Method::HEAD, format!("{repository}/blobs/{digest}"), HeaderMap::new()),
            // HEAD is not defined here.
            Probe::Repository => (Method::GET, format!("{repository}/tags/list"), HeaderMap::new()),
        };
        let mut ask = Ask::new(method, repository, caller, path).with(headers);
        if *probe == Probe::Repository {
            ask.query = Some("n=1".into());
        }
        self.fetch(&ask).await.map(drop)
    }
}
