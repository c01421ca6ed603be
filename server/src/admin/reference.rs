//! Image references as people write them.
//!
//! In: text, and the configured upstreams. Out: a [`Target`].
//! Invariant: read as docker reads it: `nginx` is `docker.io/library/nginx:latest`; a first component with a dot, a colon
//! or `localhost` is a host. Here the host is an upstream's *name*, and any upstream's name is one, dot or not.
//! Not here: whether it exists.

use headstart_layer_format::BlobDigest;

use super::AdminError;
use crate::{
    store::{facts::Source, pins::PinTarget},
    upstream::{Reference, Upstreams},
};

const DEFAULT_HOST: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Digest(BlobDigest),
    Image { source: Source, reference: Reference },
}

impl Target {
    pub fn parse(text: &str, upstreams: &Upstreams) -> Result<Self, AdminError> {
        if let Ok(digest) = text.parse() {
            return Ok(Self::Digest(digest));
        }
        let bad = |why: String| AdminError::Bad(format!("parse the image reference {text:?}: {why}"));
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (host, path) = match name.split_once('/') {
            Some((first, rest))
                if first.contains(['.', ':']) || first == "localhost" || upstreams.get(first).is_some() =>
            {
                (first, rest)
            }
            _ => (DEFAULT_HOST, name),
        };
        // A colon after the host's is a tag's.
        let (repository, tag) = path.split_once(':').unwrap_or((path, DEFAULT_TAG));
        let reference = digest.unwrap_or(tag);
        let reference: Reference = reference.parse().map_err(|e| bad(format!("{e}")))?;
        let route = upstreams
            .resolve(Some(host), repository)
            .map_err(|e| bad(format!("{host}/{repository}: {e}")))?;
        let source = route.source;
        Ok(Self::Image { source, reference })
    }

    /// What a pin of it stands for.
    pub fn pin(&self) -> PinTarget {
        match self {
            Self::Digest(digest) => PinTarget::Digest(*digest),
            Self::Image { source, reference } => match reference {
                Reference::Digest(digest) => PinTarget::Digest(*digest),
                Reference::Tag(tag) => PinTarget::Tag {
                    source: source.clone(),
                    tag: tag.as_str().to_owned(),
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Config, metrics::Metrics};

    #[test]
    fn references_are_read_as_docker_reads_them() {
        let config = Config::parse(
            "default_upstream = \"docker.io\"
             [[upstreams]]\nname = \"docker.io\"\nurl = \"http://a\"
             [[upstreams]]\nname = \"ghcr.io\"\nurl = \"http://b\"
             [[upstreams]]\nname = \"localhost:5000\"\nurl = \"http://c\"
             [[upstreams]]\nname = \"plain\"\nurl = \"http://d\"",
        )
        .unwrap();
        let upstreams = Upstreams::new(&config, &Metrics::new()).unwrap();
        let digest = BlobDigest::of(b"x").to_string();
        let at = format!("ghcr.io/a/b:v1@{digest}");
        for (text, upstream, repository, reference) in [
            ("nginx", "docker.io", "library/nginx", "latest"),
            ("nginx:1.27", "docker.io", "library/nginx", "1.27"),
            ("grafana/loki", "docker.io", "grafana/loki", "latest"),
            ("ghcr.io/a/b/c:v1", "ghcr.io", "a/b/c", "v1"),
            ("localhost:5000/a:v1", "localhost:5000", "a", "v1"),
            ("plain/a", "plain", "a", "latest"),
            (&at, "ghcr.io", "a/b", &digest),
        ] {
            let Target::Image {
                source,
                reference: found,
            } = Target::parse(text, &upstreams).unwrap()
            else {
                panic!("{text}");
            };
            assert_eq!(
                (source.upstream.as_str(), source.repository.as_str()),
                (upstream, repository)
            );
            assert_eq!(found, reference.parse().unwrap(), "{text}");
        }
        assert!(matches!(Target::parse(&digest, &upstreams), Ok(Target::Digest(_))));
        for bad in ["", "UPPER", "quay.io/a", "nginx:", "nginx@sha256:12", "a//b"] {
            assert!(Target::parse(bad, &upstreams).is_err(), "{bad}");
        }
    }
}
