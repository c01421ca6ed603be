//! OpenTelemetry: traces of this node to a collector.
//!
//! In: `[telemetry]`, spans of `tracing`. Out: OTLP over HTTP with protobuf; `traceparent` for our servers.
//! Invariant: without an endpoint nothing is built, no span is made and no server is told anything. A collector that is slow, wrong or
//! away costs spans and nothing else: the queue is bounded and drops what does not fit, exports and the flush at the end have
//! time-outs, and neither a call nor a reader waits for any of them. Only spans of our own crate are sent; their names are a
//! closed set, and their fields are chosen in our code and hold no header and no query.
//! Not here: metrics (Prometheus asks for them: [`crate::metrics`]), logs.
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
mod reported;

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator as _};
use opentelemetry::trace::{Status, TraceContextExt as _, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::runtime::Tokio;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, Sampler, SdkTracerProvider, span_processor_with_async_runtime::BatchSpanProcessor,
};
use reqwest::RequestBuilder;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;
use tracing::{Instrument as _, Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

pub use self::cause::Cause;
pub use self::config::TelemetryConfig;
use self::misses::Misses;
pub(crate) use self::misses::miss;
use self::reported::Reported;

/// Spans that wait for export, and spans of one export. A span has about a kilobyte.
const QUEUE_LEN: usize = 2048;
const BATCH_LEN: usize = 512;
/// Spans wait this long for others to be sent with.
const BATCH_DELAY: Duration = Duration::from_secs(2);

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

/// Why there is no telemetry.
#[derive(Debug, thiserror::Error)]
#[error("use [telemetry]: {0}")]
pub struct TelemetryError(String);

/// The way of spans to the collector. One a process.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    is_failing: Arc<AtomicBool>,
    flush_timeout: Duration,
}

impl Traces {
    /// `None` without an endpoint. To be called on a Tokio runtime, which then sends. Asks nobody yet.
    pub fn start(config: &TelemetryConfig) -> Result<Option<Self>, TelemetryError> {
        let Some(endpoint) = &config.otlp_endpoint else {
            return Ok(None);
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(Duration::from_millis(config.export_timeout_ms))
            .build()
            .map_err(|e| TelemetryError(e.to_string()))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_LEN)
            .with_max_export_batch_size(BATCH_LEN)
            .with_scheduled_delay(BATCH_DELAY)
            // The exporter's own time is up first, and it says so.
            .with_max_export_timeout(Duration::from_millis(config.export_timeout_ms.saturating_mul(2)))
            .build();
        let is_failing = Arc::new(AtomicBool::new(false));
        let processor = BatchSpanProcessor::builder(Reported::new(exporter, Arc::clone(&is_failing)), Tokio)
            .with_batch_config(batches)
            .build();
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.trace_ratio)));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(sampler)
            .with_resource(resource(config))
            .build();
        let started = Started {
            trust_traceparent: config.trust_traceparent,
            propagate_to_servers: config.propagate_to_servers,
            misses: Misses::default(),
        };
        match STARTED.set(started) {
            Ok(()) => Ok(Some(Self {
                provider,
                is_failing,
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
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(OWN_TARGET))
            .with_location(false)
            .with_threads(false)
            .with_filter(filter_fn(is_own_span).with_max_level_hint(LevelFilter::INFO))
    }

    /// The end: sends what was not sent yet, if that is quickly done. Who took nothing before is not waited for.
    pub async fn finish(self) {
        if self.is_failing.load(Ordering::Relaxed) {
            return;
        }
        let (done, wait) = oneshot::channel();
        // A thread that nobody waits for: the end of the runtime would wait for one of its own.
        let flush = move || {
            let _ = self.provider.force_flush();
            let _ = done.send(());
        };
        let max = self.flush_timeout;
        if std::thread::Builder::new().spawn(flush).is_ok() {
            let _ = timeout(max, wait).await;
        }
    }
}

fn is_own_span(meta: &Metadata<'_>) -> bool {
    meta.is_span() && meta.target().starts_with(OWN_TARGET)
}

/// What belongs into the log. Spans do not: whoever has a collector has them there, everybody else does not pay for them.
pub fn is_for_log(meta: &Metadata<'_>) -> bool {
    !is_own_span(meta) && !meta.target().starts_with(LIBRARY_TARGET)
}

fn resource(config: &TelemetryConfig) -> Resource {
    let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let attributes = config.resource.iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone()));
    Resource::builder()
        .with_service_name(config.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attribute(KeyValue::new("host.name", node))
        .with_attributes(attributes)
        .build()
}

/// A call's span continues the caller's trace if that is trusted, and points to it if not.
pub(crate) fn adopt(span: &Span, headers: &HeaderMap) {
    let Some(started) = STARTED.get().filter(|_| headers.contains_key("traceparent")) else {
        return;
    };
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Carrier(headers));
    let theirs = context.span().span_context().clone();
    if !theirs.is_valid() {
        return;
    }
    if started.trust_traceparent {
        // Fails only without the layer, and then there is no trace.
        let _ = span.set_parent(context);
    } else {
        span.add_link(theirs);
    }
}

/// Tells a server the trace, where the configuration says so.
pub(crate) fn propagate(request: RequestBuilder) -> RequestBuilder {
    if !STARTED.get().is_some_and(|started| started.propagate_to_servers) {
        return request;
    }
    let mut headers = CarrierMut(HeaderMap::new());
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut headers);
    request.headers(headers.0)
}

/// Does something within a span, which says so if it fails.
pub(crate) async fn within<T, E: Display>(span: Span, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let outcome = work.instrument(span.clone()).await;
    if let Err(error) = &outcome {
        failed(&span, error);
    }
    outcome
}

/// That what a span is about went wrong, and why. The text is one that is in the log.
pub(crate) fn failed(span: &Span, why: impl Display) {
    if !span.is_disabled() {
        span.set_status(Status::error(why.to_string()));
    }
}

/// A number as spans have it: of an unsigned one the layer would make a text.
pub(crate) fn number(n: impl TryInto<i64>) -> i64 {
    n.try_into().unwrap_or(i64::MAX)
}

struct Carrier<'a>(&'a HeaderMap);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).and_then(|value| value.to_str().ok())
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct CarrierMut(HeaderMap);

impl Injector for CarrierMut {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
