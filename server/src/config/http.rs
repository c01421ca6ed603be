//! `[http]`: bounds of the listening side.
//!
//! In: a table of `server.toml`. Out: [`HttpConfig`].
//! Invariant: every bound has a default that suits a thousand nodes; none can be switched off by leaving it out.
//! Not here: TLS ([`super::TlsConfig`]) and who may read what ([`super::AccessConfig`]).

use serde::Deserialize;

use super::Network;

/// What no client waits for.
const ANSWER_MS_MAX: u64 = 600_000;

/// Bounds of the listening side.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpConfig {
    /// Open connections; further ones wait in the kernel's backlog. A file descriptor each.
    pub connections_max: usize,
    /// Open connections of one client; further ones are closed at once. A quarter of all: nodes behind one address
    /// (NAT) or a load driver need hundreds, and one of them must not keep the others out.
    pub client_connections_max: usize,
    /// Requests whose answer has not begun yet; further ones wait for their turn, clients taking turns.
    pub requests_max: usize,
    /// Requests of one client whose answer is not out yet, its body included; further ones wait.
    pub client_requests_max: usize,
    /// Requests that wait for their turn, of all clients; further ones get 503 and runtimes go to their next mirror, or
    /// for a blob 429 and they come again.
    pub queue_max: usize,
    /// The same, of one client.
    pub client_queue_max: usize,
    /// A request waits for its turn at most this long, then gets 503 or 429. Short: another mirror may have room.
    pub queue_timeout_ms: u64,
    /// From a request below `/v2/` to the head of its answer: all waits together (turns, tokens, redirects, tries, further URLs,
    /// what a manifest names). Below containerd's 30 s, with room for the way back. What is fetched goes on without the client.
    pub answer_timeout_ms: u64,
    /// Body bytes per second that one client is sent, over all its connections. 0: as many as it takes.
    pub client_bytes_per_sec: u64,
    /// Addresses or networks (`10.0.0.0/8`) of proxies whose `X-Forwarded-For` tells which client is meant.
    pub trusted_proxies: Vec<Network>,
    /// A connection that has not sent a whole request head after this is closed; a body gets as long again.
    pub header_timeout_ms: u64,
    /// Header lines of a request; container clients send about ten.
    pub headers_max: usize,
    /// Bytes of a request head; a bearer token has some 4 KiB.
    pub header_size_max: u32,
    /// Requests at once on one HTTP/2 connection.
    pub streams_max: u32,
    /// A connection on which nothing was asked for this long is closed. Longer than the 90 s after which Go's clients,
    /// which all runtimes are, close theirs, so that a request seldom meets a connection that we are closing.
    pub idle_timeout_ms: u64,
    /// A client that takes no byte of an answer for this long is cut off.
    pub write_timeout_ms: u64,
    /// A client that takes an answer slower than this, over `min_rate_window_ms`, is cut off. Below the slowest modem; a
    /// reader that is slower only holds a file and a connection. 0: no such rule.
    pub min_rate_bytes_per_sec: u64,
    pub min_rate_window_ms: u64,
    /// After SIGTERM, `/readyz` says 503 for this long before connections are refused, so that a load balancer that asks
    /// it every so often has noticed. 0 where nothing balances.
    pub drain_delay_ms: u64,
    /// After that, running answers get this long; then they are cut.
    pub drain_timeout_ms: u64,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            client_connections_max: 1024,
            requests_max: 2048,
            client_requests_max: 512,
            queue_max: 2048,
            client_queue_max: 512,
            queue_timeout_ms: 2_000,
            answer_timeout_ms: 20_000,
            client_bytes_per_sec: 0,
            trusted_proxies: Vec::new(),
            header_timeout_ms: 10_000,
            headers_max: 64,
            header_size_max: 32 << 10,
            streams_max: 256,
            idle_timeout_ms: 120_000,
            write_timeout_ms: 60_000,
            min_rate_bytes_per_sec: 1024,
            min_rate_window_ms: 60_000,
            drain_delay_ms: 0,
            drain_timeout_ms: 10_000,
        }
    }
}

impl HttpConfig {
    /// What types cannot say.
    pub(super) fn check(&self) -> Result<(), &'static str> {
        let counts = [
            self.connections_max,
            self.client_connections_max,
            self.requests_max,
            self.client_requests_max,
            self.headers_max,
            self.streams_max as usize,
        ];
        if counts.contains(&0) {
            return Err("connections_max, requests_max, headers_max, streams_max and their like must be at least 1");
        }
        let times = [
            self.header_timeout_ms,
            self.idle_timeout_ms,
            self.write_timeout_ms,
            self.min_rate_window_ms,
        ];
        if !(1..=ANSWER_MS_MAX).contains(&self.answer_timeout_ms) {
            return Err("answer_timeout_ms must be from 1 to 600000");
        }
        if times.contains(&0) {
            return Err(
                "header_timeout_ms, idle_timeout_ms, write_timeout_ms and min_rate_window_ms must be at least 1",
            );
        }
        // hyper's floor for its read buffer.
        if self.header_size_max < 8192 {
            return Err("header_size_max must be at least 8192");
        }
        Ok(())
    }
}
