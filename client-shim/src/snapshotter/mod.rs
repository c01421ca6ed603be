//! Snapshotter (owner SNAP).
