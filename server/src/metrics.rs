//! Metrics (owner MIRROR).
#[derive(Clone, Debug, Default)]
pub struct Metrics;
