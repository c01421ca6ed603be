//! Where an original blob may be had: a registry's name and a repository in it.
//!
//! In: an image reference, as containerd writes it in a label. Out: [`BlobSource`]. Invariant: both parts are well formed,
//! so they are safe in a URL's path and (the registry) as a file name.
//! Not here: which hosts speak for that registry (`hosts_file.rs`).

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest reference: what a containerd label can hold.
const REFERENCE_LEN_MAX: usize = 4096;
/// Longest name of a repository, as the distribution specification has it.
const REPOSITORY_LEN_MAX: usize = 255;
/// A DNS name and a port.
const REGISTRY_LEN_MAX: usize = 253 + 6;
const DOCKER_HUB: &str = "docker.io";

/// One registry's repository.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Parts")]
pub struct BlobSource {
    registry: String,
    repository: String,
}

#[derive(Deserialize)]
struct Parts {
    registry: String,
    repository: String,
}

/// Not the name of an image in a registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a reference is registry/repository:tag")]
pub struct BadReference;

impl TryFrom<Parts> for BlobSource {
    type Error = BadReference;

    fn try_from(parts: Parts) -> Result<Self, BadReference> {
        Self::new(parts.registry, parts.repository)
    }
}

impl BlobSource {
    fn new(registry: String, repository: String) -> Result<Self, BadReference> {
        if is_registry(&registry) && is_repository(&repository) {
            Ok(Self { registry, repository })
        } else {
            Err(BadReference)
        }
    }

    /// As in the reference: `docker.io`, `r.example:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    pub fn repository(&self) -> &str {
        &self.repository
    }
}

impl FromStr for BlobSource {
    type Err = BadReference;

    fn from_str(reference: &str) -> Result<Self, BadReference> {
        if reference.len() > REFERENCE_LEN_MAX {
            return Err(BadReference);
        }
        let name = reference.split('@').next().unwrap_or_default();
        let (first, rest) = name.split_once('/').unwrap_or(("", name));
        let is_host = first.contains(['.', ':']) || first == "localhost";
        let (registry, rest) = match is_host {
            true => (first, rest),
            false => (DOCKER_HUB, name),
        };
        // A tag is behind the last component.
        let tag = rest.rfind(':').filter(|&at| !rest[at..].contains('/'));
        let repository = &rest[..tag.unwrap_or(rest.len())];
        let repository = match registry == DOCKER_HUB && !repository.contains('/') {
            true => format!("library/{repository}"),
            false => repository.to_owned(),
        };
        Self::new(registry.to_owned(), repository)
    }
}

fn is_registry(text: &str) -> bool {
    let of_names = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    (1..=REGISTRY_LEN_MAX).contains(&text.len()) && text.bytes().all(of_names) && !text.starts_with(['.', '_'])
}

/// Components of lower-case letters, digits and separators, none of which is only dots.
fn is_repository(text: &str) -> bool {
    let component = |c: &str| {
        c.bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-'))
            && c.starts_with(|c: char| c.is_ascii_alphanumeric())
    };
    text.len() <= REPOSITORY_LEN_MAX && text.split('/').all(component)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_as_containerd_writes_them() {
        let parse = |text: &str| {
            let source: Result<BlobSource, _> = text.parse();
            source.ok().map(|s| (s.registry, s.repository))
        };
        for (text, registry, repository) in [
            ("docker.io/library/busybox:latest", "docker.io", "library/busybox"),
            ("busybox", "docker.io", "library/busybox"),
            ("team/app:v1", "docker.io", "team/app"),
            ("r.example:5000/a/b/c:v1@sha256:00", "r.example:5000", "a/b/c"),
            ("localhost/app", "localhost", "app"),
            ("127.0.0.1:5000/app@sha256:00", "127.0.0.1:5000", "app"),
        ] {
            assert_eq!(parse(text), Some((registry.into(), repository.into())), "{text}");
        }
        let long = format!("r.example/{}", "a".repeat(300));
        for bad in [
            "",
            "r.example/",
            "r.example/../x",
            "r.example/a//b",
            "r.example/A",
            "../x.y/z",
            "r.e/a b",
            &long,
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        let stored = r#"{"registry":"../etc","repository":"a"}"#;
        assert!(
            serde_json::from_str::<BlobSource>(stored).is_err(),
            "what is stored is checked again"
        );
    }
}
