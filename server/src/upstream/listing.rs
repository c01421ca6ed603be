//! Lists of one repository at its upstream: tags, and referrers of a digest.
//!
//! In: a repository, and where to begin. Out: what the upstream lists, over as many of its pages as it takes.
//! Invariant: at most [`PAGES_MAX`] pages of [`PAGE_SIZE_MAX`] bytes and so many entries are read at once, and what follows
//! them is said. Of a `Link` only the query counts: it is asked for where the page was, so nothing an upstream says leads us
//! or our credentials elsewhere, and one behind a proxy may take itself for another. A link to another list ends this one.
//! Not here: caching, sorting and filtering (`read/tags.rs`, `read/referrers.rs`).
//!
//! OCI distribution-spec, "Listing Tags", "Listing Referrers".

use bytes::Bytes;
use headstart_layer_format::BlobDigest;
use http::{HeaderMap, HeaderValue, header};
use reqwest::Url;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Caller, Tag, Upstream, UpstreamError};

/// Pages followed for one list.
const PAGES_MAX: usize = 64;

/// Bytes of one page: a thousand tags of 128 bytes are an eighth of a MiB, a thousand descriptors with annotations one.
const PAGE_SIZE_MAX: u64 = 4 << 20;

/// Entries asked for at once: the largest number that the distribution project's registry allows by default.
const PAGE_ENTRIES: usize = 1000;

/// Tags read for one list; its rest is read when somebody asks for it.
const TAGS_MAX: usize = 65_536;

/// Referrers in one answer of ours.
const REFERRERS_MAX: usize = 4096;

/// Bytes of the pages of one list of referrers, whose annotations have any size: what the specification wants a client to
/// take in one answer, which ours is.
const REFERRERS_BYTES_MAX: usize = 4 << 20;

/// Longest `Link` header looked at.
const LINK_LEN_MAX: usize = 4096;

/// Longest query of a link that clients are given to come back with.
pub const AFTER_LEN_MAX: usize = 1024;

const OCI_INDEX: HeaderValue = HeaderValue::from_static("application/vnd.oci.image.index.v1+json");

/// Tags in the upstream's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagPage {
    pub tags: Vec<String>,
    /// The upstream has more than we read.
    pub more: bool,
}

#[derive(Deserialize)]
struct TagsBody {
    /// Registries say `null` for none.
    tags: Option<Vec<String>>,
}

/// Descriptors of manifests, as the upstream wrote them.
pub type Descriptor = serde_json::Map<String, serde_json::Value>;

/// What refers to a digest, as far as it fits into one answer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Referring {
    pub descriptors: Vec<Descriptor>,
    /// As JSON.
    pub bytes: usize,
    pub rest: Rest,
}

/// What follows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rest {
    #[default]
    Nothing,
    /// The upstream's query for more.
    After(String),
    /// More, to which there is no way.
    Lost,
}

/// What a page says of the next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    None,
    Page(Url),
    /// It is not a page of this list.
    Elsewhere,
}

impl Referring {
    /// A page more, if all of it fits.
    fn add(&mut self, page: Vec<Descriptor>) -> bool {
        let (entries, bytes) = (self.descriptors.len(), self.bytes);
        let fits = self.take(page);
        if !fits {
            self.descriptors.truncate(entries);
            self.bytes = bytes;
        }
        fits
    }

    /// The first of them, up to the limits; and whether that is all.
    pub fn take(&mut self, descriptors: impl IntoIterator<Item = Descriptor>) -> bool {
        for descriptor in descriptors {
            let bytes = serde_json::to_vec(&descriptor).map_or(0, |json| json.len()) + 1;
            if self.descriptors.len() >= REFERRERS_MAX || self.bytes + bytes > REFERRERS_BYTES_MAX {
                return false;
            }
            self.bytes += bytes;
            self.descriptors.push(descriptor);
        }
        true
    }
}

#[derive(Deserialize)]
struct IndexBody {
    manifests: Option<Vec<Descriptor>>,
}

impl Upstream {
    /// The tags after `last`, from the first without.
    pub async fn tags(&self, repository: &str, caller: &Caller, last: Option<&str>) -> Result<TagPage, UpstreamError> {
        let first = |entries: Option<usize>| {
            let mut url = self.url(repository, "tags", "list");
            if let Some(entries) = entries {
                url.query_pairs_mut().append_pair("n", &entries.to_string());
            }
            if let Some(last) = last {
                url.query_pairs_mut().append_pair("last", last);
            }
            url
        };
        let mut page = TagPage::default();
        let mut next = Some(first(Some(PAGE_ENTRIES)));
        for number in 0..PAGES_MAX {
            let Some(url) = next.take() else { break };
            let answer = self.page::<TagsBody>(repository, caller, &url, HeaderMap::new()).await;
            let (body, link) = match answer {
                // A registry that thinks this is too much at once.
                Err(UpstreamError::Status(400)) if number == 0 => {
                    let url = first(None);
                    self.page(repository, caller, &url, HeaderMap::new()).await?
                }
                answer => answer?,
            };
            // What is no tag cannot be asked for.
            let tags = body.tags.unwrap_or_default().into_iter();
            page.tags.extend(tags.filter(|tag| tag.parse::<Tag>().is_ok()));
            next = match link {
                Next::None => None,
                Next::Page(url) => Some(url),
                // What follows can still be asked for by the last tag.
                Next::Elsewhere => {
                    page.more = true;
                    return Ok(page);
                }
            };
            if page.tags.len() >= TAGS_MAX {
                break;
            }
        }
        page.more = next.is_some();
        Ok(page)
    }

    /// What refers to `digest`, from the first or after what an earlier answer said; `None` if the upstream has no such
    /// list.
    pub async fn referrers(
        &self,
        repository: &str,
        caller: &Caller,
        digest: &BlobDigest,
        after: Option<&str>,
    ) -> Result<Option<Referring>, UpstreamError> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, OCI_INDEX);
        let mut all = Referring::default();
        let mut url = self.url(repository, "referrers", &digest.to_string());
        url.set_query(after);
        for number in 0..PAGES_MAX {
            let (body, link) = match self.page::<IndexBody>(repository, caller, &url, headers.clone()).await {
                // 404: it has no such API, or no such repository. Others do not know the path, or the method on it.
                Err(UpstreamError::NotFound { .. } | UpstreamError::Status(400 | 405 | 501)) if number == 0 => {
                    return Ok(None);
                }
                answer => answer?,
            };
            let page = body.manifests.unwrap_or_default();
            if number == 0 {
                if !all.take(page) {
                    tracing::warn!(upstream = self.name(), repository, %digest, "too many referrers; the rest is left out");
                    all.rest = Rest::Lost;
                    return Ok(Some(all));
                }
            } else if !all.add(page) {
                // It begins the answer to whoever goes on from here.
                break;
            }
            url = match link {
                Next::None => return Ok(Some(all)),
                Next::Page(next) => next,
                Next::Elsewhere => {
                    tracing::warn!(upstream = self.name(), repository, %digest, "a list of referrers leads elsewhere");
                    all.rest = Rest::Lost;
                    return Ok(Some(all));
                }
            };
        }
        all.rest = match url.query() {
            Some(query) if query.len() <= AFTER_LEN_MAX => Rest::After(query.to_owned()),
            _ => Rest::Lost,
        };
        Ok(Some(all))
    }

    async fn page<T: DeserializeOwned>(
        &self,
        repository: &str,
        caller: &Caller,
        url: &Url,
        headers: HeaderMap,
    ) -> Result<(T, Next), UpstreamError> {
        let (headers, body): (HeaderMap, Bytes) = self
            .get_small(repository, caller, url.clone(), headers, PAGE_SIZE_MAX)
            .await?;
        let body = serde_json::from_slice(&body).map_err(|_| UpstreamError::BadAnswer("a list that is not JSON"))?;
        // The path below `/v2/`, which a proxy may have put elsewhere.
        let own = self.own_path(url).unwrap_or_default();
        Ok((body, next_page(&headers, url, own)))
    }
}

/// The target of `Link: <...>; rel="next"`, seen from the page it is on, whose path ends with `own`; a link to the page
/// itself is none.
fn next_page(headers: &HeaderMap, page: &Url, own: &str) -> Next {
    let Some(target) = link(headers) else {
        return Next::None;
    };
    let Ok(target) = page.join(&target) else {
        return Next::Elsewhere;
    };
    if !target.path().ends_with(&format!("/v2/{own}")) {
        return Next::Elsewhere;
    }
    let mut next = page.clone();
    next.set_query(target.query());
    match next == *page {
        true => Next::None,
        false => Next::Page(next),
    }
}

fn link(headers: &HeaderMap) -> Option<String> {
    let links = headers.get_all(header::LINK).iter().filter_map(|v| v.to_str().ok());
    let mut links = links.filter(|v| v.len() <= LINK_LEN_MAX).flat_map(|v| v.split(", <"));
    links.find_map(|link| {
        let (target, parameters) = link.trim().trim_start_matches('<').split_once('>')?;
        let is_next = parameters.split(';').any(|p| {
            let p = p.trim().replace('"', "");
            p.eq_ignore_ascii_case("rel=next")
        });
        is_next.then(|| target.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn referrers_end_at_a_number_and_at_a_size() {
        let descriptor = |len: usize| Descriptor::from_iter([("annotation".to_owned(), "x".repeat(len).into())]);
        let mut many = Referring::default();
        assert!(!many.take((0..5000).map(|_| descriptor(1))));
        assert_eq!(many.descriptors.len(), REFERRERS_MAX);
        let mut large = Referring::default();
        assert!(large.take([descriptor(3 << 20)]));
        assert!(!large.take([descriptor(2 << 20), descriptor(1)]));
        assert_eq!(large.descriptors.len(), 1);
        assert!((3 << 20..REFERRERS_BYTES_MAX).contains(&large.bytes));
    }

    #[test]
    fn links_are_resolved_against_their_page() {
        let page: Url = "http://h/mirror/v2/a/tags/list?n=2".parse().unwrap();
        let of = |link: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::LINK, HeaderValue::from_str(link).unwrap());
            match next_page(&headers, &page, "a/tags/list") {
                Next::None => None,
                Next::Page(url) => Some(url.to_string()),
                Next::Elsewhere => Some("elsewhere".into()),
            }
        };
        for (link, want) in [
            (
                "</mirror/v2/a/tags/list?n=2&last=b>; rel=\"next\"",
                Some("http://h/mirror/v2/a/tags/list?n=2&last=b"),
            ),
            ("<list?last=b>; rel=next", Some("http://h/mirror/v2/a/tags/list?last=b")),
            (
                "<http://h/x>; rel=\"prev\", <?last=c>; foo=1; rel=\"next\"",
                Some("http://h/mirror/v2/a/tags/list?last=c"),
            ),
            ("</x>; rel=\"prev\"", None),
            ("<list?n=2>; rel=\"next\"", None),
            ("nonsense", None),
            // A proxy's work: the registry takes itself for another. It is asked where it was asked before.
            (
                "<https://user:pw@other:1/v2/a/tags/list?last=c>; rel=next",
                Some("http://h/mirror/v2/a/tags/list?last=c"),
            ),
            ("<//169.254.169.254/latest?last=c>; rel=next", Some("elsewhere")),
            ("</v2/ba/tags/list?last=c>; rel=next", Some("elsewhere")),
            ("<http://[>; rel=next", Some("elsewhere")),
        ] {
            assert_eq!(of(link).as_deref(), want, "{link}");
        }
    }
}
