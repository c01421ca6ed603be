//! What rooms report, in their own words.
//!
//! In: plain values. Out: recordings.
//! Invariant: none but that of [`super`].
//! Not here: metrics that are recorded in one place only; those call `add`, `time` and the like themselves.

use std::time::Duration;

use super::{
    Metrics,
    label::status_class,
    names::{Count, Seconds, Timing},
};

impl Metrics {
    /// Body bytes that arrived from an upstream.
    pub fn upstream_bytes(&self, upstream: &str, bytes: u64) {
        self.add(Count::UpstreamBytes, bytes, &[upstream]);
    }

    /// A request to an upstream ended with this status, or with none.
    pub fn upstream_request(&self, upstream: &str, method: &'static str, status: Option<u16>) {
        let status = status.map_or("none", status_class);
        self.add(Count::UpstreamRequests, 1, &[upstream, method, status]);
    }

    /// The head of an upstream's answer took this long.
    pub fn upstream_head(&self, upstream: &str, took: Duration) {
        self.time(Timing::UpstreamHead, took.as_secs_f64(), &[upstream]);
    }

    /// Body bytes handed to a client.
    pub fn served(&self, route: &'static str, bytes: u64) {
        self.add(Count::ServedBytes, bytes, &[route]);
    }

    /// A request was answered.
    pub fn request(&self, route: &'static str, status: u16) {
        self.add(Count::Requests, 1, &[route, status_class(status)]);
    }

    /// A conversion ended: `ready`, `refused`, `failed`.
    pub fn ingest_layer(&self, outcome: &'static str) {
        self.add(Count::IngestLayers, 1, &[outcome]);
    }

    /// A layer was refused, and why.
    pub fn ingest_refusal(&self, reason: &'static str) {
        self.add(Count::IngestRefusals, 1, &[reason]);
    }

    /// Time of one conversion.
    pub fn ingest_seconds(&self, wall: f64, cpu: f64) {
        self.add_seconds(Seconds::Ingest, wall, &[]);
        self.add_seconds(Seconds::IngestCpu, cpu, &[]);
    }

    /// `compressed`, `tar`, `new_chunks`, `reused_chunks`.
    pub fn ingest_bytes(&self, kind: &'static str, bytes: u64) {
        self.add(Count::IngestBytes, bytes, &[kind]);
    }

    /// Something did not match its digest; see [`super::label::DAMAGED`].
    pub fn corruption(&self, what: &'static str) {
        self.add(Count::Corruption, 1, &[what]);
    }

    /// An answer goes past a disk that takes no more.
    pub fn pass_through(&self) {
        self.add(Count::PassThrough, 1, &[]);
    }

    /// `opening`, or what made it doubtful while the server ran.
    pub fn index_rebuilt(&self, reason: &'static str) {
        self.add(Count::IndexRebuilds, 1, &[reason]);
    }
}
