//! Conversion (owner INGEST).
pub mod config;
pub use config::IngestConfig;
