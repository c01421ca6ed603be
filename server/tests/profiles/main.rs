//! Profiles, over HTTP: what nodes teach, what other nodes are told, and what it may cost them.
//!
//! In: a scripted origin with synthetic images whose files have chunks of their own; nodes, each with its address.
//! Out: image statuses, chunk streams.
//! Not here: how traces are weighed (`src/profile/merge.rs`).

#[path = "../support/mod.rs"]
mod support;

mod access;
mod command;
mod fairness;
mod fleet;
mod hostile;
mod learning;
mod restarts;
mod streams;
