//! `[access]`: who may read what.
//!
//! In: a table of `server.toml`. Out: [`AccessConfig`].
//! Invariant: without the table everybody may read everything, and nobody is challenged.
//! Not here: the decision (`access/`).

use serde::Deserialize;

/// Who may read what.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessConfig {}
