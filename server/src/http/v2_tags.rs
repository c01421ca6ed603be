//! `/v2/<name>/tags/list?n=&last=`
//!
//! In: a repository, how many tags, and after which. Out: the tags, ascending, and a `Link` to those that follow.
//! Invariant: an answer has at most [`TAGS_MAX`] tags, whatever `n` says (CVE-2023-2253: a registry allocated what `n`
//! asked for). The link is relative and keeps the path as the client wrote it, and `ns`: it leads back through this
//! mirror to the same upstream.
//! `last` is of any length, and counts for its first 128 bytes.
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

/// A tag has no more bytes than this.
const TAG_LEN_MAX: usize = 128;

/// Tags in one answer: ten times what the distribution project's registry gives at most.
const TAGS_MAX: usize = 10_000;

impl Asking<'_> {
    pub(super) async fn tags(&self, name: &str, query: &V2Query) -> Result<Response, ApiError> {
        let (route, caller) = self.enter(name, Probe::Repository).await?;
        let count = count(query.n.as_deref())?;
        let last = query.last.as_deref().filter(|last| !last.is_empty()).map(place);
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

/// `last`, without what can be no part of a tag's place: what is no tag is a place, too, of any length, and is kept. No tag
/// sorts between what is left and the whole.
fn place(last: &str) -> &str {
    &last[..last.ceil_char_boundary(TAG_LEN_MAX)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_as_long_as_a_tag_and_sorts_as_the_whole_does() {
        let long = |text: &str, len: usize| text.repeat(len);
        let tags = [
            long("a", 127),
            long("a", 128),
            long("a", 127) + "b",
            long("a", 10),
            "b".into(),
        ];
        for last in [
            long("a", 127),
            long("a", 128),
            long("a", 129),
            long("a", 70_000),
            long("a", 127) + "\u{e9}",
            long("a", 126) + "\u{1f600}x",
            long("a", 127) + "~~",
            "b".into(),
            "\u{e9}".repeat(500),
        ] {
            let place = place(&last);
            assert!(place.len() < TAG_LEN_MAX + 4);
            for tag in &tags {
                assert_eq!(tag.as_str() <= place, *tag <= last, "{tag} {last}");
            }
        }
    }
}
