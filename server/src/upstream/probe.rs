//! Whether somebody may read a repository.
//!
//! In: a repository, on whose behalf, and something in it. Out: yes, or the upstream's error.
//! Invariant: no body is read. A yes says that the caller may read the repository and that what was asked for is there;
//! a 200 that could be anybody's (a login page, a captive portal) is none.
//! Not here: remembering the answer (`access/proofs.rs`).

use headstart_layer_format::BlobDigest;
use http::{HeaderMap, Method};

use super::{
    Caller, Reference, Upstream, UpstreamError,
    answer::{accept_headers, content_digest, media_type},
    site::Ask,
};
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
        let answer = self.fetch(&ask).await?;
        match probe {
            // The registry said yes by leading there, whatever is there then.
            Probe::Blob(_) if !self.is_own(&answer) => Ok(()),
            _ => is_a_registrys(answer.head(), probe),
        }
    }
}

/// Whether a head of success is that of a registry with what was asked for.
fn is_a_registrys(head: &HeaderMap, probe: &Probe) -> Result<(), UpstreamError> {
    let wrong = Err(UpstreamError::BadAnswer("a success that is not a registry's"));
    let is_page = |kind: String| matches!(kind.as_str(), "text/html" | "application/xhtml+xml");
    if media_type(head).is_some_and(is_page) {
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
        let longer = format!("sha512:{}", "a".repeat(128)).parse().unwrap();
        assert!(is_a_registrys(&said(&longer), &manifest).is_ok());
    }
}
