//! `[access]`: who may read what.
//!
//! In: a table of `server.toml`. Out: [`AccessConfig`].
//! Invariant: without the table everybody may read everything, and nobody is challenged. No secret is in it, only the
//! files where they are.
//! Not here: the decision (`access/`).

use std::path::PathBuf;

use serde::Deserialize;

/// Who may read what.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AccessConfig {
    /// How clients say who they are. Several may be listed; one that succeeds is enough.
    pub methods: Vec<AccessMethod>,
    /// For method `password`: `name:bcrypt-hash` lines, as `htpasswd -B` writes them. Read again when it changes.
    pub htpasswd_file: Option<PathBuf>,
    /// For method `token`: `name:sha256` lines, the SHA-256 of a token in hex. Read again when it changes. A token is
    /// taken as `Bearer`, and as the password of `Basic` with the name as user, for clients that know only that.
    pub token_file: Option<PathBuf>,
    pub mode: AccessMode,
    /// Who may read what: a client may read what at least one rule allows. Without rules, in mode `rules`, every
    /// client that says who it is may read everything.
    pub rules: Vec<AccessRule>,
    /// Whether `/v2/` itself asks for credentials.
    pub challenge_ping: ChallengePing,
    /// A client's right that the upstream confirmed is good for this long (mode `upstream`).
    pub ttl_ms: u64,
    /// That a repository is open to anybody is good for this long (mode `upstream`).
    pub public_ttl_ms: u64,
    /// A refusal is remembered for this long, so that a client that keeps asking does not keep the upstream busy.
    pub refused_ttl_ms: u64,
    /// While an upstream cannot be asked, a right that it confirmed at most this long ago still counts. 0: none does.
    pub stale_grace_ms: u64,
    /// Decisions kept in memory; the least used go first.
    pub decisions_max: u64,
    /// Questions to upstreams about rights that run at once; further ones wait.
    pub questions_max: usize,
}

impl Default for AccessConfig {
    fn default() -> Self {
        Self {
            methods: Vec::new(),
            htpasswd_file: None,
            token_file: None,
            mode: AccessMode::Rules,
            rules: Vec::new(),
            challenge_ping: ChallengePing::Auto,
            ttl_ms: 60_000,
            public_ttl_ms: 300_000,
            refused_ttl_ms: 10_000,
            stale_grace_ms: 0,
            decisions_max: 100_000,
            questions_max: 64,
        }
    }
}

impl AccessConfig {
    /// Whether there is anything that somebody may not read.
    pub fn is_restricted(&self) -> bool {
        !self.methods.is_empty() || !self.rules.is_empty() || self.mode == AccessMode::Upstream
    }
}

/// How a client says who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessMethod {
    /// `Authorization: Basic`, against `htpasswd_file`.
    Password,
    /// `Authorization: Bearer`, against `token_file`.
    Token,
    /// Its TLS certificate: subject common name, and the DNS and URI names. Needs `[tls]` with `client_ca_file`.
    Certificate,
}

/// Who decides what a client may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessMode {
    /// The rules alone.
    Rules,
    /// What no rule allows, the upstream decides: whether anybody may read the repository, or else whether the client's
    /// own credentials may.
    Upstream,
}

/// Whether `/v2/` asks for credentials. Some clients (skopeo, podman, Docker) decide there, once, whether to send any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChallengePing {
    /// When nothing at all may be read without.
    Auto,
    Always,
    Never,
}

/// One rule. Globs: `*` is any part of one path component, `**` is anything.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessRule {
    /// Names (globs), or `authenticated` (whoever says who it is), or `anonymous`, which is everybody, as is `*`.
    pub who: Vec<String>,
    /// Names of upstreams (globs); empty for all.
    #[serde(default)]
    pub upstreams: Vec<String>,
    /// Repositories (globs); empty for all.
    #[serde(default)]
    pub repositories: Vec<String>,
}
