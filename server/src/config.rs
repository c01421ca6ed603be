//! server.toml (owner MIRROR).
