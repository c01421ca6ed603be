//! fuse (owner LAZY).
