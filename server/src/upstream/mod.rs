//! Upstreams (owner MIRROR).
