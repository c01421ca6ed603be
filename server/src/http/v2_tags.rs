//! `/v2/<name>/tags/list?n=&last=`
//!
//! In: a repository, how many tags, and after which. Out: the tags, ascending, and a `Link` to those that follow.
//! Invariant: an answer has at most [`TAGS_MAX`] tags, whatever `n` says (CVE-2023-2253: a registry allocated what `n`
//! asked for). The link is relative and keeps the path as the client wrote it, and `ns`: it leads back through this
//! mirror to the same upstream.
//! Not here: where tags come from ([`crate::read::tags`]).
//!
//! OCI distribution-spec, "Listing Tags".

use axum::response::Response;
use http::{HeaderMap, HeaderValue, header};
use serde_json::json;

use super::{
    error::{ApiError, Asked, OciCode},
    v2::{Asking, V2Query, WARNING_PARTIAL, WARNING_STALE},
    v2_listing::link,
};
use crate::{access::Probe, read::tags::How};

/// Tags in one answer: ten times what the distribution project's registry gives at most.
const TAGS_MAX: usize = 10_000;

impl Asking<'_> {
    pub(super) async fn tags(&self, name: &str, query: &V2Query) -> Result<Response, ApiError> {
        let (route, caller) = self.enter(name, Probe::Repository).await?;
        let count = count(query.n.as_deref())?;
        let last = query.last.as_deref().filter(|last| !last.is_empty());
        let listed = self.app.tags.get(self.by, &route.source, &caller, last).await;
        let listed = listed.map_err(|error| ApiError::from_read(Asked::Repository, &error))?;
        let all = &listed.list.tags;
        let from = last.map_or(0, |last| all.partition_point(|tag| tag.as_str() <= last));
        let to = all.len().min(from.saturating_add(count));
        let tags = &all[from..to];
        let mut headers = HeaderMap::new();
        // No link without a tag to go on from, nor from an empty answer that was asked for.
        if let Some(end) = tags.last()
            && (to < all.len() || listed.list.more)
        {
            let queries = [
                ("last", Some(end.as_str())),
                ("n", query.n.as_deref()),
                ("ns", query.ns.as_deref()),
            ];
            headers.insert(header::LINK, link(&format!("/v2/{name}/tags/list"), &queries)?);
        }
        match listed.how {
            How::Fresh => None,
            How::Stale => headers.insert(header::WARNING, WARNING_STALE),
            How::Partial => headers.insert(header::WARNING, WARNING_PARTIAL),
        };
        let json = json!({ "name": name, "tags": tags });
        Ok(self.listing(HeaderValue::from_static("application/json"), &json, headers))
    }
}

/// `n`: digits. More digits than a number has are a large number.
fn count(n: Option<&str>) -> Result<usize, ApiError> {
    match n {
        None => Ok(TAGS_MAX),
        Some(n) if !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
            Ok(n.parse().unwrap_or(TAGS_MAX).min(TAGS_MAX))
        }
        Some(_) => Err(ApiError::new(
            OciCode::PaginationNumberInvalid,
            "n is the number of tags wanted",
        )),
    }
}
