//! What has gone wrong for other registries and proxies, one file a class, each named after it.
//!
//! In: a hostile upstream, client or request. Out: what the server does about it.
//! Invariant: each file's head tells the story and its source; the test fails when the defence is taken away.
//! Not here: single rules for hostile layers (`ingest.rs`), and hostile TOCs (`layer-format/tests/hostile.rs`).

#[path = "../support/mod.rs"]
mod support;

mod bearer_realm;
mod cache_poisoning;
mod cross_repository;
mod decompression_bombs;
mod digest_traversal;
mod foreign_layers;
mod http2_floods;
mod huge_inputs;
mod huge_tokens;
mod manifest_confusion;
mod private_to_anyone;
mod redirect_credentials;
mod secrets_in_logs;
mod slowloris;
mod ssrf;
mod tar_desync;
