//! OpenTelemetry: traces of this node to a collector.
//!
//! In: `[telemetry]`, spans of `tracing`. Out: OTLP over HTTP with protobuf; `traceparent` for our servers.
//! Invariant: without an endpoint nothing is built, no span is made and no server is told anything. A collector that is slow, wrong or
//! away costs spans and nothing else: the queue is bounded and drops what does not fit, exports and the flush at the end have
//! time-outs, and neither a call nor a reader waits for any of them. Only spans of our own crate are sent; their names are a
//! closed set, and their fields are chosen in our code and hold no header and no query.
//! Not here: the way to the collector (`headstart-telemetry`), metrics (Prometheus asks for them: [`crate::metrics`]), logs.
//!
//! # The spans
//! name                                           | of what, and its parent
//! -----------------------------------------------|---------------------------------------------------------------
//! prepare, view, mounts, commit, remove, cleanup | a call of containerd. Not the calls that only look, which it makes by the hundred
//! ask image, ask chain                           | an image's question to the servers, of the call that had to know
//! layer                                          | a layer presented ahead, of the call that decided on its image
//! toc, mount layer                               | fetching a TOC, showing its tree: of the call or of the layer
//! switch layer                                   | a whole layer mounted anew, from its file
//! prefetch                                       | a start's stream, of the call that decided on its image
//! miss                                           | one run over the network that readers wait for; so many a second at most ([`misses`])
//! fill                                           | fetching the rest of a layer, as a whole

mod cause;
mod config;
mod misses;

use std::fmt::Display;
use std::sync::OnceLock;
use std::time::Duration;

use headstart_telemetry::{Collector, Spans, TelemetryError, is_span_of, resource};
use http::HeaderMap;
use reqwest::RequestBuilder;
use tracing::{Instrument as _, Metadata, Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::registry::LookupSpan;

pub use self::cause::Cause;
pub use self::config::TelemetryConfig;
use self::misses::Misses;
pub(crate) use self::misses::miss;
pub(crate) use headstart_telemetry::{failed, number};

/// Spans that wait for export.
const QUEUE_LEN: usize = 2048;

/// Only spans of these targets are sent.
const OWN_TARGET: &str = "headstart_shim";
/// What the libraries of this directory are called in the log: each failed export is said by them, and once by us.
const LIBRARY_TARGET: &str = "opentelemetry";

/// What spans need to know anywhere in the crate. Nothing: they go nowhere.
static STARTED: OnceLock<Started> = OnceLock::new();

#[derive(Debug)]
struct Started {
    trust_traceparent: bool,
    propagate_to_servers: bool,
    misses: Misses,
}

/// The way of spans to the collector. One a process.
#[derive(Debug)]
pub struct Traces {
    spans: Spans,
    flush_timeout: Duration,
}

impl Traces {
    /// `None` without an endpoint. To be called on a Tokio runtime, which then sends. Asks nobody yet.
    pub fn start(config: &TelemetryConfig) -> Result<Option<Self>, TelemetryError> {
        let Some(endpoint) = &config.otlp_endpoint else {
            return Ok(None);
        };
        let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let host = ("host.name".to_owned(), node);
        let attributes = std::iter::once((&host.0, &host.1)).chain(&config.resource);
        let collector = Collector {
            endpoint,
            resource: resource(&config.service_name, env!("CARGO_PKG_VERSION"), attributes),
            export_timeout: Duration::from_millis(config.export_timeout_ms),
        };
        let spans = collector.spans(config.trace_ratio, QUEUE_LEN)?;
        let started = Started {
            trust_traceparent: config.trust_traceparent,
            propagate_to_servers: config.propagate_to_servers,
            misses: Misses::default(),
        };
        match STARTED.set(started) {
            Ok(()) => Ok(Some(Self {
                spans,
                flush_timeout: Duration::from_millis(config.flush_timeout_ms),
            })),
            Err(_) => Err(TelemetryError("it is in use in this process already".into())),
        }
    }

    /// What hands spans over.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        self.spans.layer(OWN_TARGET)
    }

    /// The end: sends what was not sent yet, if that is quickly done. Who took nothing before is not waited for.
    pub async fn finish(self) {
        self.spans.finish(self.flush_timeout).await;
    }
}

/// What belongs into the log. Spans do not: whoever has a collector has them there, everybody else does not pay for them.
pub fn is_for_log(meta: &Metadata<'_>) -> bool {
    !is_span_of(meta, OWN_TARGET) && !meta.target().starts_with(LIBRARY_TARGET)
}

/// A call's span continues the caller's trace if that is trusted, and points to it if not.
pub(crate) fn adopt(span: &Span, headers: &HeaderMap) {
    if let Some(started) = STARTED.get() {
        headstart_telemetry::adopt(span, headers, started.trust_traceparent);
    }
}

/// Tells a server the trace, where the configuration says so.
pub(crate) fn propagate(request: RequestBuilder) -> RequestBuilder {
    if !STARTED.get().is_some_and(|started| started.propagate_to_servers) {
        return request;
    }
    let mut headers = HeaderMap::new();
    headstart_telemetry::inject(&mut headers);
    request.headers(headers)
}

/// Does something within a span, which says so if it fails.
pub(crate) async fn within<T, E: Display>(span: Span, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let outcome = work.instrument(span.clone()).await;
    if let Err(error) = &outcome {
        failed(&span, error);
    }
    outcome
}
