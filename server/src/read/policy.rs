//! What each upstream's configuration says about its tags.
//!
//! In: the configuration. Out: a [`Policy`] by the name in a source.
//! Invariant: an upstream without a table of its own has the defaults.
//! Not here: acting on it ([`super::manifests`]).

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    config::{Config, FetchConfig, TagPolicy, TagsConfig},
    upstream::Upstreams,
};

/// How tags of one upstream are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub fresh: Fresh,
    pub stale_if_error: bool,
    pub serve_deleted: bool,
}

/// How long a confirmed tag is answered without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fresh {
    For(Duration),
    Forever,
}

impl Fresh {
    /// Whether something confirmed `age` ago may be answered.
    pub fn covers(self, age: Duration) -> bool {
        match self {
            Self::For(time) => age < time,
            Self::Forever => true,
        }
    }
}

/// The policies of all upstreams; clones share them.
#[derive(Clone, Debug)]
pub struct Policies {
    by_upstream: Arc<HashMap<String, Policy>>,
    default: Policy,
}

impl Policies {
    /// By the upstreams' canonical names, which sources carry.
    pub fn new(config: &Config, upstreams: &Upstreams) -> Self {
        let named = |name: &str| upstreams.get(name).map(|upstream| upstream.name().to_owned());
        let by_upstream = config
            .upstreams
            .iter()
            .filter_map(|one| Some((named(&one.name)?, policy(&one.tags, &config.fetch))));
        Self {
            by_upstream: Arc::new(by_upstream.collect()),
            default: policy(&TagsConfig::default(), &config.fetch),
        }
    }

    pub fn of(&self, upstream: &str) -> Policy {
        self.by_upstream.get(upstream).copied().unwrap_or(self.default)
    }
}

fn policy(tags: &TagsConfig, fetch: &FetchConfig) -> Policy {
    let fresh = match tags.policy {
        Some(TagPolicy::Revalidate) => Fresh::For(Duration::ZERO),
        Some(TagPolicy::Ttl) => Fresh::For(Duration::from_millis(tags.ttl_ms)),
        Some(TagPolicy::Pinned) => Fresh::Forever,
        None => Fresh::For(Duration::from_millis(fetch.tag_fresh_ms)),
    };
    Policy {
        fresh,
        stale_if_error: tags.stale_if_error,
        serve_deleted: tags.serve_deleted,
    }
}
