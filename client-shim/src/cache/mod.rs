//! cache (owner LAZY).
