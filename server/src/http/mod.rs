//! The router (owner MIRROR; headstart.rs is INGEST's).
pub mod headstart;
pub mod range;
