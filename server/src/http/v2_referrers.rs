//! `/v2/<name>/referrers/<digest>?artifactType=&last=`
//!
//! In: a repository, a digest, and maybe an artifact type. Out: an image index of what refers to it, and a `Link` to what
//! does not fit into it.
//! Invariant: 200 with an index whenever the digest is one, empty if nothing refers to it: clients take a 404 for "no
//! such API" and look for the fallback tag themselves. Filtering is ours, and said so in `OCI-Filters-Applied`; it is done
//! page by page. A list that is not all, and cannot be linked on from, says so in a `Warning`.
//! Not here: where the list comes from ([`crate::read::referrers`]).
//!
//! OCI distribution-spec, "Listing Referrers".

use axum::response::Response;
use headstart_layer_format::{BlobDigest, DigestError};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde_json::json;

use super::{
    error::{ApiError, Asked, OciCode},
    v2::{Asking, V2Query, WARNING_STALE, WARNING_TRUNCATED},
    v2_listing::link,
};
use crate::{
    access::Probe,
    upstream::{AFTER_LEN_MAX, Rest},
};

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Asking<'_> {
    pub(super) async fn referrers(&self, name: &str, digest: &str, query: &V2Query) -> Result<Response, ApiError> {
        let digest: BlobDigest = digest
            .parse()
            .map_err(|e: DigestError| ApiError::new(OciCode::DigestInvalid, e.to_string()))?;
        let (route, caller) = self.enter(name, Probe::Repository).await?;
        let after = query.last.as_deref().filter(|last| !last.is_empty());
        if after.is_some_and(|after| after.len() > AFTER_LEN_MAX) {
            let code = OciCode::PaginationNumberInvalid;
            return Err(ApiError::new(code, "last is not what a link of ours says"));
        }
        let found = self.app.referrers.get(self.by, &route.source, &caller, &digest, after);
        let found = found.await;
        let (found, stale) = found.map_err(|error| ApiError::from_read(Asked::Repository, &error))?;
        let mut headers = HeaderMap::new();
        // A media type has no blank: it was a `+`, which a query means to be one.
        let wanted = query.artifact_type.as_ref().filter(|kind| !kind.is_empty());
        let wanted = wanted.map(|kind| kind.replace(' ', "+"));
        if wanted.is_some() {
            headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        }
        if stale {
            headers.append(header::WARNING, WARNING_STALE);
        }
        match &found.rest {
            Rest::Nothing => {}
            Rest::After(after) => {
                let path = format!("/v2/{name}/referrers/{digest}");
                let queries = [
                    ("last", Some(after.as_str())),
                    ("artifactType", wanted.as_deref()),
                    ("ns", query.ns.as_deref()),
                ];
                headers.insert(header::LINK, link(&path, &queries)?);
            }
            Rest::Lost => {
                headers.append(header::WARNING, WARNING_TRUNCATED);
            }
        }
        let manifests: Vec<_> = found
            .descriptors
            .iter()
            .filter(|descriptor| {
                let kind = descriptor.get("artifactType").and_then(|kind| kind.as_str());
                wanted.as_deref().is_none_or(|wanted| kind == Some(wanted))
            })
            .collect();
        let json = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        Ok(self.listing(HeaderValue::from_static(OCI_INDEX), &json, headers))
    }
}
