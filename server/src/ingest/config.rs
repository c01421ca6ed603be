//! Budgets of a conversion (owner INGEST).
use serde::Deserialize;
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IngestConfig {}
