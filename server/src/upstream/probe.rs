//! Whether somebody may read a repository.
//!
//! In: a repository, on whose behalf, and something in it. Out: yes, or the upstream's error.
//! Invariant: no body is read. A yes says that the caller may read the repository and that what was asked for is there;
//! a 200 that could be anybody's (a login page, a captive portal) is none. Nor is a redirect: gateways send whoever shows no
//! credentials to a login. What is led away to must show what a registry or a store of blobs shows, and no sooner is it a
//! yes. Of a blob that is the answer to a GET of one byte, since links are often signed for GET alone.
//! Not here: remembering the answer (`access/proofs.rs`).

use headstart_layer_format::BlobDigest;
use http::{HeaderMap, Method, StatusCode};

use super::{
    Caller, Reference, Upstream, UpstreamError,
    answer::{ContentRange, accept_headers, content_digest, media_type},
    site::Ask,
};
use crate::{access::Probe, read::document::MANIFEST_TYPES};

/// Whoever was led to a page where something of a registry was to be was told to log in.
const TOLD_TO_LOG_IN: UpstreamError = UpstreamError::Denied { status: 401 };
const NOT_A_REGISTRYS: UpstreamError = UpstreamError::BadAnswer("a success that is not a registry's");

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
        let answer = self.fetch(&ask).await?;
        if self.is_own(&answer) {
            return is_a_registrys(answer.head(), probe);
        }
        let Probe::Blob(digest) = probe else {
            return shows_a_registry(answer.head(), probe);
        };
        drop(answer);
        let byte = Some("bytes=0-0".to_owned());
        match self.blob_part(repository, caller, digest, byte).await {
            Ok(answer) => shows_a_blob(answer.status(), answer.head()),
            // Elsewhere, or it would be a refusal already: whoever holds the login says what is missing.
            Err(UpstreamError::Status(401)) => Err(TOLD_TO_LOG_IN),
            Err(error) => Err(error),
        }
    }
}

fn is_page(head: &HeaderMap) -> bool {
    let is_page = |kind: String| {
        let kind = kind.to_ascii_lowercase();
        matches!(kind.as_str(), "text/html" | "application/xhtml+xml")
    };
    media_type(head).is_some_and(is_page)
}

/// Whether an answer from elsewhere to a GET of the first byte is that of a store of blobs: it honours ranges, or says that
/// what it gives is bytes. Its word for the size is not compared: whoever asks chooses the digest, also one of which the size
/// is not known here.
fn shows_a_blob(status: StatusCode, head: &HeaderMap) -> Result<(), UpstreamError> {
    if is_page(head) {
        return Err(TOLD_TO_LOG_IN);
    }
    let is_bytes = |kind: String| {
        let kind = kind.to_ascii_lowercase();
        ["octet-stream", "gzip", "zstd", "tar"]
            .iter()
            .any(|part| kind.contains(part))
            || kind.starts_with("application/vnd.oci.image.")
            || kind.starts_with("application/vnd.docker.")
    };
    match (status, ContentRange::from_headers(head)) {
        (StatusCode::PARTIAL_CONTENT, Some(ContentRange::Part { first: 0, last: 0, .. })) => Ok(()),
        (StatusCode::OK, _) if media_type(head).is_some_and(is_bytes) => Ok(()),
        _ => Err(NOT_A_REGISTRYS),
    }
}

/// Whether an answer from elsewhere is that of a registry, to which some registries lead for everything.
fn shows_a_registry(head: &HeaderMap, probe: &Probe) -> Result<(), UpstreamError> {
    if is_page(head) {
        return Err(TOLD_TO_LOG_IN);
    }
    is_a_registrys(head, probe)?;
    let is_manifest = |kind: String| MANIFEST_TYPES.contains(&kind.as_str());
    let shows = head.contains_key("docker-distribution-api-version")
        || head.contains_key("docker-content-digest")
        || (matches!(probe, Probe::Manifest(_)) && media_type(head).is_some_and(is_manifest));
    if shows { Ok(()) } else { Err(NOT_A_REGISTRYS) }
}

/// Whether a head of success is that of a registry with what was asked for.
fn is_a_registrys(head: &HeaderMap, probe: &Probe) -> Result<(), UpstreamError> {
    let wrong = Err(NOT_A_REGISTRYS);
    if is_page(head) {
        return wrong;
    }
    // A registry may name it by another algorithm.
    let is_other = |asked: &BlobDigest, said: &BlobDigest| {
        std::mem::discriminant(asked) == std::mem::discriminant(said) && asked != said
    };
    match (probe, content_digest(head)?) {
        (Probe::Manifest(Reference::Digest(asked)), Some(said)) if is_other(asked, &said) => wrong,
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_login_page_is_no_right() {
        let head = |lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.insert(*name, HeaderValue::from_str(value).unwrap());
            }
            headers
        };
        let (one, other) = (BlobDigest::of(b"one"), BlobDigest::of(b"other"));
        let manifest = Probe::Manifest(Reference::Digest(one));
        let said = |digest: &BlobDigest| head(&[("docker-content-digest", &digest.to_string())]);
        for probe in [&manifest, &Probe::Blob(one), &Probe::Repository] {
            assert!(is_a_registrys(&head(&[]), probe).is_ok());
            assert!(is_a_registrys(&said(&one), probe).is_ok());
            let page = head(&[("content-type", "text/html; charset=utf-8")]);
            assert!(is_a_registrys(&page, probe).is_err(), "{probe:?}");
        }
        assert!(is_a_registrys(&said(&other), &manifest).is_err());
        // Elsewhere nothing is a yes of itself.
        for probe in [&manifest, &Probe::Repository] {
            let json = head(&[("content-type", "application/json")]);
            assert_eq!(shows_a_registry(&head(&[]), probe), Err(NOT_A_REGISTRYS));
            assert_eq!(shows_a_registry(&json, probe), Err(NOT_A_REGISTRYS));
            let page = head(&[
                ("content-type", "Text/HTML"),
                ("docker-distribution-api-version", "registry/2.0"),
            ]);
            assert_eq!(shows_a_registry(&page, probe), Err(TOLD_TO_LOG_IN));
            assert_eq!(shows_a_registry(&said(&one), probe), Ok(()));
        }
        let kind = head(&[("content-type", MANIFEST_TYPES[0])]);
        assert_eq!(shows_a_registry(&kind, &manifest), Ok(()));
        let longer = format!("sha512:{}", "a".repeat(128)).parse().unwrap();
        assert!(is_a_registrys(&said(&longer), &manifest).is_ok());
    }

    #[test]
    fn a_store_of_blobs_honours_ranges_or_gives_bytes() {
        let shows = |status: u16, range: Option<&str>, kind: Option<&str>| {
            let mut head = HeaderMap::new();
            let lines = [("content-range", range), ("content-type", kind)];
            for (name, value) in lines.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                head.insert(name, HeaderValue::from_str(value).unwrap());
            }
            shows_a_blob(StatusCode::from_u16(status).unwrap(), &head)
        };
        let (range, octets) = (Some("bytes 0-0/10"), Some("binary/octet-stream"));
        for (status, range, kind, want) in [
            (206, range, octets, Ok(())),
            (206, range, None, Ok(())),
            (206, range, Some("text/html; charset=utf-8"), Err(TOLD_TO_LOG_IN)),
            (206, Some("bytes 0-9/10"), octets, Err(NOT_A_REGISTRYS)),
            (206, None, octets, Err(NOT_A_REGISTRYS)),
            (200, None, octets, Ok(())),
            (200, None, Some("application/vnd.oci.image.layer.v1.tar+gzip"), Ok(())),
            (200, None, Some("Text/Html"), Err(TOLD_TO_LOG_IN)),
            (200, None, Some("application/json"), Err(NOT_A_REGISTRYS)),
            (200, None, None, Err(NOT_A_REGISTRYS)),
            (416, Some("bytes */0"), octets, Err(NOT_A_REGISTRYS)),
        ] {
            assert_eq!(shows(status, range, kind), want, "{status} {range:?} {kind:?}");
        }
    }
}
