//! OpenTelemetry: traces and metrics to a collector.
//!
//! In: `[telemetry]`, spans of `tracing`, [`crate::metrics`]. Out: OTLP over HTTP with protobuf.
//! Invariant: a collector that is slow, wrong or away costs spans and nothing else: queues are bounded and drop what
//! does not fit, exports and the flush at the end have time-outs, and no request waits for any of them. Only spans of our
//! own crate are sent, so the exporter's requests make no spans of their own; their fields are chosen in our code and
//! hold no header and no query.
//! Not here: logs ([`crate::log`]), the names of metrics.

mod cause;
mod reported;

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator as _},
    trace::{Status, TraceContextExt as _, TracerProvider as _},
};
use opentelemetry_otlp::{MetricExporter, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    metrics::{MeterProviderBuilder, SdkMeterProvider, periodic_reader_with_async_runtime::PeriodicReader},
    propagation::TraceContextPropagator,
    runtime::Tokio,
    trace::{BatchConfigBuilder, Sampler, SdkTracerProvider, span_processor_with_async_runtime::BatchSpanProcessor},
};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, filter::filter_fn, registry::LookupSpan};

pub use self::cause::{Cause, requests};
use self::reported::Reported;
use crate::{config::TelemetryConfig, metrics::Metrics};

/// Spans that wait for export, and spans of one export. A span has about a kilobyte.
const QUEUE_LEN: usize = 4096;
const BATCH_LEN: usize = 512;
/// Spans wait this long for others to be sent with.
const BATCH_DELAY: Duration = Duration::from_secs(2);

/// Only spans of these targets are sent.
const OWN_TARGET: &str = "headstart_server";

/// Why there is no telemetry.
#[derive(Debug, thiserror::Error)]
#[error("use [telemetry]: {0}")]
pub struct TelemetryError(String);

/// The way of spans to the collector.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
}

impl Traces {
    /// `None` without an endpoint. To be called on a Tokio runtime, which then sends.
    pub fn start(config: &TelemetryConfig) -> Result<Option<Self>, TelemetryError> {
        let Some(endpoint) = &config.otlp_endpoint else {
            return Ok(None);
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(signal(endpoint, "traces"))
            .with_timeout(Duration::from_millis(config.export_timeout_ms))
            .build()
            .map_err(|e| TelemetryError(e.to_string()))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_LEN)
            .with_max_export_batch_size(BATCH_LEN)
            .with_scheduled_delay(BATCH_DELAY)
            .build();
        let processor = BatchSpanProcessor::builder(Reported::new(exporter, "traces"), Tokio)
            .with_batch_config(batches)
            .build();
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(
                config.trace_ratio,
            ))))
            .with_resource(resource(config))
            .build();
        if config.propagate_to_upstreams {
            opentelemetry::global::set_text_map_propagator(TraceContextPropagator::new());
        }
        Ok(Some(Self { provider }))
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
            .with_filter(filter_fn(|meta| {
                meta.is_span() && meta.target().starts_with(OWN_TARGET)
            }))
    }
}

/// The end: sends what was not sent yet, traces and metrics at the same time, as far as that is quickly done.
pub async fn shutdown(traces: Option<Traces>, metrics: Option<Metrics>, config: &TelemetryConfig) {
    let traces = tokio::task::spawn_blocking(move || traces.map(|traces| traces.provider.force_flush()));
    // Not left to the last of its owners: it might be on a thread that the sending needs.
    let metrics = tokio::task::spawn_blocking(move || metrics.map(|metrics| metrics.shutdown()));
    let time_max = Duration::from_millis(config.flush_timeout_ms);
    let _ = tokio::time::timeout(time_max, async { tokio::join!(traces, metrics) }).await;
}

/// What metrics are built with: nothing, or a reader that sends them. To be called on a Tokio runtime.
pub fn meters(config: &TelemetryConfig) -> Result<MeterProviderBuilder, TelemetryError> {
    let builder = SdkMeterProvider::builder().with_resource(resource(config));
    let Some(endpoint) = &config.otlp_endpoint else {
        return Ok(builder);
    };
    let timeout = Duration::from_millis(config.export_timeout_ms);
    let exporter = MetricExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(signal(endpoint, "metrics"))
        .with_timeout(timeout)
        .build()
        .map_err(|e| TelemetryError(e.to_string()))?;
    let reader = PeriodicReader::builder(Reported::new(exporter, "metrics"), Tokio)
        .with_interval(Duration::from_millis(config.metrics_interval_ms))
        .with_timeout(timeout)
        .build();
    Ok(builder.with_reader(reader))
}

fn signal(endpoint: &str, name: &str) -> String {
    format!("{}/v1/{name}", endpoint.trim_end_matches('/'))
}

fn resource(config: &TelemetryConfig) -> Resource {
    let attributes = config.resource.iter().map(|(k, v)| KeyValue::new(k.clone(), v.clone()));
    Resource::builder()
        .with_service_name(config.service_name.clone())
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .with_attributes(attributes)
        .build()
}

/// A request's span continues the client's trace if that is trusted, and points to it if not.
pub fn adopt(span: &Span, headers: &HeaderMap, config: &TelemetryConfig) {
    if config.otlp_endpoint.is_none() || !headers.contains_key("traceparent") {
        return;
    }
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Carrier(headers));
    let theirs = context.span().span_context().clone();
    if !theirs.is_valid() {
        return;
    }
    if config.trust_traceparent {
        // Fails only without the layer, and then there is no trace.
        let _ = span.set_parent(context);
    } else {
        span.add_link(theirs);
    }
}

/// How a request or an upstream answered.
pub fn status(span: &Span, status: u16) {
    span.set_attribute("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.set_status(Status::error(""));
    }
}

/// That what a span is about went wrong, and why. The text is one that clients may see.
pub fn failed(span: &Span, why: impl ToString) {
    span.set_status(Status::error(why.to_string()));
}

/// Tells an upstream the trace, where the configuration says so.
pub fn propagate(headers: &mut HeaderMap) {
    opentelemetry::global::get_text_map_propagator(|propagator| {
        // Without one, there is nothing to tell, and looking for the span costs.
        if propagator.fields().next().is_some() {
            propagator.inject_context(&Span::current().context(), &mut CarrierMut(headers));
        }
    });
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

struct CarrierMut<'a>(&'a mut HeaderMap);

impl Injector for CarrierMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}
