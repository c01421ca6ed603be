//! Labels and their closed sets.
//!
//! In: nothing. Out: constants for `names.rs`, and for those who record.
//! Invariant: every value that is ever recorded is in a list of this file, or is the name of a configured upstream.
//! Not here: which metric has which label ([`super::names`]).

use super::table::{Label, Values};

/// Values of the `route` label.
pub mod route {
    pub const BASE: &str = "base";
    pub const BLOBS: &str = "blobs";
    pub const MANIFESTS: &str = "manifests";
    pub const TAGS: &str = "tags";
    pub const REFERRERS: &str = "referrers";
    pub const IMAGE: &str = "image";
    pub const TRACE: &str = "trace";
    pub const CHAIN: &str = "chain";
    pub const TOC: &str = "toc";
    pub const DATA: &str = "data";
    pub const CHUNKS: &str = "chunks";
    pub const ADMIN: &str = "admin";
    /// `/healthz`, `/readyz`, `/metrics`.
    pub const PROBES: &str = "probes";
    pub const OTHER: &str = "other";
}

/// What became of a trace.
pub mod taught {
    pub const COUNTED: &str = "counted";
    /// It was known, or nothing is to be learnt.
    pub const REPEATED: &str = "repeated";
    /// It names what is not the image's, or is malformed.
    pub const REFUSED: &str = "refused";
    /// Too many at once, layers not ready, or the disk.
    pub const FAILED: &str = "failed";
}

/// Why a request or connection was refused for want of room.
pub mod shed {
    /// Too many requests run, and too many wait already.
    pub const QUEUE_FULL: &str = "queue_full";
    /// It waited for its turn as long as it may.
    pub const QUEUE_TIME: &str = "queue_time";
    /// Its client has too many requests waiting already.
    pub const CLIENT_QUEUE_FULL: &str = "client_queue_full";
    /// Its client has too many connections.
    pub const CLIENT_CONNECTIONS: &str = "client_connections";
}

/// What an answer that was held until its blob was verified came to.
pub mod held {
    pub const RIGHT: &str = "right";
    /// Wrong, or it did not all come: a status said so.
    pub const REFUSED: &str = "refused";
    /// Its head could wait no longer, or too many did.
    pub const LATE: &str = "late";
}

/// Why a connection was closed on a client that had not asked for it.
pub mod cut {
    /// No whole request head in time.
    pub const HEAD: &str = "head";
    /// Nothing was asked for a while. Ordinary.
    pub const IDLE: &str = "idle";
    /// It took nothing of its answer for a while.
    pub const STALL: &str = "stall";
    /// It took its answer below the minimum rate.
    pub const SLOW: &str = "slow";
    /// The server stopped, and the time to drain was up.
    pub const DRAIN: &str = "drain";
}

pub const ROUTE: Label = Label {
    key: "route",
    values: Values::Closed(&[
        route::BASE,
        route::BLOBS,
        route::MANIFESTS,
        route::TAGS,
        route::REFERRERS,
        route::IMAGE,
        route::TRACE,
        route::CHAIN,
        route::TOC,
        route::DATA,
        route::CHUNKS,
        route::ADMIN,
        route::PROBES,
        route::OTHER,
    ]),
};
pub const STATUS: Label = closed("status", &["1xx", "2xx", "3xx", "4xx", "5xx", "none"]);
pub const UPSTREAM: Label = Label {
    key: "upstream",
    values: Values::Upstreams,
};
pub const METHOD: Label = closed("method", &["GET", "HEAD", "TOKEN"]);
pub const EXCHANGE: Label = closed("outcome", &["ok", "denied", "failed", "foreign_realm"]);
pub const OUTCOME: Label = closed("outcome", &["ready", "refused", "failed", "timed_out", "postponed"]);
pub const REFUSAL: Label = closed(
    "reason",
    &["bound", "memory", "time", "stream", "tar", "path", "format"],
);
pub const INGEST_KIND: Label = closed("kind", &["compressed", "tar", "new_chunks", "reused_chunks"]);
pub const DAMAGED: Label = closed(
    "what",
    &[
        "upstream_blob",
        "upstream_manifest",
        "original",
        "record",
        "chunk",
        "toc",
        "pack",
        "layer",
        "fact",
        "state",
        "index",
    ],
);
pub const REBUILD_REASON: Label = closed("reason", &["opening", "corruption", "error", "panic", "row", "audit"]);
pub const SHED_REASON: Label = closed(
    "reason",
    &[
        shed::QUEUE_FULL,
        shed::QUEUE_TIME,
        shed::CLIENT_QUEUE_FULL,
        shed::CLIENT_CONNECTIONS,
    ],
);
pub const CUT_REASON: Label = closed("reason", &[cut::HEAD, cut::IDLE, cut::STALL, cut::SLOW, cut::DRAIN]);

pub const HELD_ANSWER: Label = closed("outcome", &[held::RIGHT, held::REFUSED, held::LATE]);

pub const TAUGHT: Label = closed(
    "outcome",
    &[taught::COUNTED, taught::REPEATED, taught::REFUSED, taught::FAILED],
);
pub const PROFILE_ORIGIN: Label = closed("origin", &["learned", "derived", "pinned", "none"]);

pub const EVICTED: Label = closed("kind", &["original", "layer"]);
pub const EVICT_REASON: Label = closed("reason", &["budget", "age", "removed", "disk_full"]);
pub const RECLAIMED: Label = closed("kind", &["originals", "packs"]);
pub const SCRUBBED: Label = closed("kind", &["originals", "packs", "index"]);
pub const HELD: Label = closed("kind", &["originals", "partials", "packs"]);

pub const fn closed(key: &'static str, values: &'static [&'static str]) -> Label {
    Label {
        key,
        values: Values::Closed(values),
    }
}

/// Values of the `status` label.
pub(super) fn status_class(status: u16) -> &'static str {
    match status {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    }
}
