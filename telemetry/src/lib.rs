//! What the server and the shim do alike to be seen by an OpenTelemetry collector.
//!
//! In: where the collector is, spans of `tracing`, instruments. Out: OTLP over HTTP with protobuf; `traceparent` headers.
//! Invariant: a collector that is slow, wrong or away costs spans and nothing else: queues are bounded and drop what does
//! not fit, exports and the flush at the end have time-outs, and nobody waits for any of them. Only spans of the target
//! that is named are sent, so the exporter's requests make no spans of their own.
//! Not here: which spans and metrics there are, and the tables of the configuration files (of either program); logs.

mod ancestor;
mod collector;
mod context;
mod reported;
mod spans;

pub use self::{
    ancestor::Ancestor,
    collector::{Collector, TelemetryError, check_endpoint, resource},
    context::{adopt, inject},
    spans::{Spans, failed, is_span_of, number},
};
