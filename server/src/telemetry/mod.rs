//! OpenTelemetry: traces and metrics to a collector.
//!
//! In: `[telemetry]`, spans of `tracing`, [`crate::metrics`]. Out: OTLP over HTTP with protobuf.
//! Invariant: a collector that is slow, wrong or away costs spans and nothing else: queues are bounded and drop what
//! does not fit, exports and the flush at the end have time-outs, and no request waits for any of them. Only spans of our
//! own crate are sent, so the exporter's requests make no spans of their own; their fields are chosen in our code and
//! hold no header and no query.
//! Not here: the way to the collector (`headstart-telemetry`), logs ([`crate::log`]), the names of metrics.

mod cause;

use std::{sync::OnceLock, time::Duration};

use headstart_telemetry::{Collector, Spans, resource};
use http::HeaderMap;
use opentelemetry::trace::Status;
use opentelemetry_sdk::metrics::{MeterProviderBuilder, SdkMeterProvider};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::{Layer, registry::LookupSpan};

pub use self::cause::{Cause, requests};
use crate::{config::TelemetryConfig, metrics::Metrics};
pub use headstart_telemetry::{TelemetryError, failed};

/// Spans that wait for export.
const QUEUE_LEN: usize = 4096;

/// Only spans of these targets are sent.
const OWN_TARGET: &str = "headstart_server";

/// Whether upstreams are told the trace. Nothing: they are not.
static PROPAGATES: OnceLock<()> = OnceLock::new();

/// The way of spans to the collector.
#[derive(Debug)]
pub struct Traces {
    spans: Spans,
}

impl Traces {
    /// `None` without an endpoint. To be called on a Tokio runtime, which then sends.
    pub fn start(config: &TelemetryConfig) -> Result<Option<Self>, TelemetryError> {
        let Some(collector) = collector(config) else {
            return Ok(None);
        };
        let spans = collector.spans(config.trace_ratio, QUEUE_LEN)?;
        if config.propagate_to_upstreams {
            // More than once is the same.
            let _ = PROPAGATES.set(());
        }
        Ok(Some(Self { spans }))
    }

    /// What hands spans over.
    pub fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        self.spans.layer(OWN_TARGET)
    }
}

/// The end: sends what was not sent yet, traces and metrics at the same time, as far as that is quickly done.
pub async fn shutdown(traces: Option<Traces>, metrics: Option<Metrics>, config: &TelemetryConfig) {
    let time_max = Duration::from_millis(config.flush_timeout_ms);
    let traces = async {
        if let Some(traces) = traces {
            traces.spans.finish(time_max).await;
        }
    };
    // Not left to the last of its owners: it might be on a thread that the sending needs.
    let metrics = tokio::task::spawn_blocking(move || metrics.map(|metrics| metrics.shutdown()));
    let _ = tokio::time::timeout(time_max, async { tokio::join!(traces, metrics) }).await;
}

/// What metrics are built with: nothing, or a reader that sends them. To be called on a Tokio runtime.
pub fn meters(config: &TelemetryConfig) -> Result<MeterProviderBuilder, TelemetryError> {
    let builder = SdkMeterProvider::builder().with_resource(own_resource(config));
    Ok(match collector(config) {
        Some(collector) => builder.with_reader(collector.metrics(Duration::from_millis(config.metrics_interval_ms))?),
        None => builder,
    })
}

fn collector(config: &TelemetryConfig) -> Option<Collector<'_>> {
    Some(Collector {
        endpoint: config.otlp_endpoint.as_deref()?,
        resource: own_resource(config),
        export_timeout: Duration::from_millis(config.export_timeout_ms),
    })
}

fn own_resource(config: &TelemetryConfig) -> opentelemetry_sdk::Resource {
    resource(&config.service_name, env!("CARGO_PKG_VERSION"), &config.resource)
}

/// A request's span continues the client's trace if that is trusted, and points to it if not.
pub fn adopt(span: &Span, headers: &HeaderMap, config: &TelemetryConfig) {
    if config.otlp_endpoint.is_some() {
        headstart_telemetry::adopt(span, headers, config.trust_traceparent);
    }
}

/// How a request or an upstream answered.
pub fn status(span: &Span, status: u16) {
    span.set_attribute("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.set_status(Status::error(""));
    }
}

/// Tells an upstream the trace, where the configuration says so.
pub fn propagate(headers: &mut HeaderMap) {
    if PROPAGATES.get().is_some() {
        headstart_telemetry::inject(headers);
    }
}
