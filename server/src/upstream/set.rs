//! The set of upstreams, and which one a request means.
//!
//! In: `ns` and the repository part of a path. Out: [`Route`]: the upstream, and the [`Source`] that names it and the
//! repository everywhere else.
//! Invariant: lookups only; `ns` never becomes an address. One repository has one [`Source`], whichever way it was
//! written (`docker.io/alpine`, `library/alpine` with `ns=registry-1.docker.io`).
//! Not here: talking to it ([`super::Upstream`]).

use std::{collections::HashMap, sync::Arc};

use super::{NameError, RepositoryName, Upstream};
use crate::{config::Config, metrics::Metrics, store::facts::Source};

/// Docker Hub's names. containerd passes the first as `ns`, older ones and other clients the others.
pub(super) const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_ALIASES: [&str; 2] = ["registry-1.docker.io", "index.docker.io"];

/// The repositories of Docker Hub that have only one component are really below this.
const DOCKER_HUB_LIBRARY: &str = "library/";

/// Why the configuration names no usable set.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("use upstream {name:?}: {reason}")]
    Upstream { name: String, reason: String },
    #[error("use two upstreams of the name {0:?}")]
    Twice(String),
    #[error("use default_upstream {0:?}: no upstream has that name")]
    NoDefault(String),
}

/// Why a request means no repository of the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("no upstream of that name is configured here")]
    UnknownUpstream,
    #[error(transparent)]
    Name(#[from] NameError),
}

/// A resolved request.
#[derive(Clone, Debug)]
pub struct Route {
    pub upstream: Arc<Upstream>,
    pub source: Source,
}

/// Every configured upstream; clones share them.
#[derive(Clone, Debug)]
pub struct Upstreams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    by_name: HashMap<String, Arc<Upstream>>,
    default: Option<Arc<Upstream>>,
}

impl Upstreams {
    pub fn new(config: &Config, metrics: &Metrics) -> Result<Self, SetupError> {
        let mut by_name = HashMap::new();
        for one in &config.upstreams {
            let wrong = |reason: String| SetupError::Upstream {
                name: one.name.clone(),
                reason,
            };
            if !is_upstream_name(&one.name) {
                return Err(wrong("a name has 1 to 255 of a-z, 0-9, '.', '-', '_' and ':'".into()));
            }
            let name = canonical(&one.name).to_owned();
            let upstream = Upstream::new(one, &name, &config.fetch, metrics.clone()).map_err(wrong)?;
            if by_name.insert(name.clone(), Arc::new(upstream)).is_some() {
                return Err(SetupError::Twice(name));
            }
        }
        let default = match &config.default_upstream {
            None => None,
            Some(name) => Some(
                by_name
                    .get(canonical(name))
                    .cloned()
                    .ok_or_else(|| SetupError::NoDefault(name.clone()))?,
            ),
        };
        Ok(Self(Arc::new(Inner { by_name, default })))
    }

    /// By the name in a [`Source`].
    pub fn get(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.0.by_name.get(canonical(name))
    }

    /// Canonical names, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.by_name.keys().map(String::as_str)
    }

    /// Which upstream and repository `path` (the part of a `/v2/` path before `/manifests/` or `/blobs/`) means:
    /// by `ns`; else by a first path element that is an upstream's name; else at the default upstream.
    pub fn resolve(&self, ns: Option<&str>, path: &str) -> Result<Route, ResolveError> {
        let (upstream, repository) = match ns.filter(|ns| !ns.is_empty()) {
            Some(ns) => (self.get(ns).ok_or(ResolveError::UnknownUpstream)?, path),
            None => {
                let named = path
                    .split_once('/')
                    .and_then(|(first, rest)| self.get(first).map(|upstream| (upstream, rest)));
                match (named, &self.0.default) {
                    (Some(found), _) => found,
                    (None, Some(default)) => (default, path),
                    (None, None) => return Err(ResolveError::UnknownUpstream),
                }
            }
        };
        let repository: RepositoryName = repository.parse()?;
        let repository = if upstream.name() == DOCKER_HUB && !repository.as_str().contains('/') {
            format!("{DOCKER_HUB_LIBRARY}{repository}")
        } else {
            repository.as_str().to_owned()
        };
        let source = Source {
            upstream: upstream.name().to_owned(),
            repository,
        };
        Ok(Route {
            upstream: upstream.clone(),
            source,
        })
    }
}

fn canonical(name: &str) -> &str {
    if DOCKER_HUB_ALIASES.contains(&name) {
        DOCKER_HUB
    } else {
        name
    }
}

fn is_upstream_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_:".contains(&b);
    (1..=255).contains(&name.len()) && name.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::UpstreamConfig;

    fn set(default: Option<&str>) -> Upstreams {
        let config = Config {
            default_upstream: default.map(Into::into),
            upstreams: vec![
                UpstreamConfig::new("docker.io", "https://registry-1.docker.io"),
                UpstreamConfig::new("local:5000", "http://127.0.0.1:5000"),
            ],
            ..Config::default()
        };
        Upstreams::new(&config, &Metrics::new()).unwrap()
    }

    #[test]
    fn one_repository_has_one_source_however_it_is_written() {
        let set = set(Some("docker.io"));
        for (ns, path, upstream, repository) in [
            (Some("docker.io"), "alpine", "docker.io", "library/alpine"),
            (
                Some("registry-1.docker.io"),
                "library/alpine",
                "docker.io",
                "library/alpine",
            ),
            (None, "docker.io/alpine", "docker.io", "library/alpine"),
            (None, "docker.io/a/b", "docker.io", "a/b"),
            (None, "alpine", "docker.io", "library/alpine"),
            (None, "a/b", "docker.io", "a/b"),
            (None, "local:5000/a", "local:5000", "a"),
            (Some("local:5000"), "docker.io/a", "local:5000", "docker.io/a"),
            (Some(""), "a/b", "docker.io", "a/b"),
        ] {
            let source = set.resolve(ns, path).unwrap().source;
            assert_eq!(
                (source.upstream.as_str(), source.repository.as_str()),
                (upstream, repository),
                "{ns:?} {path}"
            );
        }
    }

    #[test]
    fn what_is_not_configured_is_unknown() {
        let set = set(None);
        for (ns, path) in [
            (Some("169.254.169.254"), "latest"),
            (Some("http://127.0.0.1:1/"), "a"),
            (Some("docker.io.evil"), "a"),
            (None, "a/b"),
            (None, "docker.io"),
        ] {
            assert_eq!(
                set.resolve(ns, path).unwrap_err(),
                ResolveError::UnknownUpstream,
                "{ns:?} {path}"
            );
        }
        assert_eq!(
            set.resolve(Some("docker.io"), "A").unwrap_err(),
            ResolveError::Name(NameError::BadName)
        );
    }

    #[test]
    fn a_default_that_is_not_configured_is_an_error() {
        let config = Config {
            default_upstream: Some("nope".into()),
            ..Config::default()
        };
        assert!(matches!(
            Upstreams::new(&config, &Metrics::new()),
            Err(SetupError::NoDefault(_))
        ));
    }
}
