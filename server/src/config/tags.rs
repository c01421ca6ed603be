//! `[upstreams.tags]`: how long a tag is believed, and what happens when the upstream cannot confirm it.
//!
//! In: a table of `server.toml`. Out: [`TagsConfig`].
//! Invariant: digests are not concerned: what is named by one never changes.
//! Not here: acting on it (`read/policy.rs`, `read/manifests.rs`).

use serde::Deserialize;

/// How tags of one upstream are treated.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TagsConfig {
    /// `revalidate`, `ttl` or `pinned`. Left out: `ttl` with `fetch.tag_fresh_ms` if that is not 0, else `revalidate`.
    pub policy: Option<TagPolicy>,
    /// For `ttl`: a tag that the upstream confirmed less than this ago is answered without asking.
    pub ttl_ms: u64,
    /// When the upstream is in trouble, a tag it confirmed before is answered with `Warning: 299`. An upstream that is
    /// offline by configuration always counts so.
    pub stale_if_error: bool,
    /// A tag that the upstream says is gone is still answered with what it pointed at, with `Warning: 299`.
    pub serve_deleted: bool,
}

impl Default for TagsConfig {
    fn default() -> Self {
        Self {
            policy: None,
            ttl_ms: 60_000,
            stale_if_error: true,
            serve_deleted: false,
        }
    }
}

/// When the upstream is asked about a tag that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TagPolicy {
    /// By a HEAD, every time.
    Revalidate,
    /// By a HEAD, when the last confirmation is older than `ttl_ms`.
    Ttl,
    /// Never again.
    Pinned,
}
