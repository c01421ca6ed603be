//! `[cache]`: how much is kept, and for how long.
//!
//! In: a table of `server.toml`. Out: [`CacheConfig`].
//! Invariant: originals and chunks have budgets of their own.
//! Not here: eviction itself.

use serde::Deserialize;

/// Budgets of what is kept.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {}
